"""Pixels for a server on this machine through shared memory: the request on the wire only says where they lie.

A region is a file in /dev/shm that the server has mapped too; one request at a time leases it.

- After a good answer the server is done with it, and the next request may have it.
- After anything else (timeout, cancellation, failure) the server may still read it, or the request may not even have
  arrived. Such a region is never written again. It stays in quarantine until the server has unregistered it, which Triton
  2.51 refuses while a request uses it ("it is currently in use"), and only then is it unlinked. No name is given twice: a
  request that arrives later still finds no region and is refused.
- ``close`` asks for the same, for at most ``CLOSE_S``, and then unlinks what is left all the same. Only the name goes: a
  server that has the memory mapped keeps it.
- Regions of clients that were killed are removed by the next one, which has the server unregister them too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tritonclient.grpc import service_pb2

from alexnet_client.codec import Array
from alexnet_client.connection import Connection
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, ClientError, Closed
from alexnet_client.events import Listener, SharedMemoryFallback
from alexnet_client.regions import DIRECTORY, NAME, Region, Regions, sweep
from alexnet_client.registration import RegisteringTransport

LOOK_EVERY_S = 0.25
"""Between two looks at the quarantine."""
CALL_S, CLOSE_S = 1.0, 2.0
"""For an administrative call that nobody waits for; for all of those in ``close``."""
REST_S = 1.0
"""After a region was refused, until the next is asked for."""
_UNKNOWN = "Unable to find shared memory region"
"""What Triton 2.51 says, as NOT_FOUND, of a region it does not know: it has been started again."""


class SharedTransport(RegisteringTransport):
    """A server that reads pixels from this process's memory. Made inside a running event loop; must be closed.

    Until one region was registered, whatever prevents it is raised: shared memory was asked for. Afterwards a request goes
    over the wire if there is no region for it.

    Args:
        target: host:port, of a server that this user's launcher started on this machine.
        connection: how it is reached.
        on_event: told when a request goes over the wire instead.
        directory: where shared memory is.

    Raises:
        BadInput: the target may be another machine's.
    """

    def __init__(
        self,
        target: str,
        connection: Connection | None = None,
        *,
        on_event: Listener = lambda event: None,
        directory: Path = DIRECTORY,
    ) -> None:
        super().__init__(target, connection)
        self.regions = Regions(directory)
        self._on_event, self._directory = on_event, directory
        self._proven = self._closing = False
        self._rests_until_s = 0.0
        self._lost: list[str] = []
        self._clearing: asyncio.Task[None] | None = None
        sweep(directory)

    async def lease(self, parts: Sequence[Array], deadline: Deadline) -> Lease | None:
        """A region that holds the arrays, one after the other; None if they must go over the wire.

        Raises:
            BadInput: they are no pixels, or no region was ever registered and this one is refused.
            ClientError: no region was ever registered, and the server does not answer.
        """
        if parts[0].dtype.hasobject:
            raise BadInput("shared memory is for pixels; ask a model that reads files without shared_memory")
        region, reason = None, "rejected"
        if not self._closing and not (self._proven and time.monotonic() < self._rests_until_s):
            try:
                region, reason = await self._known(sum(part.nbytes for part in parts), deadline), "full"
            except ClientError:
                if not self._proven:
                    raise
        if region is None:
            self._on_event(SharedMemoryFallback(self.target, reason))
            return None
        region.write(parts)
        return Lease(self, region)

    async def introduce(self, region: Region, deadline: Deadline) -> None:
        """Have the server know a leased region.

        Raises:
            BadInput: it refuses to.
            ClientError: it does not answer.
        """
        region.registered = False
        try:
            await self.register(region.name, region.size, deadline)
        except BadInput:
            self._rest()
            raise
        if self._closing:
            raise Closed(f"{self.target}: this client is closed")
        region.registered = True

    def end(self, region: Region, *, well: bool) -> None:
        """A lease is over; ``well``: with a good answer, so that the server is done with the region."""
        self.regions.end(region, well=well)
        self._clear()

    async def close(self) -> None:
        """Have the server unregister the regions, waiting a little for those it reads; unlink them; close the channel."""
        self._closing = True
        deadline = Deadline.after(CLOSE_S)
        try:
            if self._clearing is not None:
                self._clearing.cancel()
                await asyncio.wait({self._clearing})
            with suppress(ClientError):
                for region in self.regions.all:
                    while not await self.unregister(region.name, deadline):  # noqa: ASYNC110  Triton tells nobody
                        await asyncio.sleep(0.02)
        finally:
            for region in self.regions.all:
                self.regions.drop(region)
            await super().close()

    async def _known(self, nbytes: int, deadline: Deadline) -> Region | None:
        """Lease a region that the server knows."""
        try:
            region = self.regions.take(nbytes)
        except OSError as error:
            self._rest()
            cause = (error.strerror or str(error)).lower()
            raise BadInput(f"{self._directory}: no shared memory to be had ({cause}); make room there") from None
        self._clear()  # it may have put one away to make room
        if region is not None and not region.registered:
            try:
                await self.introduce(region, deadline)
                if not self._proven:
                    self._proven = True
                    await self._find_lost(deadline)
            except BadInput:  # the server was not asked, or has refused
                self.regions.drop(region)
                raise
            except BaseException:  # the server may have mapped it
                self.end(region, well=False)
                raise
        return region

    async def _find_lost(self, deadline: Deadline) -> None:
        """Find regions in the server whose files are gone: their clients were killed, or could not wait for it."""
        with suppress(ClientError):
            names = await self.registered(deadline)
            self._lost = [name for name in names if NAME.fullmatch(name) and not (self._directory / name).exists()]
            self._clear()

    def _clear(self) -> None:
        """See to it that regions in quarantine and lost ones are unregistered."""
        idle = self._clearing is None or self._clearing.done()
        if idle and (self._lost or self.regions.quarantined) and not self._closing:
            self._clearing = asyncio.create_task(self._unregister_all(), name="alexnet-client clears shared memory")

    async def _unregister_all(self) -> None:
        while self._lost or self.regions.quarantined:
            await asyncio.sleep(LOOK_EVERY_S)
            self._lost = [name for name in self._lost if not await self._forgotten(name)]
            for region in list(self.regions.quarantined):
                if await self._forgotten(region.name):
                    self.regions.drop(region)

    async def _forgotten(self, name: str) -> bool:
        """Whether the server does not know the region any more; if it does not answer, it is asked again."""
        with suppress(ClientError):
            return await self.unregister(name, Deadline.after(CALL_S))
        return False

    def _rest(self) -> None:
        self._rests_until_s = time.monotonic() + REST_S


class Lease:
    """A region with the tensor of one request in it. ``infer`` must be called, and gives it back."""

    def __init__(self, transport: SharedTransport, region: Region) -> None:
        self._transport, self._region = transport, region

    @property
    def name(self) -> str:
        """Of the region, for the request."""
        return self._region.name

    async def infer(
        self,
        request: bytes,
        deadline: Deadline,
        metadata: tuple[tuple[str, str], ...] = (),
        *,
        by_wire: Callable[[], bytes],
    ) -> service_pb2.ModelInferResponse:
        """Run the request; raises ``ClientError``.

        Args:
            request: names the region.
            deadline: of the request, and of having the region registered again by a server that was started again.
            metadata: sent with it.
            by_wire: makes the request that carries the tensor, for a server that registers none now.
        """
        well = False
        try:
            answer = await self._infer(request, deadline, metadata, by_wire)
            well = True
            return answer
        finally:
            self._transport.end(self._region, well=well)

    async def _infer(
        self, request: bytes, deadline: Deadline, metadata: tuple[tuple[str, str], ...], by_wire: Callable[[], bytes]
    ) -> service_pb2.ModelInferResponse:
        try:
            return await self._transport.infer(request, deadline, metadata)
        except BadInput as error:
            if _UNKNOWN not in str(error):
                raise
        try:
            await self._transport.introduce(self._region, deadline)
        except BadInput:
            request = by_wire()
        return await self._transport.infer(request, deadline, metadata)
