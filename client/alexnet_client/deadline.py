"""One absolute deadline per call, shared by everything that the call does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from alexnet_client.errors import DeadlineExceeded


@dataclass(frozen=True)
class Deadline:
    """A point in time on the clock of ``time.monotonic``, seconds."""

    at: float
    timeout_s: float

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        """The deadline ``timeout_s`` seconds from now."""
        return cls(time.monotonic() + timeout_s, timeout_s)

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
        left_s = self.at - time.monotonic()
        if left_s <= 0:
            raise self._exceeded(doing)
        return left_s

    def _exceeded(self, doing: str) -> DeadlineExceeded:
        return DeadlineExceeded(f"the deadline of {self.timeout_s:g} s passed while {doing}")
