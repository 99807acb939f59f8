"""One sender: requests leave when the plan says, whatever became of those before. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry

from alexnet_client import BatchOptions, Client
from alexnet_client.events import Event, outcome_of
from alexnet_client.metrics import ClientMetrics, MetricsServer, serve_metrics
from alexnet_load.arrivals import ClosedLoop, draw_sizes, parse_arrivals, schedule, share_of
from alexnet_load.results import Record
from alexnet_load.run import OK, Plan
from alexnet_load.tally import Tally
from alexnet_load.workload import open_workload

CANCELLED = "cancelled"
"""The outcome of a request that was not answered when the run was broken off."""
PATIENCE_S = 1.0
"""How long after its deadline the client may take to say that a request has timed out."""
SIZES_AHEAD = 10_000
"""Sizes drawn for a closed loop, which has no schedule; then they come again."""


class Sender:
    """Sends its share of a plan, and keeps a record of each request.

    Args:
        plan: what is to be sent, by all senders together.
        number: which sender this is, from 0.
    """

    def __init__(self, plan: Plan, *, number: int = 0) -> None:
        self._plan, self._number = plan, number
        self._shown = CollectorRegistry()
        self._metrics_server: MetricsServer | None = None
        self._client = Client(
            plan.target,
            model=plan.model,
            timeout_s=plan.timeout_s,
            batching=BatchOptions(**plan.batching),
            connection=plan.connection,
            listeners=[self._listen, *([ClientMetrics(self._shown)] if plan.metrics_port else [])],
        )
        self.tally = Tally()
        self._records: list[Record] = []
        self._begin_s = 0.0
        self._stopped = False
        self._sending: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def prepare(self) -> None:
        """Ask for the model, make the images and the schedule: all that takes time.

        Raises:
            ClientError: no server answers, the plan makes no sense, or its port is taken.
        """
        plan = self._plan
        if plan.metrics_port:
            self._metrics_server = serve_metrics(
                plan.metrics_port + self._number, address=plan.metrics_address, registry=self._shown
            )
        arrivals = parse_arrivals(plan.arrivals)
        signature = await self._client.signature()
        if isinstance(arrivals, ClosedLoop):
            self._callers = range(self._number, arrivals.callers, plan.senders)
            self._sizes = draw_sizes(plan.sizes, count=SIZES_AHEAD, seed=plan.seed)
        else:
            planned = schedule(arrivals, duration_s=plan.duration_s, seed=plan.seed, max_count=plan.max_count)
            sizes = (
                planned.sizes
                if planned.sizes is not None
                else draw_sizes(plan.sizes, count=len(planned.times_s), seed=plan.seed)
            )
            self._times = share_of(planned.times_s, self._number, plan.senders)
            self._sizes = share_of(sizes, self._number, plan.senders)
        largest = int(self._sizes.max(initial=1))
        self._workload = open_workload(plan.images, encoded=signature.encoded, largest=largest, seed=plan.seed)
        gc.collect()
        gc.freeze()  # a collection during the run looks at what the run makes, not at every module

    async def run(self, begin_s: float) -> None:
        """Send everything, and wait for the answers.

        Args:
            begin_s: the run's begin, on ``time.monotonic``'s clock, which all processes of a machine share.
        """
        self._begin_s, self.tally = begin_s, Tally()  # what was asked to prepare was no load
        cpu_s = time.process_time()
        try:
            self._sending = asyncio.create_task(self._closed_loop() if self._plan.closed_loop else self._open_loop())
            await asyncio.wait([self._sending])
            if not self._sending.cancelled():
                self._sending.result()  # a fault of its own is not to be taken for a short run
            if self._tasks:
                _, late = await asyncio.wait(self._tasks, timeout=self._plan.timeout_s + PATIENCE_S)
                for task in late:
                    task.cancel()  # given up, and recorded as such
                await asyncio.gather(*late, return_exceptions=True)
        finally:
            self.tally.cpu_s = time.process_time() - cpu_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        rest = [*self._tasks, *([] if self._sending is None else [self._sending])]
        for each in rest:
            each.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._client.close()
        if self._metrics_server is not None:
            self._metrics_server.close()
        gc.unfreeze()

    def stop(self) -> None:
        """Send nothing more; if this is called a second time, wait for nothing more either."""
        if self._stopped:
            for task in self._tasks:
                task.cancel()
        self._stopped = True
        if self._sending is not None and not self._plan.closed_loop:
            self._sending.cancel()

    def take(self) -> Sequence[Record]:
        """The records of what has ended since this was last called."""
        taken, self._records = self._records, []
        return taken

    async def _open_loop(self) -> None:
        for place, (planned_s, images) in enumerate(zip(self._times.tolist(), self._sizes.tolist(), strict=True)):
            left_s = self._begin_s + planned_s - time.monotonic()
            await asyncio.sleep(max(0.0, left_s))  # one that is late already lets others work as well
            self._start(planned_s, images, number=place * self._plan.senders + self._number)

    def _start(self, planned_s: float, images: int, *, number: int) -> None:
        task = asyncio.create_task(self._send(planned_s, images, number=number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _closed_loop(self) -> None:
        await asyncio.sleep(max(0.0, self._begin_s - time.monotonic()))
        for caller in self._callers:
            task = asyncio.create_task(self._call(caller))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.gather(*self._tasks)

    async def _call(self, number: int) -> None:
        """One caller of a closed loop: the next request when the last has ended."""
        callers = self._callers.stop
        while not self._stopped and (not self._plan.max_count or number < self._plan.max_count):
            now_s = self._now_s()
            if now_s >= self._plan.duration_s:
                return
            await self._send(now_s, int(self._sizes[number % SIZES_AHEAD]), number=number)
            number += callers
            await asyncio.sleep(0)  # a request that is refused at once must not keep the loop to itself

    async def _send(self, planned_s: float, images: int, *, number: int) -> None:
        batch, outcome, sent_s = self._workload.request(number, images), CANCELLED, math.nan
        late_s = self._now_s() - planned_s

        def left() -> None:
            nonlocal sent_s
            sent_s = self._now_s()

        try:
            await self._client.infer(batch, on_sent=left)
            outcome = OK
        except Exception as error:  # noqa: BLE001  a load test outlives whatever goes wrong, and tells of it
            outcome = outcome_of(error)
            self.tally.errors.setdefault(outcome, str(error))
        finally:
            ended_s = self._now_s()
            sent_s = ended_s if math.isnan(sent_s) else sent_s
            self._records.append(Record(planned_s, sent_s, ended_s, late_s, images, outcome))

    def _now_s(self) -> float:
        return time.monotonic() - self._begin_s

    def _listen(self, event: Event) -> None:
        self.tally(event)
