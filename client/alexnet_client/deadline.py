"""One absolute deadline a call, shared by everything the call does. Pure: the clock is given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from alexnet_client.errors import DeadlineExceeded


@dataclass(frozen=True)
class Deadline:
    """A point on a monotonic clock, seconds."""

    at: float
    timeout_s: float
    clock: Callable[[], float]

    @classmethod
    def after(cls, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """The deadline ``timeout_s`` seconds from now."""
        return cls(clock() + timeout_s, timeout_s, clock)

    @asynccontextmanager
    async def over(self, doing: str) -> AsyncIterator[None]:
        """Ends the block when the deadline passes.

        Raises:
            DeadlineExceeded: it did; the text names ``doing``.
        """
        try:
            async with asyncio.timeout(self.remaining_s(doing)):
                yield
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline of {self.timeout_s:g} s passed while {doing}") from None

    def remaining_s(self, doing: str) -> float:
        """Seconds left.

        Raises:
            DeadlineExceeded: none are; the text names ``doing``.
        """
        left = self.at - self.clock()
        if left <= 0:
            raise DeadlineExceeded(f"the deadline of {self.timeout_s:g} s passed while {doing}")
        return left
