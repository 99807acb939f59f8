"""Pixels in shared memory for a server on this machine: a request contains the name of a region instead of the pixels.

A region is a file in /dev/shm that the server maps too. One request at a time leases it.

- After a result, the server does not read the region any more, and the next request may lease it.
- After a timeout, cancellation or failure, the server may still read the region, or the request may not have arrived yet. Such a
  region is never written again. It stays in quarantine until the server has unregistered it, which Triton 2.51 rejects while a
  request uses the region ("it is currently in use"). Then the file is unlinked. No name is used twice, so a request that arrives
  later is rejected because the region is unknown.
- ``close`` tries to unregister all regions for at most ``close_timeout_s``, then unlinks all files. A server that has mapped an
  unlinked file keeps its memory.
- Regions of clients that were killed are removed and unregistered by the next client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from tritonclient.grpc import service_pb2

from alexnet_client.admin import admin_metadata, loopback_address
from alexnet_client.codec import Array
from alexnet_client.connection import Connection
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, ClientError, Closed, ServerFault
from alexnet_client.events import Listener, SharedMemoryFallback
from alexnet_client.files import reason
from alexnet_client.shared_memory_regions import NAME, Region, RegionPool, remove_stale_regions
from alexnet_client.transport import Transport

UNREGISTER_TIMEOUT_S = 1.0
"""Timeout of an unregister call in the background, seconds."""
_UNKNOWN = "Unable to find shared memory region"
"""Message of Triton 2.51 (NOT_FOUND) for an unknown region: the server was restarted."""


class SharedMemoryTransport(Transport):
    """A server that reads pixels from the memory of this process. Create it in a running event loop and close it.

    Errors are raised until one region was registered, because the user requested shared memory. After that, a request falls
    back to the gRPC payload if there is no region for it.

    Args:
        target: host:port of a server on this machine that the launcher of the same user started.
        on_event: receives an event for each fallback.
        cleanup_interval_s: time between two attempts to unregister regions in quarantine, seconds.
        close_timeout_s: limit of the time in ``close``, seconds.
        retry_interval_s: time from a rejected registration to the next attempt, seconds.

    Raises:
        BadInput: the target may be on another machine.
    """

    def __init__(
        self,
        target: str,
        connection: Connection | None = None,
        *,
        on_event: Listener = lambda event: None,
        regions: RegionPool | None = None,
        cleanup_interval_s: float = 0.25,
        close_timeout_s: float = 2.0,
        retry_interval_s: float = 1.0,
    ) -> None:
        self._loopback_address = loopback_address(target)
        super().__init__(target, connection)
        self.regions = regions or RegionPool()
        self._on_event = on_event
        self._cleanup_interval_s, self._close_timeout_s = cleanup_interval_s, close_timeout_s
        self._retry_interval_s, self._retry_at_s = retry_interval_s, 0.0
        self._works = self._closing = False
        self._orphans: list[str] = []
        self._cleanup: asyncio.Task[None] | None = None
        remove_stale_regions(self.regions.directory)

    async def lease(self, parts: Sequence[Array], deadline: Deadline) -> Lease | None:
        """Write the arrays to a region, one after the other; None if the request must carry them in its payload.

        Raises:
            BadInput: the arrays are not pixels, or the first region was rejected.
            ClientError: the registration of the first region failed.
        """
        if parts[0].dtype.hasobject:
            raise BadInput("shared memory supports pixels only; use a model that reads files without shared_memory")
        region, cause = None, "rejected"
        if not self._closing and not (self._works and time.monotonic() < self._retry_at_s):
            try:
                region, cause = await self._registered_region(sum(part.nbytes for part in parts), deadline), "full"
            except ClientError:
                if not self._works:
                    raise
        if region is None:
            self._on_event(SharedMemoryFallback(self.target, cause))
            return None
        region.write(parts)
        return Lease(self, region)

    async def register(self, region: Region, deadline: Deadline) -> None:
        """Register a leased region on the server.

        Raises:
            BadInput: the administration key is missing or wrong, or the server has another /dev/shm.
            ClientError: the call failed.
        """
        region.registered = False
        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name=region.name, key=f"/{region.name}", byte_size=region.size
        )
        try:
            await self._admin_call(self._stub.SystemSharedMemoryRegister, request, deadline)
        except ServerFault as error:
            self._postpone_registrations()
            raise BadInput(
                f"{self.target}: the server cannot open shared memory of this machine, so it runs elsewhere (in a container "
                f"or behind a forwarded port); connect without shared_memory ({error})"
            ) from None
        except BadInput:
            self._postpone_registrations()
            raise
        if self._closing:
            raise Closed(f"{self.target}: this client is closed")
        region.registered = True

    async def unregister(self, name: str, deadline: Deadline) -> bool:
        """Unregister a region; false if a request still uses it. Raises ``ClientError``."""
        assert name, "Triton unregisters all regions, also those of other clients, if the name is empty"
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
        try:
            await self._admin_call(self._stub.SystemSharedMemoryUnregister, request, deadline)
        except ServerFault:
            return False
        return True

    def release(self, region: Region, *, reusable: bool) -> None:
        """End a lease. ``reusable``: the server responded, so it does not read the region any more."""
        self.regions.release(region, reusable=reusable)
        self._start_cleanup()

    async def close(self) -> None:
        """Unregister and unlink all regions, then close the channel."""
        self._closing = True
        deadline = Deadline.after(self._close_timeout_s)
        try:
            if self._cleanup is not None:
                self._cleanup.cancel()
                await asyncio.wait({self._cleanup})
            with suppress(ClientError):
                for region in self.regions.all:
                    while not await self.unregister(region.name, deadline):  # noqa: ASYNC110  Triton sends no event
                        await asyncio.sleep(0.02)
        finally:
            for region in self.regions.all:
                self.regions.remove(region)
            await super().close()

    async def _admin_call(self, method: Any, request: Any, deadline: Deadline) -> Any:
        """The key is read for each call because the launcher creates a new one at each start."""
        return await self._call(method, request, deadline, admin_metadata(self._loopback_address))

    async def _registered_region(self, nbytes: int, deadline: Deadline) -> Region | None:
        try:
            region = self.regions.lease(nbytes)
        except OSError as error:
            self._postpone_registrations()
            raise BadInput(
                f"{self.regions.directory}: cannot create shared memory ({reason(error)}); free some space there"
            ) from None
        self._start_cleanup()  # ``lease`` may have put a region into quarantine
        if region is not None and not region.registered:
            try:
                await self.register(region, deadline)
                if not self._works:
                    self._works = True
                    await self._find_orphans(deadline)
            except BadInput:  # the server has not mapped it
                self.regions.remove(region)
                raise
            except BaseException:  # the server may have mapped it
                self.release(region, reusable=False)
                raise
        return region

    async def _find_orphans(self, deadline: Deadline) -> None:
        """Find regions on the server whose files do not exist: their clients were killed, or closed before the server responded."""
        request = service_pb2.SystemSharedMemoryStatusRequest()
        with suppress(ClientError):
            names = (await self._admin_call(self._stub.SystemSharedMemoryStatus, request, deadline)).regions
            self._orphans = [
                name for name in names if NAME.fullmatch(name) and not (self.regions.directory / name).exists()
            ]
            self._start_cleanup()

    def _start_cleanup(self) -> None:
        idle = self._cleanup is None or self._cleanup.done()
        if idle and (self._orphans or self.regions.quarantined) and not self._closing:
            self._cleanup = asyncio.create_task(self._clean_up(), name="alexnet-client shared memory cleanup")

    async def _clean_up(self) -> None:
        """Unregister regions in quarantine and orphans until none is left."""
        while self._orphans or self.regions.quarantined:
            await asyncio.sleep(self._cleanup_interval_s)
            self._orphans = [name for name in self._orphans if not await self._try_unregister(name)]
            for region in list(self.regions.quarantined):
                if await self._try_unregister(region.name):
                    self.regions.remove(region)

    async def _try_unregister(self, name: str) -> bool:
        with suppress(ClientError):
            return await self.unregister(name, Deadline.after(UNREGISTER_TIMEOUT_S))
        return False

    def _postpone_registrations(self) -> None:
        self._retry_at_s = time.monotonic() + self._retry_interval_s


class Lease:
    """A region with the tensor of one request. ``infer`` must be called; it ends the lease."""

    def __init__(self, transport: SharedMemoryTransport, region: Region) -> None:
        self._transport, self.region = transport, region

    async def infer(
        self,
        request: bytes,
        deadline: Deadline,
        metadata: tuple[tuple[str, str], ...] = (),
        *,
        encode_payload: Callable[[], bytes],
    ) -> service_pb2.ModelInferResponse:
        """Run the request. Raises ``ClientError``.

        Args:
            request: contains the name of the region.
            deadline: of the request, including a new registration of the region if the server was restarted.
            metadata: of the request.
            encode_payload: encodes the request with the tensor in its payload, in case the server rejects the region.
        """
        reusable = False
        try:
            try:
                response = await self._transport.infer(request, deadline, metadata)
            except BadInput as error:
                if _UNKNOWN not in str(error):
                    raise
                try:
                    await self._transport.register(self.region, deadline)
                except BadInput:
                    request = encode_payload()
                response = await self._transport.infer(request, deadline, metadata)
            reusable = True
            return response
        finally:
            self._transport.release(self.region, reusable=reusable)
