"""One absolute deadline per call, shared by everything that the call does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from alexnet_client.errors import DeadlineExceeded


@dataclass(frozen=True)
class Deadline:
    """A point in time on a monotonic clock, seconds."""

    at: float
    timeout_s: float
    clock: Callable[[], float]

    @classmethod
    def after(cls, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """The deadline ``timeout_s`` seconds from now."""
        return cls(clock() + timeout_s, timeout_s, clock)

    @asynccontextmanager
    async def over(self, doing: str) -> AsyncIterator[None]:
        """Cancel the block when the deadline passes.

        Raises:
            DeadlineExceeded: the deadline passed; the message contains ``doing``.
        """
        try:
            async with asyncio.timeout(self.remaining_s(doing)):
                yield
        except TimeoutError:
            raise self._exceeded(doing) from None

    def remaining_s(self, doing: str) -> float:
        """Seconds until the deadline.

        Raises:
            DeadlineExceeded: the deadline passed; the message contains ``doing``.
        """
        left = self.at - self.clock()
        if left <= 0:
            raise self._exceeded(doing)
        return left

    def _exceeded(self, doing: str) -> DeadlineExceeded:
        return DeadlineExceeded(f"the deadline of {self.timeout_s:g} s passed while {doing}")
