"""Single images from many tasks leave as one request. The asyncio shell around ``batching.decide``."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from alexnet_client.answers import BatchAnswer
from alexnet_client.batching import BatchOptions, Sleep, Waiting, decide
from alexnet_client.callers import Caller, fail, hand_out, size_of
from alexnet_client.codec import Array
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, ClientError, Closed, DeadlineExceeded, RequestRejected, ServerFault
from alexnet_client.events import BatchSent, Listener
from alexnet_client.room import Room

if TYPE_CHECKING:  # tracing is optional: its package may be missing
    from alexnet_client.tracing import Tracing

SendParts = Callable[[Sequence[Array], Deadline], Awaitable[BatchAnswer]]
"""Sends the parts as one request, in order, and gives the rows of all."""
LATEST = 0.2
"""Share of a new latency in the running mean."""


class Batcher:
    """A bounded queue in front of ``send``. Belongs to one event loop.

    Args:
        send: sends a batch.
        options: sizes and delays; may be changed, such as when the server has said what it takes.
        capacity: how many batches may be in flight now.
        on_event: told of each batch.
        tracing: makes a span of each batch.
    """

    def __init__(
        self,
        send: SendParts,
        *,
        options: BatchOptions,
        capacity: Callable[[], int],
        on_event: Listener,
        tracing: Tracing | None = None,
    ) -> None:
        self._send, self.options, self._capacity, self._on_event = send, options, capacity, on_event
        self._tracing = tracing
        self._queue: deque[Caller] = deque()
        self._room = Room(options.max_queue_images, options.max_queue_bytes)
        self._in_flight: set[asyncio.Task[None]] = set()
        self._latency_s = 0.0
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def queued(self) -> int:
        """Images that wait."""
        return self._room.images

    @property
    def in_flight(self) -> int:
        """Batches that were sent and are not answered."""
        return len(self._in_flight)

    @property
    def closed(self) -> bool:
        """Whether it takes no more images."""
        return self._closed

    async def submit(
        self, part: Array, deadline: Deadline, *, more: bool = False, on_sent: Callable[[], None] | None = None
    ) -> BatchAnswer:
        """The answers for some images, which travel together and with those of other callers.

        Args:
            part: at most as many images as fit a request, the batch axis first. It is read when the batch leaves.
            deadline: of the caller.
            more: this is a further part of a call that was let in: it waits for room, whatever the options say.
            on_sent: called when the batch leaves.

        Raises:
            ClientError: this caller's own; others of the batch have theirs.
        """
        if self._closed:
            raise Closed("this client is closed")
        images, nbytes = len(part), size_of(part)
        await self._room.take(images, nbytes, deadline, wait=more or self.options.wait_when_full)
        if self.closed:  # while it waited for room
            self._room.give(images, nbytes)
            raise Closed("this client is closed")
        loop = asyncio.get_running_loop()
        caller = Caller(
            part, deadline, Waiting(images, time.monotonic(), deadline.at), loop.create_future(), on_sent=on_sent
        )
        if self._tracing is not None:
            caller.span = self._tracing.caller()
        self._queue.append(caller)
        self.wake()
        try:
            async with asyncio.timeout(max(0.0, deadline.at - deadline.clock())):
                return await caller.answer
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {deadline.timeout_s:g} s") from None
        finally:
            if not caller.left:  # it was cancelled or timed out before
                self._queue.remove(caller)
                self._room.give(images, nbytes)

    async def close(self) -> None:
        """Fail who waits, cancel what is in flight."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        fail(self._queue, Closed("this client is closed"))
        for task in self._in_flight:
            task.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)

    def wake(self) -> None:
        """Decide anew, once all tasks that can run now have had their turn: callers who come together leave together."""
        if not self._flushing and not self._closed:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while not self._closed:
            step = decide(
                (caller.waiting for caller in self._queue),
                time.monotonic(),
                in_flight=self.in_flight,
                limit=self._capacity(),
                service_s=self._latency_s,
                options=self.options,
            )
            if isinstance(step, Sleep):
                if step.until_s < math.inf:
                    self._timer = asyncio.get_running_loop().call_at(step.until_s, self._flush)
                return
            self._dispatch([self._queue.popleft() for _ in range(step.count)])

    def _dispatch(self, batch: list[Caller]) -> None:
        now_s = time.monotonic()
        for each in batch:
            each.left = True
            if each.on_sent is not None:
                each.on_sent()
        images = sum(each.waiting.images for each in batch)
        self._room.give(images, sum(size_of(each.part) for each in batch))
        self._on_event(BatchSent(images, tuple(now_s - each.waiting.since_s for each in batch)))
        task = asyncio.create_task(self._deliver(batch))
        self._in_flight.add(task)

        waiting = len(batch)

        def abandon(_: asyncio.Future[BatchAnswer]) -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:  # if it is still in flight, nobody waits for it any more
                task.cancel()

        def done(_: asyncio.Task[None]) -> None:
            self._in_flight.discard(task)
            self.wake()

        for each in batch:
            each.answer.add_done_callback(abandon)
        task.add_done_callback(done)

    async def _deliver(self, batch: list[Caller]) -> None:
        """Send a batch and give each caller its rows, or an exception of its own."""
        try:
            await self._answer(batch)
        except asyncio.CancelledError:
            fail(batch, Closed("this client is closed"))
            raise
        except Exception as error:
            fail(batch, ServerFault(f"the client itself failed: {error!r}"))
            raise

    async def _answer(self, batch: list[Caller]) -> None:
        """Send a batch, and its halves if an image in it is refused, so that in the end only that one's caller hears of it.

        The halves go one after the other, in the place that the batch had among those in flight.
        """
        try:
            answer = await self._rows(batch)
        except ClientError as error:
            if len(batch) == 1 or not isinstance(error, BadInput) or isinstance(error, RequestRejected):
                fail(batch, error)
                return
        else:
            hand_out(batch, answer)
            return
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            if waiting := [each for each in part if not each.answer.done()]:
                await self._answer(waiting)

    async def _rows(self, batch: Sequence[Caller]) -> BatchAnswer:
        """The rows of all callers, counted before any is handed out."""
        latest = max((each.deadline for each in batch), key=lambda deadline: deadline.at)
        began_s = time.monotonic()
        images = sum(each.waiting.images for each in batch)
        parts = [each.part for each in batch]
        if self._tracing is None:
            answer = await self._send(parts, latest)
        else:
            with self._tracing.batch([each.span for each in batch if each.span is not None], images=images):
                answer = await self._send(parts, latest)
        if len(answer.logits) != images:
            raise ServerFault(f"the answer has {len(answer.logits)} rows for {images} images")
        self._latency_s += LATEST * (time.monotonic() - began_s - self._latency_s)
        return answer
