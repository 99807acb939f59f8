"""Combines the images of concurrent calls into requests. The asyncio code around ``batching.decide``."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from alexnet_client.batching import BatchOptions, Pending, Sleep, decide
from alexnet_client.call_queue import QueueCapacity, QueuedCall, set_error, set_results, size_bytes
from alexnet_client.codec import Array
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, ClientError, Closed, DeadlineExceeded, RequestRejected, ServerFault
from alexnet_client.events import BatchSent, Listener
from alexnet_client.results import BatchResult

if TYPE_CHECKING:  # tracing is optional: the package may be missing
    from alexnet_client.tracing import Tracing

SendParts = Callable[[Sequence[Array], Deadline], Awaitable[BatchResult]]
"""Sends the parts as one request and returns the rows of all parts, in order."""
LATENCY_WEIGHT = 0.2
"""Weight of a new latency in the moving average."""


class Batcher:
    """A bounded queue in front of ``send``. Must be used in one event loop.

    ``options`` may be replaced, for example after the server reported its largest batch. ``concurrency_limit`` returns the number
    of batches that may be in flight now.
    """

    def __init__(
        self,
        send: SendParts,
        *,
        options: BatchOptions,
        concurrency_limit: Callable[[], int],
        on_event: Listener,
        tracing: Tracing | None = None,
    ) -> None:
        self._send, self.options, self._concurrency_limit = send, options, concurrency_limit
        self._on_event, self._tracing = on_event, tracing
        self._queue: deque[QueuedCall] = deque()
        self._capacity = QueueCapacity(options.max_queue_images, options.max_queue_bytes)
        self._in_flight: set[asyncio.Task[None]] = set()
        self._latency_s = 0.0
        self._flush_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def queued(self) -> int:
        """Images in the queue."""
        return self._capacity.images

    @property
    def in_flight(self) -> int:
        """Batches that were sent and have no result yet."""
        return len(self._in_flight)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    async def submit(
        self, part: Array, deadline: Deadline, *, more: bool = False, on_sent: Callable[[], None] | None = None
    ) -> BatchResult:
        """Send some images in one request, together with those of other calls.

        Args:
            part: images, batch axis first, at most as many as fit in a request. They are read when the batch is sent.
            deadline: of the call.
            more: a further part of an accepted call; it waits for a place in the queue, whatever ``wait_when_full`` is.
            on_sent: called when the batch is sent.

        Raises:
            ClientError: the error of this call; each other call of the batch gets its own.
        """
        if self._closed:
            raise Closed("this client is closed")
        images, nbytes = len(part), size_bytes(part)
        await self._capacity.acquire(images, nbytes, deadline, wait=more or self.options.wait_when_full)
        if self.closed:  # it was closed while this call waited for capacity
            self._capacity.release(images, nbytes)
            raise Closed("this client is closed")
        loop = asyncio.get_running_loop()
        call = QueuedCall(
            part, deadline, Pending(images, time.monotonic(), deadline.at), loop.create_future(), on_sent=on_sent
        )
        if self._tracing is not None:
            call.span = self._tracing.current_span()
        self._queue.append(call)
        self.wake()
        try:
            async with asyncio.timeout_at(deadline.at):
                return await call.result
        except TimeoutError:
            raise DeadlineExceeded(f"no response within {deadline.timeout_s:g} s") from None
        finally:
            if not call.sent:  # it was cancelled or timed out in the queue
                self._queue.remove(call)
                self._capacity.release(images, nbytes)

    async def close(self) -> None:
        """Fail queued calls with ``Closed`` and cancel batches in flight."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        set_error(self._queue, Closed("this client is closed"))
        for task in self._in_flight:
            task.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)

    def wake(self) -> None:
        """Schedule a decision after all tasks that can run now, so that simultaneous calls share a batch."""
        if not self._flush_scheduled and not self._closed:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while not self._closed:
            step = decide(
                (call.pending for call in self._queue),
                time.monotonic(),
                in_flight=self.in_flight,
                limit=self._concurrency_limit(),
                latency_s=self._latency_s,
                options=self.options,
            )
            if isinstance(step, Sleep):
                if step.until_s < math.inf:
                    self._timer = asyncio.get_running_loop().call_at(step.until_s, self._flush)
                return
            self._dispatch([self._queue.popleft() for _ in range(step.count)])

    def _dispatch(self, batch: list[QueuedCall]) -> None:
        now_s = time.monotonic()
        for call in batch:
            call.sent = True
            if call.on_sent is not None:
                call.on_sent()
        images = sum(call.pending.images for call in batch)
        self._capacity.release(images, sum(size_bytes(call.part) for call in batch))
        self._on_event(BatchSent(images, tuple(now_s - call.pending.since_s for call in batch)))
        task = asyncio.create_task(self._run_batch(batch))
        self._in_flight.add(task)

        waiting = len(batch)

        def cancel_if_unused(_: asyncio.Future[BatchResult]) -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                task.cancel()

        def finish(_: asyncio.Task[None]) -> None:
            self._in_flight.discard(task)
            self.wake()

        for call in batch:
            call.result.add_done_callback(cancel_if_unused)
        task.add_done_callback(finish)

    async def _run_batch(self, batch: list[QueuedCall]) -> None:
        try:
            await self._send_or_split(batch)
        except asyncio.CancelledError:
            set_error(batch, Closed("this client is closed"))
            raise
        except Exception as error:
            set_error(batch, ServerFault(f"internal error of the client: {error!r}"))
            raise

    async def _send_or_split(self, batch: list[QueuedCall]) -> None:
        """Send a batch; if an image is invalid, send the two halves, until only the call with that image fails.

        The halves are sent one after the other, within the batch's share of the concurrency limit.
        """
        try:
            result = await self._send_batch(batch)
        except ClientError as error:
            _drop_tracebacks(error)
            if len(batch) == 1 or not isinstance(error, BadInput) or isinstance(error, RequestRejected):
                set_error(batch, error)
                return
        else:
            set_results(batch, result)
            return
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            if waiting := [call for call in part if not call.result.done()]:
                await self._send_or_split(waiting)

    async def _send_batch(self, batch: Sequence[QueuedCall]) -> BatchResult:
        """Send one request and check the number of rows before any call gets its result."""
        latest = max((call.deadline for call in batch), key=lambda deadline: deadline.at)
        began_s = time.monotonic()
        images = sum(call.pending.images for call in batch)
        parts = [call.part for call in batch]
        if self._tracing is None:
            result = await self._send(parts, latest)
        else:
            with self._tracing.batch([call.span for call in batch if call.span is not None], images=images):
                result = await self._send(parts, latest)
        if len(result.logits) != images:
            raise ServerFault(f"the response contains {len(result.logits)} rows for {images} images")
        self._latency_s += LATENCY_WEIGHT * (time.monotonic() - began_s - self._latency_s)
        return result


def _drop_tracebacks(error: BaseException | None) -> None:
    """Callers and replicas keep errors, and tracebacks would keep the images and the encoded request of the batch."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
