"""A whole run: senders made ready, both sides looked at before and after, every record on disk, Ctrl-C with a result."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from alexnet_client.errors import ClientError
from alexnet_load.results import Record, RunWriter, read_run
from alexnet_load.run import OK, Plan, Run, ServerSide
from alexnet_load.senders import Senders
from alexnet_load.server_side import Look, Observer, difference
from alexnet_load.tally import client_side

RECENT_S = 2.0


@dataclass(frozen=True)
class Progress:
    """How a run goes.

    Attributes:
        elapsed_s: since its begin, seconds.
        ended: requests so far.
        failed: those of them that were not answered well.
        rate: answers a second lately.
        p99_ms: of their latency from the planned time, milliseconds; None if there were none.
    """

    elapsed_s: float
    ended: int
    failed: int
    rate: float
    p99_ms: float | None


def conduct(
    plan: Plan,
    *,
    path: Path | None = None,
    metrics: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Run:
    """Carry a plan out.

    Ctrl-C ends the sending and the run is what was sent until then; a second one waits for no more answers, a third one
    ends everything.

    Args:
        plan: what to send.
        path: file for the run, ``*.jsonl.gz``; None keeps nothing.
        metrics: host:port of Triton's metrics, for servers whose statistics are closed to this user.
        on_progress: told several times a second.

    Raises:
        ClientError: no server answers, the plan makes no sense, the disk refuses, or a sender died.
    """
    with TemporaryDirectory(prefix="alexnet-load-") as scratch:
        kept = path or Path(scratch, "run.jsonl.gz")
        _carry_out(plan, kept, metrics, on_progress)
        return read_run(kept)


def _carry_out(plan: Plan, path: Path, metrics: str, on_progress: Callable[[Progress], None]) -> None:
    with Senders(plan) as senders:
        senders.ready()
        server = _Server(plan, metrics)
        started = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
        with RunWriter(path, plan, machine=_machine(), started=started, version=version("alexnet-client")) as writer:
            recent = _Recent(senders.begin())

            def heard(records: Sequence[Record]) -> None:
                writer.write(records)
                on_progress(recent.add(records))

            with _stopping(senders) as stopped:  # to the end: a second Ctrl-C must not cost what the first one kept
                senders.records(heard)
                client = client_side(senders.tallies, wall_s=recent.last_s, interrupted=bool(stopped))
                side, missing = server.side(expected=client.attempts.get(OK))
                writer.finish(client, side, missing)


class _Server:
    """The server's side, or why there is none."""

    def __init__(self, plan: Plan, metrics: str) -> None:
        self._observer = Observer(plan.target, plan.model, connection=plan.connection, metrics=metrics)
        self._before: Look | None = None
        self._missing = ""
        try:
            self._before = asyncio.run(self._observer.look())
        except ClientError as error:
            self._missing = str(error)

    def side(self, *, expected: int | None) -> tuple[ServerSide | None, str]:
        if self._before is None:
            return None, self._missing
        try:
            after = asyncio.run(self._observer.settled_look(self._before, expected_requests=expected))
            return difference(self._before, after), ""
        except ClientError as error:
            return None, str(error)


class _Recent:
    """Live figures of the last seconds."""

    def __init__(self, begin_s: float) -> None:
        self._begin_s, self.last_s = begin_s, 0.0
        self._ended = self._failed = 0
        self._answers: deque[tuple[float, float]] = deque()

    def add(self, records: Sequence[Record]) -> Progress:
        now_s = time.monotonic() - self._begin_s
        self._ended += len(records)
        self._failed += sum(each.outcome != OK for each in records)
        self.last_s = max(self.last_s, *(each.ended_s for each in records))
        self._answers.extend((each.ended_s, each.ended_s - each.planned_s) for each in records if each.outcome == OK)
        while self._answers and self._answers[0][0] < now_s - RECENT_S:
            self._answers.popleft()
        p99_ms = 1000 * float(np.percentile([each for _, each in self._answers], 99)) if self._answers else None
        return Progress(now_s, self._ended, self._failed, len(self._answers) / min(RECENT_S, max(now_s, 1e-3)), p99_ms)


@contextmanager
def _stopping(senders: Senders) -> Iterator[list[int]]:
    """Ctrl-C says stop to the senders while the block runs; the list has an entry for each."""
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped  # signals are the main thread's
        return

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        if len(stopped) > 2:  # a sender that does not hear either is ended by force
            raise KeyboardInterrupt
        senders.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _machine() -> str:
    """The senders' machine in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} processors"
