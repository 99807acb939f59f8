"""Room in a bounded queue, by items and by bytes: taken at once, or waited for in order until a deadline."""

from __future__ import annotations

import asyncio
from collections import deque

from alexnet_client.deadline import Deadline
from alexnet_client.errors import DeadlineExceeded, QueueFull


class Room:
    """So many images and bytes may wait at a time; one caller may always, however large.

    Args:
        images, nbytes: the bounds.
    """

    def __init__(self, images: int, nbytes: int) -> None:
        self._most = images, nbytes
        self.images = self.nbytes = 0
        self._waiters: deque[tuple[asyncio.Future[None], int, int]] = deque()

    async def take(self, images: int, nbytes: int, deadline: Deadline, *, wait: bool) -> None:
        """Take room, or ``wait`` for it; ``give`` must follow.

        Raises:
            QueueFull: there is none, and this caller does not wait.
            DeadlineExceeded: none was free in time.
        """
        if not self._waiters and self._fits(images, nbytes):
            self._add(images, nbytes)
            return
        if not wait:
            raise QueueFull(
                f"{self.images} images ({self.nbytes:,} bytes) wait in this process already, the limits are "
                f"{self._most[0]} and {self._most[1]:,}; send less, or let calls wait for room"
            )
        future = asyncio.get_running_loop().create_future()
        waiter = future, images, nbytes
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(deadline.remaining_s("waiting for room in the queue")):
                await future
        except (TimeoutError, asyncio.CancelledError) as error:
            if future.done() and not future.cancelled():
                self.give(images, nbytes)  # it was given in that very moment
            if isinstance(error, asyncio.CancelledError):
                raise
            text = f"the deadline of {deadline.timeout_s:g} s passed while waiting for room in the queue"
            raise DeadlineExceeded(text) from None
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                self._let_in()

    def give(self, images: int, nbytes: int) -> None:
        """Give room back."""
        self.images -= images
        self.nbytes -= nbytes
        self._let_in()

    def _let_in(self) -> None:
        while self._waiters and self._fits(*self._waiters[0][1:]):
            future, images, nbytes = self._waiters.popleft()
            if not future.done():
                self._add(images, nbytes)
                future.set_result(None)

    def _fits(self, images: int, nbytes: int) -> bool:
        if not self.images:
            return True
        return self.images + images <= self._most[0] and self.nbytes + nbytes <= self._most[1]

    def _add(self, images: int, nbytes: int) -> None:
        self.images += images
        self.nbytes += nbytes
