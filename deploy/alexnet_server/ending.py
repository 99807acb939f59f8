"""How a Triton ends: it answers what it has accepted, unloads its models, and is killed if it does not come to an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from alexnet_server.launcher import Server

LOOK_EVERY_S = 0.05
REMIND_AFTER_S = 5
KILL_AFTER_S = 10
"""How much longer than its own exit timeout a stopping server may take before it is killed, seconds."""
UNLOAD_S = 10
"""How long one may unload that has nothing left to answer, seconds."""


@dataclass(frozen=True)
class BrokenUnload:
    """Triton crashed or hung after it had answered everything; as far as its callers know it ended well.

    2.51 does so once in some hundred stops: its rate limiter may forget an instance while that is told to end
    (``EnqueuePayload`` in Triton core's ``rate_limiter.cc``, called by ``StopBackendThread``).
    """

    exit_code: int


async def ended(server: Server, *, while_waiting: Callable[[], None]) -> int:
    """Ask a server to end, as often as it takes, and give its exit code once it has."""
    give_up_s = time.monotonic() + server.options.exit_timeout_s + KILL_AFTER_S
    remind_s = 0.0
    while server.exit_code is None and time.monotonic() < give_up_s:
        if time.monotonic() >= remind_s:
            server.ask_to_stop()
            remind_s = time.monotonic() + REMIND_AFTER_S
            if server.drained:
                give_up_s = min(give_up_s, time.monotonic() + UNLOAD_S)
        while_waiting()
        await asyncio.sleep(LOOK_EVERY_S)
    return server.kill()
