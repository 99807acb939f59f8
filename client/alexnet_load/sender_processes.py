"""Senders in processes of their own, so that each one has a CPU, an interpreter and an event loop; connected by pipes."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from alexnet_client.errors import ClientError, ServerFault
from alexnet_load.run import ClientStatistics, Plan
from alexnet_load.run_file import Record
from alexnet_load.sender import Sender

START_DELAY_S = 0.1
"""Time between the start signal and the start of the run, so that all senders receive the signal before."""
REPORT_INTERVAL_S = 0.25
STOP_TIMEOUT_S = 5.0
PROCESS_DIED = "a sender process died; its error output, if any, is above"


class SenderProcesses:
    """The ``plan.senders`` processes of a run, which are stopped at the end of the ``with`` block."""

    def __init__(self, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(plan.senders):
            ours, theirs = context.Pipe()
            process = context.Process(target=_main, args=(theirs, plan, number), name=f"sender {number}", daemon=True)
            with _sigint_ignored():
                process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._active = list(self._pipes)
        self.statistics: list[ClientStatistics] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()  # a sender whose pipe is closed exits
        for process in self._processes:
            process.join(STOP_TIMEOUT_S)
            if process.is_alive():
                process.kill()
                process.join()

    def wait_ready(self) -> None:
        """Wait until all senders are prepared.

        Raises:
            ClientError: the error of a sender that could not be prepared.
        """
        for pipe in self._pipes:
            self._receive(pipe)

    def start(self) -> float:
        """Start sending; return the start of the run on the clock of ``time.monotonic``.

        Raises:
            ServerFault: a sender process died.
        """
        start_s = time.monotonic() + START_DELAY_S
        try:
            for pipe in self._pipes:
                pipe.send(start_s)
        except OSError:
            raise ServerFault(PROCESS_DIED) from None
        return start_s

    def stop(self) -> None:
        """Stop sending; the second call also cancels all open requests."""
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.send("stop")

    def receive_records(self, on_records: Callable[[Sequence[Record]], None]) -> None:
        """Receive records until all senders are done; ``statistics`` is complete then.

        Raises:
            ServerFault: a sender process died.
        """
        while self._active:
            for pipe in wait(self._active):
                assert isinstance(pipe, Connection)
                message = self._receive(pipe)
                if isinstance(message, ClientStatistics):
                    self.statistics.append(message)
                    self._active.remove(pipe)
                else:
                    on_records(message)

    def _receive(self, pipe: Connection) -> Any:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            raise ServerFault(PROCESS_DIED) from None
        if isinstance(message, ClientError):
            raise message
        return message


@contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Processes started in this block ignore Ctrl-C from the beginning: the parent process handles it and stops them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _main(pipe: Connection, plan: Plan, number: int) -> None:
    """Entry point of a sender process."""
    with suppress(EOFError, OSError, asyncio.CancelledError):  # the parent process has exited
        try:
            asyncio.run(_run_sender(pipe, plan, number))
        except ClientError as error:
            pipe.send(type(error)(*error.args))  # a copy without __cause__, which may not be picklable


async def _run_sender(pipe: Connection, plan: Plan, number: int) -> None:
    async with Sender(plan, number=number) as sender:
        await sender.prepare()
        pipe.send("ready")
        start_s = await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        await _report(pipe, sender, asyncio.ensure_future(sender.run(start_s)))


async def _report(pipe: Connection, sender: Sender, running: asyncio.Future[None]) -> None:
    loop = asyncio.get_running_loop()

    def on_message() -> None:
        try:
            pipe.recv()
            sender.stop()
        except (EOFError, OSError):  # the parent process has exited
            loop.remove_reader(pipe.fileno())
            running.cancel()

    loop.add_reader(pipe.fileno(), on_message)
    try:
        while not running.done():
            await asyncio.wait([running], timeout=REPORT_INTERVAL_S)
            if records := sender.take_records():
                await loop.run_in_executor(None, pipe.send, records)
        await running
    finally:
        loop.remove_reader(pipe.fileno())
    pipe.send(sender.statistics)
