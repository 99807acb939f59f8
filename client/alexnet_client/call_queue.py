"""The calls that wait for a batch: their records, and the bounded capacity of the queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alexnet_client.batching import Pending
from alexnet_client.codec import Array
from alexnet_client.deadline import Deadline
from alexnet_client.errors import ClientError, DeadlineExceeded, QueueFull
from alexnet_client.results import BatchResult

if TYPE_CHECKING:  # tracing is optional: the package may be missing
    from opentelemetry.trace import Span


@dataclass(eq=False, slots=True)
class QueuedCall:
    """A call in the queue or in a batch; ``sent``: its images have left the queue, and ``on_sent`` was called."""

    part: Array
    deadline: Deadline
    pending: Pending
    result: asyncio.Future[BatchResult]
    sent: bool = False
    span: Span | None = None
    on_sent: Callable[[], None] | None = None


def size_bytes(part: Array) -> int:
    """Size of the images; an object array itself contains only references to the files."""
    return sum(map(len, part.ravel())) if part.dtype.hasobject else part.nbytes


def set_results(calls: Sequence[QueuedCall], result: BatchResult) -> None:
    """Give each call its rows."""
    start = 0
    for call in calls:
        end = start + call.pending.images
        if not call.result.done():
            call.result.set_result(result.rows(start, end))
        start = end


def set_error(calls: Sequence[QueuedCall], error: ClientError) -> None:
    """Give each call its own exception: an exception raised in several tasks accumulates all their tracebacks."""
    for call in calls:
        if not call.result.done():
            copy = type(error)(*error.args)
            copy.__cause__ = error
            call.result.set_exception(copy)


class QueueCapacity:
    """Limits the images and bytes in the queue. If the queue is empty, a call of any size is accepted."""

    def __init__(self, max_images: int, max_bytes: int) -> None:
        self._max_images, self._max_bytes = max_images, max_bytes
        self.images = self.nbytes = 0
        self._waiters: deque[tuple[asyncio.Future[None], int, int]] = deque()

    async def acquire(self, images: int, nbytes: int, deadline: Deadline, *, wait: bool) -> None:
        """Reserve capacity; ``release`` must follow.

        Raises:
            QueueFull: the queue is full and ``wait`` is false.
            DeadlineExceeded: the queue was full until the deadline.
        """
        if not self._waiters and self._fits(images, nbytes):
            self._add(images, nbytes)
            return
        if not wait:
            raise QueueFull(
                f"client queue is full: {self.images} of {self._max_images} images, {self.nbytes:,} of "
                f"{self._max_bytes:,} bytes; send fewer images, or let calls wait (wait_when_full)"
            )
        future = asyncio.get_running_loop().create_future()
        waiter = future, images, nbytes
        self._waiters.append(waiter)
        try:
            async with deadline.over("waiting for a place in the queue"):
                await future
        except (DeadlineExceeded, asyncio.CancelledError):
            if future.done() and not future.cancelled():
                self.release(images, nbytes)  # the capacity was reserved just before the cancellation
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                self._admit()

    def release(self, images: int, nbytes: int) -> None:
        """Return reserved capacity."""
        self.images -= images
        self.nbytes -= nbytes
        self._admit()

    def _admit(self) -> None:
        while self._waiters and self._fits(*self._waiters[0][1:]):
            future, images, nbytes = self._waiters.popleft()
            if not future.done():
                self._add(images, nbytes)
                future.set_result(None)

    def _fits(self, images: int, nbytes: int) -> bool:
        if not self.images:
            return True
        return self.images + images <= self._max_images and self.nbytes + nbytes <= self._max_bytes

    def _add(self, images: int, nbytes: int) -> None:
        self.images += images
        self.nbytes += nbytes
