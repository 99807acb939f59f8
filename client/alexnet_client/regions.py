"""Regions of shared memory as files: made, leased, kept in quarantine, removed. Knows no server and no event loop."""

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

DIRECTORY = Path("/dev/shm")  # noqa: S108  where glibc, and so Triton, looks for shared memory
NAME = re.compile(r"alexnet-client-([1-9]\d{0,6})-[0-9a-f]{16}")
"""Names of regions; the number is the process that made it."""
SIZES = tuple(size * 2**20 for size in (1, 2, 5, 10, 20, 50, 100))
"""Bytes of regions: room for 6, 13, 34, 69, 139, 348 and 696 images."""
MOST_REGIONS, MOST_BYTES = 32, 256 * 2**20
"""Bounds for each server: twice the requests that may be in flight there, so that as many can lie in quarantine."""


@dataclass(eq=False)
class Region:
    """A file in memory, locked as long as this process has it mapped."""

    path: Path
    memory: mmap.mmap
    registered: bool = False

    @classmethod
    def create(cls, directory: Path, size: int) -> Region:
        """A new one of ``size`` bytes, readable by nobody else; raises ``OSError``."""
        path = directory / f"alexnet-client-{os.getpid()}-{secrets.token_hex(8)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(descriptor, 0, size)  # without it, a full /dev/shm ends the process that writes (SIGBUS)
            return cls(path, mmap.mmap(descriptor, size))  # it has a descriptor of its own, which keeps the lock
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    @property
    def name(self) -> str:
        """The server knows it by the same."""
        return self.path.name

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.memory)

    def write(self, parts: Sequence[Array]) -> None:
        """The arrays' elements, one array after the other, in row-major order."""
        at = 0
        for part in parts:
            np.frombuffer(self.memory, part.dtype, part.size, at).reshape(part.shape)[...] = part
            at += part.nbytes

    def remove(self) -> None:
        """Unlink and unmap."""
        self.path.unlink(missing_ok=True)
        self.memory.close()


class Regions:
    """The regions for one server: free, leased or in quarantine. Files and bookkeeping; knows no server.

    Args:
        directory: where the files are.
        most: bounds their number.
        most_bytes: bounds their sizes together.
    """

    def __init__(self, directory: Path = DIRECTORY, *, most: int = MOST_REGIONS, most_bytes: int = MOST_BYTES) -> None:
        self._directory, self._most, self._most_bytes = directory, most, most_bytes
        self.free: list[Region] = []
        self.leased: list[Region] = []
        self.quarantined: list[Region] = []

    @property
    def all(self) -> list[Region]:
        """Every one; those that nobody uses come first."""
        return [*self.free, *self.quarantined, *self.leased]

    def take(self, nbytes: int) -> Region | None:
        """Lease the smallest free region of at least ``nbytes``, or a new one; None if there may be no more.

        Raises:
            OSError: there is no memory for a new one.
        """
        fitting = [each for each in self.free if each.size >= nbytes]
        if fitting:
            region = min(fitting, key=lambda each: each.size)
            self.free.remove(region)
        else:
            size = next((size for size in SIZES if size >= nbytes), None)
            if size is None:
                return None
            if len(self.all) >= self._most or sum(each.size for each in self.all) + size > self._most_bytes:
                if self.free:  # all of them are too small: the one that was unused longest makes room
                    self.quarantined.append(self.free.pop(0))
                return None
            region = Region.create(self._directory, size)
        self.leased.append(region)
        return region

    def end(self, region: Region, *, well: bool) -> None:
        """The lease is over; ``well``: with the server's answer, so that nobody reads the region any more."""
        if region in self.leased:  # else ``close`` was faster
            self.leased.remove(region)
            (self.free if well else self.quarantined).append(region)

    def drop(self, region: Region) -> None:
        """Remove it for good."""
        for each in (self.free, self.leased, self.quarantined):
            if region in each:
                each.remove(region)
        region.remove()


def sweep(directory: Path = DIRECTORY) -> None:
    """Remove the regions of this user's processes that were killed.

    Neither may the process that made a region run, nor anybody hold its lock: a process in another container that shares
    /dev/shm is not seen by its number.
    """
    for path in directory.glob("alexnet-client-*"):
        named = NAME.fullmatch(path.name)
        if named is None or _runs(int(named[1])):
            continue
        with suppress(OSError):  # another client removes it, somebody holds its lock, or it is another user's
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
