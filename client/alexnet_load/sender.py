"""One sender: sends each request at its planned time, independent of earlier answers. Uses one event loop."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Coroutine, Sequence
from typing import Self

from prometheus_client import CollectorRegistry

from alexnet_client import BatchOptions, Client
from alexnet_client.events import Event, outcome_of
from alexnet_client.metrics import ClientMetrics, MetricsServer, serve_metrics
from alexnet_load.arrivals import ClosedLoop, draw_sizes, parse_arrivals, schedule
from alexnet_load.client_statistics import count_event
from alexnet_load.run import OK, ClientStatistics, Plan
from alexnet_load.run_file import Record
from alexnet_load.workload import open_workload

CANCELLED = "cancelled"
"""Outcome of a request without an answer when the run was stopped."""
CLOSED_LOOP_SIZES = 10_000
"""Number of request sizes drawn for a closed loop, which has no schedule; they are used repeatedly."""


class Sender:
    """Sends its share of a plan and records each request.

    Args:
        plan: what all senders together send.
        number: number of this sender, from 0.
        grace_s: how long after the deadline of a request its outcome may arrive, seconds.
    """

    def __init__(self, plan: Plan, *, number: int = 0, grace_s: float = 1.0) -> None:
        self._plan, self._number, self._grace_s = plan, number, grace_s
        self._registry = CollectorRegistry()
        self._metrics_server: MetricsServer | None = None
        self._client = Client(
            plan.target,
            model=plan.model,
            timeout_s=plan.timeout_s,
            batching=BatchOptions(**plan.batching),
            connection=plan.connection,
            listeners=[self._listen, *([ClientMetrics(self._registry)] if plan.metrics_port else [])],
        )
        self.statistics = ClientStatistics()
        self._records: list[Record] = []
        self._start_s = 0.0
        self._stopped = False
        self._sending: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def prepare(self) -> None:
        """Query the model, load the images and compute the schedule: everything that takes time.

        Raises:
            ClientError: no server is reachable, the plan is invalid, or the metrics port is in use.
        """
        plan = self._plan
        if plan.metrics_port:
            port = plan.metrics_port + self._number
            self._metrics_server = serve_metrics(port, address=plan.metrics_address, registry=self._registry)
        arrivals = parse_arrivals(plan.arrivals)
        signature = await self._client.signature()
        if isinstance(arrivals, ClosedLoop):
            self._callers = range(self._number, arrivals.callers, plan.senders)
            self._sizes = draw_sizes(plan.sizes, count=CLOSED_LOOP_SIZES, seed=plan.seed)
        else:
            planned = schedule(arrivals, duration_s=plan.duration_s, seed=plan.seed)
            sizes = planned.sizes
            if sizes is None:
                sizes = draw_sizes(plan.sizes, count=len(planned.times_s), seed=plan.seed)
            self._times = planned.times_s[self._number :: plan.senders]
            self._sizes = sizes[self._number :: plan.senders]
        largest = int(self._sizes.max(initial=1))
        self._workload = open_workload(plan.images, encoded=signature.encoded, largest=largest, seed=plan.seed)
        gc.collect()
        gc.freeze()  # collections during the run then skip all objects created so far

    async def run(self, start_s: float) -> None:
        """Send all requests and wait for their answers.

        Args:
            start_s: start of the run on the clock of ``time.monotonic``, which all processes of a machine share.
        """
        self._start_s, self.statistics = start_s, ClientStatistics()  # excludes the requests of prepare()
        cpu_s = time.process_time()
        try:
            self._sending = asyncio.create_task(self._closed_loop() if self._plan.closed_loop else self._open_loop())
            await asyncio.wait([self._sending])
            if not self._sending.cancelled():
                self._sending.result()  # raises an error of the sender itself
            if self._tasks:
                _, late = await asyncio.wait(self._tasks, timeout=self._plan.timeout_s + self._grace_s)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
        finally:
            self.statistics.cpu_s = (time.process_time() - cpu_s,)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._tasks, *([] if self._sending is None else [self._sending])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()
        if self._metrics_server is not None:
            self._metrics_server.close()
        gc.unfreeze()

    def stop(self) -> None:
        """Stop sending; the second call also cancels all open requests."""
        if self._stopped:
            for task in self._tasks:
                task.cancel()
        self._stopped = True
        if self._sending is not None and not self._plan.closed_loop:
            self._sending.cancel()

    def take_records(self) -> Sequence[Record]:
        """Return the requests that have ended since the last call."""
        taken, self._records = self._records, []
        return taken

    async def _open_loop(self) -> None:
        for place, (planned_s, images) in enumerate(zip(self._times.tolist(), self._sizes.tolist(), strict=True)):
            await asyncio.sleep(max(0.0, planned_s - self._now_s()))  # sleep(0) lets other tasks run when it is late
            self._start_task(self._send(planned_s, images, number=place * self._plan.senders + self._number))

    async def _closed_loop(self) -> None:
        await asyncio.sleep(max(0.0, -self._now_s()))
        for caller in self._callers:
            self._start_task(self._call_repeatedly(caller))
        await asyncio.gather(*self._tasks)

    def _start_task(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call_repeatedly(self, number: int) -> None:
        """One caller of a closed loop; ``number`` is the number of its first request."""
        callers = self._callers.stop
        while not self._stopped and (now_s := self._now_s()) < self._plan.duration_s:
            await self._send(now_s, int(self._sizes[number % CLOSED_LOOP_SIZES]), number=number)
            number += callers
            await asyncio.sleep(0)  # a request that fails immediately must not block the event loop

    async def _send(self, planned_s: float, images: int, *, number: int) -> None:
        pixels, outcome, sent_s = self._workload.request(number, images), CANCELLED, math.nan
        lag_s = self._now_s() - planned_s

        def on_sent() -> None:
            nonlocal sent_s
            sent_s = self._now_s()

        try:
            await self._client.infer(pixels, on_sent=on_sent)
            outcome = OK
        except Exception as error:  # noqa: BLE001  every error is a result of the load test
            outcome = outcome_of(error)
            self.statistics.errors.setdefault(outcome, str(error))
        finally:
            ended_s = self._now_s()
            sent_s = ended_s if math.isnan(sent_s) else sent_s
            self._records.append(Record(planned_s, sent_s, ended_s, lag_s, images, outcome))

    def _now_s(self) -> float:
        return time.monotonic() - self._start_s

    def _listen(self, event: Event) -> None:
        count_event(self.statistics, event)
