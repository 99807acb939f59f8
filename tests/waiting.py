"""The one way in which tests wait for something that another process or thread does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 60.0
"""Long enough for a busy machine: it is reached only when a test fails."""


def wait_until(condition: Callable[[], Any], what: str, *, timeout_s: float = PATIENCE_S, every_s: float = 0.02) -> Any:
    """The first true value of ``condition``; fails with ``what`` if there is none in time."""
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(every_s)
    return value


async def until(
    condition: Callable[[], Any], what: str, *, timeout_s: float = PATIENCE_S, every_s: float = 0.01
) -> Any:
    """``wait_until`` for a running event loop; ``condition`` may be a coroutine function."""
    end_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < end_s, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(every_s)
