"""The senders as processes: each has a processor, an interpreter and an event loop of its own, and none draws or compresses.

They are started, made ready, let go at the same moment, heard, and ended. What they say are tuples on a pipe.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

from alexnet_client.errors import ClientError, ServerFault
from alexnet_load.results import Record
from alexnet_load.run import Plan
from alexnet_load.sender import Sender
from alexnet_load.tally import Tally

LEAD_S = 0.1
"""From telling the senders to begin to the begin."""
FLUSH_S = 0.25
DIED = "a sender process has died; its own words, if any, are above"
END_S = 5.0
"""How long a sender that was told to end may take, seconds."""


class Senders:
    """``plan.senders`` processes while the block lasts.

    Args:
        plan: what they send together.
    """

    def __init__(self, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(plan.senders):
            ours, theirs = context.Pipe()
            process = context.Process(target=_live, args=(theirs, plan, number), name=f"sender {number}", daemon=True)
            with _deaf():
                process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._speaking = list(self._pipes)
        self.tallies: list[Tally] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()  # a sender whose pipe is closed ends
        for process in self._processes:
            process.join(END_S)
            if process.is_alive():
                process.kill()
                process.join()

    def ready(self) -> None:
        """Wait until all could begin.

        Raises:
            ClientError: one could not; it says why.
        """
        for pipe in self._pipes:
            self._hear(pipe)

    def begin(self) -> float:
        """Let them go; the begin, on ``time.monotonic``'s clock.

        Raises:
            ServerFault: a sender has died.
        """
        begin_s = time.monotonic() + LEAD_S
        try:
            for pipe in self._pipes:
                pipe.send(begin_s)
        except OSError:
            raise ServerFault(DIED) from None
        return begin_s

    def stop(self) -> None:
        """Send nothing more; if this is called a second time, wait for nothing more either."""
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.send("stop")

    def records(self, on_records: Callable[[Sequence[Record]], None]) -> None:
        """Hear the senders until all are done; ``tallies`` has their counts then.

        Raises:
            ServerFault: a sender has died.
        """
        while self._speaking:
            for pipe in wait(self._speaking):
                assert isinstance(pipe, Connection)
                said = self._hear(pipe)
                if isinstance(said, Tally):
                    self.tallies.append(said)
                    self._speaking.remove(pipe)
                else:
                    on_records(said)

    def _hear(self, pipe: Connection) -> Any:
        try:
            said = pipe.recv()
        except (EOFError, OSError):
            raise ServerFault(DIED) from None
        if isinstance(said, ClientError):
            raise said
        return said


@contextmanager
def _deaf() -> Iterator[None]:
    """Who is started here hears no Ctrl-C, from its first moment on: that is the parent's, which says stop."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _live(pipe: Connection, plan: Plan, number: int) -> None:
    """A sender's process: prepares, begins when it is told to, sends records and at last its tally."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also if another thread than the main one started it
    with suppress(EOFError, OSError, asyncio.CancelledError):  # the parent has ended
        try:
            asyncio.run(_send(pipe, plan, number))
        except ClientError as error:
            pipe.send(type(error)(*error.args))  # without its causes, which may hold what no pipe takes


async def _send(pipe: Connection, plan: Plan, number: int) -> None:
    async with Sender(plan, number=number) as sender:
        await sender.prepare()
        pipe.send("ready")
        begin_s = await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        await _report(pipe, sender, asyncio.ensure_future(sender.run(begin_s)))


async def _report(pipe: Connection, sender: Sender, running: asyncio.Future[None]) -> None:
    loop = asyncio.get_running_loop()

    def told() -> None:
        try:
            pipe.recv()
            sender.stop()
        except (EOFError, OSError):  # nobody hears any more
            loop.remove_reader(pipe.fileno())
            running.cancel()

    loop.add_reader(pipe.fileno(), told)
    try:
        while not running.done():
            await asyncio.wait([running], timeout=FLUSH_S)
            if records := sender.take():
                await loop.run_in_executor(None, pipe.send, records)
        await running
    finally:
        loop.remove_reader(pipe.fileno())
    pipe.send(sender.tally)
