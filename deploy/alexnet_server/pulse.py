"""Signs of life of a running server: what each model executes, and blank requests to those that nobody asks anything.

An open port, and even Triton's own "ready", say less: 2.51 stays "ready" with a dead backend.
"""

from __future__ import annotations

import asyncio
import http.client
import re
import time
import urllib.request
from collections.abc import Mapping, Sequence

from alexnet_client.deadline import Deadline
from alexnet_client.errors import ClientError, DeadlineExceeded, Overloaded, Unavailable
from alexnet_client.transport import Transport
from alexnet_server.command import ServerOptions
from alexnet_server.ready import probe

READ_EVERY_S = 1.0
TIMEOUT_S = 2.0
FAULTS_IN_A_ROW = 2
_SAMPLE = re.compile(r'^nv_inference_(exec_count|pending_request_count){model="([^"]*)".*} (\S+)$', re.MULTILINE)


class Pulse:
    """Gathers them in the background; ``waiting`` and ``faults`` are the latest.

    Args:
        options: how it is served.
        models: names of those that execute something; an ensemble waits for its steps, and they are looked at.
        probe_every_s: a model that has executed nothing for so long is sent a blank request; 0 for never.
    """

    def __init__(self, options: ServerOptions, models: Sequence[str], probe_every_s: float) -> None:
        self._options, self._models, self._probe_every_s = options, models, probe_every_s
        self._executed: dict[str, float] = {}
        self._moved_s = dict.fromkeys(models, time.monotonic())
        self._queued: set[str] = set()
        self._unanswered: set[str] = set()
        self._failed: dict[str, list[str]] = {}

    @property
    def waiting(self) -> set[str]:
        """Models that have requests and execute nothing."""
        return self._queued | self._unanswered

    @property
    def faults(self) -> dict[str, str]:
        """What models said that failed several blank requests in a row."""
        return {model: said[-1] for model, said in self._failed.items() if len(said) >= FAULTS_IN_A_ROW}

    async def run(self) -> None:
        """Gather until cancelled."""
        transport = Transport(self._options.target, self._options.connection)
        try:
            while True:
                self._read(await asyncio.to_thread(scrape, self._options))
                for model in self._models:
                    idle_s = time.monotonic() - self._moved_s[model]
                    if self._probe_every_s and idle_s >= self._probe_every_s:
                        await self._probe(transport, model)
                await asyncio.sleep(READ_EVERY_S)
        finally:
            await transport.close()

    def _read(self, counted: Mapping[str, Mapping[str, float]]) -> None:
        self._queued = set()
        for model in self._moved_s.keys() & counted.get("exec_count", {}).keys():
            executed = counted["exec_count"][model]
            moved = self._executed.get(model) != executed
            self._executed[model] = executed
            if moved:
                self._moved_s[model] = time.monotonic()
                self._unanswered.discard(model)
            elif counted.get("pending_request_count", {}).get(model):
                self._queued.add(model)

    async def _probe(self, transport: Transport, model: str) -> None:
        self._unanswered.add(model)
        try:
            await probe(transport, model, Deadline.after(TIMEOUT_S))
        except (DeadlineExceeded, Unavailable, Overloaded):
            return  # what is executed in the meantime tells a busy model from a dead one
        except ClientError as error:
            self._failed.setdefault(model, []).append(str(error))
            return
        self._unanswered.discard(model)
        self._failed.pop(model, None)
        self._moved_s[model] = time.monotonic()


def scrape(options: ServerOptions) -> dict[str, dict[str, float]]:
    """Executions so far and requests queued now, by model; empty if Triton does not say."""
    url = f"http://{options.address}:{options.metrics_port}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            text = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return {}
    found: dict[str, dict[str, float]] = {}
    for metric, model, value in _SAMPLE.findall(text):
        found.setdefault(metric, {}).setdefault(model, 0.0)
        found[metric][model] += float(value)
    return found
