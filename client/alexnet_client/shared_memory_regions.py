"""Shared-memory regions as files: created, leased, quarantined, removed. No network, no event loop."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alexnet_client.codec import Array

DIRECTORY = Path("/dev/shm")  # noqa: S108  where glibc, and therefore Triton, opens shared memory
NAME = re.compile(r"alexnet-client-([1-9]\d{0,6})-[0-9a-f]{16}")
"""Names of regions; the number is the process that created the region."""
SIZES = tuple(size * 2**20 for size in (1, 2, 5, 10, 20, 50, 100))
"""Sizes of regions, bytes: enough for 6, 13, 34, 69, 139, 348 and 696 images."""
MAX_REGIONS, MAX_BYTES = 32, 256 * 2**20
"""Limits per server: twice the default of max_in_flight, so that as many regions can be in quarantine."""


@dataclass(eq=False)
class Region:
    """A file in memory. It stays locked as long as this process has it mapped."""

    path: Path
    memory: mmap.mmap
    registered: bool = False

    @classmethod
    def create(cls, directory: Path, size: int) -> Region:
        """Create a region of ``size`` bytes that only this user can read. Raises ``OSError``."""
        path = directory / f"alexnet-client-{os.getpid()}-{secrets.token_hex(8)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(descriptor, 0, size)  # otherwise writing to a full /dev/shm ends the process with SIGBUS
            return cls(path, mmap.mmap(descriptor, size))  # it duplicates the descriptor and so keeps the lock
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    @property
    def name(self) -> str:
        """Name of the file, and of the region on the server."""
        return self.path.name

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.memory)

    def write(self, parts: Sequence[Array]) -> None:
        """Write the elements of the arrays, one array after the other, in row-major order."""
        at = 0
        for part in parts:
            np.frombuffer(self.memory, part.dtype, part.size, at).reshape(part.shape)[...] = part
            at += part.nbytes

    def remove(self) -> None:
        """Unlink and unmap the file."""
        self.path.unlink(missing_ok=True)
        self.memory.close()


class RegionPool:
    """The regions for one server: free, leased or in quarantine. Their number and total size are limited."""

    def __init__(
        self, directory: Path = DIRECTORY, *, max_regions: int = MAX_REGIONS, max_bytes: int = MAX_BYTES
    ) -> None:
        self.directory, self._max_regions, self._max_bytes = directory, max_regions, max_bytes
        self.free: list[Region] = []
        self.leased: list[Region] = []
        self.quarantined: list[Region] = []

    @property
    def all(self) -> list[Region]:
        """All regions, unused ones first."""
        return [*self.free, *self.quarantined, *self.leased]

    def lease(self, nbytes: int) -> Region | None:
        """Lease the smallest free region of at least ``nbytes``, or a new one; None if the limits are reached.

        Raises:
            OSError: there is no memory for a new region.
        """
        fitting = [each for each in self.free if each.size >= nbytes]
        if fitting:
            region = min(fitting, key=lambda each: each.size)
            self.free.remove(region)
        else:
            size = next((size for size in SIZES if size >= nbytes), None)
            if size is None:
                return None
            if len(self.all) >= self._max_regions or sum(each.size for each in self.all) + size > self._max_bytes:
                if self.free:  # all free regions are too small: remove the one that was unused for the longest time
                    self.quarantined.append(self.free.pop(0))
                return None
            region = Region.create(self.directory, size)
        self.leased.append(region)
        return region

    def release(self, region: Region, *, reusable: bool) -> None:
        """End a lease. ``reusable``: the server responded, so it does not read the region any more."""
        if region in self.leased:  # otherwise it was removed by ``close``
            self.leased.remove(region)
            (self.free if reusable else self.quarantined).append(region)

    def remove(self, region: Region) -> None:
        """Remove a region and its file."""
        for each in (self.free, self.leased, self.quarantined):
            if region in each:
                each.remove(region)
        region.remove()


def remove_stale_regions(directory: Path = DIRECTORY) -> None:
    """Remove the regions of this user's processes that were killed.

    A region is removed only if its process does not run and its lock is free. The lock is necessary because a process in
    another container that shares /dev/shm has another process number there.
    """
    for path in directory.glob("alexnet-client-*"):
        named = NAME.fullmatch(path.name)
        if named is None or _runs(int(named[1])):
            continue
        with suppress(OSError):  # removed by another client, locked, or owned by another user
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_uid == os.geteuid():
                    path.unlink()
            finally:
                os.close(descriptor)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
