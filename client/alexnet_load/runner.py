"""Run a load test: start the senders, read the server statistics before and after, write every record, handle Ctrl-C."""

from __future__ import annotations

import signal
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

from alexnet_client.cpus import cpu_name, usable_cpus
from alexnet_load.client_statistics import merge_statistics
from alexnet_load.run import OK, Plan, Run
from alexnet_load.run_file import Record, RunWriter, read_run
from alexnet_load.sender_processes import SenderProcesses
from alexnet_load.server_statistics import StatisticsRecorder

RECENT_S = 2.0
"""The displayed rate and p99 are those of the last seconds."""


@dataclass(frozen=True)
class Progress:
    """State of a run in progress.

    Attributes:
        elapsed_s: time since the start, seconds.
        ended: requests that have ended.
        failed: those of them that failed.
        rate: answers per second in the last ``RECENT_S``.
        p99_ms: 99th percentile of their response time, milliseconds; None without answers.
    """

    elapsed_s: float
    ended: int
    failed: int
    rate: float
    p99_ms: float | None


OnProgress = Callable[[Progress], None]


def run_plan(
    plan: Plan, *, path: Path | None = None, metrics: str = "", on_progress: OnProgress = lambda progress: None
) -> Run:
    """Run a load test; only the main thread can do so, because it handles Ctrl-C.

    Ctrl-C stops sending, and the result covers the requests sent until then. A second Ctrl-C cancels the open requests, a
    third one raises ``KeyboardInterrupt``.

    Args:
        plan: what is sent.
        path: file for the run, ``*.jsonl.gz``; None for none.
        metrics: host:port of Triton's metrics, for servers whose statistics this user cannot read.
        on_progress: called several times per second.

    Raises:
        ClientError: no server is reachable, the plan is invalid, the disk is full, or a sender process died.
    """
    with TemporaryDirectory(prefix="alexnet-load-") as scratch:
        file = path or Path(scratch, "run.jsonl.gz")
        _run(plan, file, metrics, on_progress)
        return read_run(file)


def _run(plan: Plan, path: Path, metrics: str, on_progress: OnProgress) -> None:
    with SenderProcesses(plan) as senders:
        senders.wait_ready()
        recorder = StatisticsRecorder(plan.target, plan.model, connection=plan.connection, metrics=metrics)
        recorder.start()
        started = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
        machine = f"{cpu_name()}, {usable_cpus()} CPUs"
        with RunWriter(path, plan, machine=machine, started=started, version=version("alexnet-client")) as writer:
            recent = _RecentRequests(senders.start())

            def on_records(records: Sequence[Record]) -> None:
                writer.write(records)
                on_progress(recent.add(records))

            # until the file is complete, so that Ctrl-C never loses the result
            with _sigint_stops(senders) as interrupts:
                senders.receive_records(on_records)
                client = merge_statistics(senders.statistics, wall_s=recent.last_s, interrupted=bool(interrupts))
                server, missing = recorder.finish(expected_requests=client.attempts.get(OK))
                writer.finish(client, server, missing)


class _RecentRequests:
    """Progress of the last seconds."""

    def __init__(self, start_s: float) -> None:
        self._start_s, self.last_s = start_s, 0.0
        self._ended = self._failed = 0
        self._answers: deque[tuple[float, float]] = deque()

    def add(self, records: Sequence[Record]) -> Progress:
        now_s = time.monotonic() - self._start_s
        self._ended += len(records)
        self._failed += sum(each.outcome != OK for each in records)
        self.last_s = max(self.last_s, *(each.ended_s for each in records))
        self._answers.extend((each.ended_s, each.ended_s - each.planned_s) for each in records if each.outcome == OK)
        while self._answers and self._answers[0][0] < now_s - RECENT_S:
            self._answers.popleft()
        p99_ms = 1000 * float(np.percentile([each for _, each in self._answers], 99)) if self._answers else None
        return Progress(now_s, self._ended, self._failed, len(self._answers) / min(RECENT_S, max(now_s, 1e-3)), p99_ms)


@contextmanager
def _sigint_stops(senders: SenderProcesses) -> Iterator[list[int]]:
    """Ctrl-C stops the senders while the block runs; the list receives one entry per Ctrl-C."""
    interrupts: list[int] = []

    def on_sigint(number: int, _: object) -> None:
        interrupts.append(number)
        if len(interrupts) > 2:  # a sender may not react to stop()
            raise KeyboardInterrupt
        senders.stop()

    before = signal.signal(signal.SIGINT, on_sigint)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
