"""What Triton counted of a model between two looks: its statistics, or its metrics where those are closed to this user."""

from __future__ import annotations

import asyncio
import http.client
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from alexnet_client.admin import admin_metadata
from alexnet_client.connection import Connection
from alexnet_client.errors import BadInput, ServerFault, Unavailable
from alexnet_client.targets import parse_targets
from alexnet_client.transport import error_from_status
from alexnet_load.run import ServerSide

TIMEOUT_S = 5.0
SETTLE_S = 0.05
"""Triton counts a request after it has answered it."""
NS, US = 1e9, 1e6
PHASES = {"queue_s": "queue", "input_s": "compute_input", "infer_s": "compute_infer", "output_s": "compute_output"}


@dataclass(frozen=True)
class Look:
    """Triton's counters at one moment, over all servers; names are those of ``ServerSide``.

    Attributes:
        at_s: when, on ``time.monotonic``'s clock.
        servers: how many were asked.
        instances: of the models that compute.
        counts: sums that only grow, unless a server was started again.
        batches: images in an execution -> executions.
    """

    at_s: float
    servers: int
    instances: int
    counts: dict[str, float]
    batches: dict[int, int] = field(default_factory=dict)


class Observer:
    """Looks at the servers of a plan.

    Args:
        target: as ``alexnet_client.Client`` takes it.
        model: its name; of an ensemble the requests are its own, what is computed is that of its steps.
        connection: how its servers are reached.
        metrics: host:port of Triton's metrics; its statistics are asked if this is empty.
    """

    def __init__(self, target: str, model: str, *, connection: Connection | None = None, metrics: str = "") -> None:
        self._targets, self._model, self._metrics = parse_targets(target), model, metrics
        self._connection = connection or Connection()

    async def look(self) -> Look:
        """The counters now.

        Raises:
            BadInput: there is no administration key, or no such model.
            ClientError: a server does not answer.
        """
        if self._metrics:
            return await asyncio.to_thread(_metrics_look, self._metrics, self._model)
        addresses = await self._targets.resolve()
        found = await asyncio.gather(
            *(_statistics_look(address, self._model, self._connection) for address in addresses)
        )
        return _together(found)

    async def settled_look(self, before: Look, *, expected_requests: int | None, timeout_s: float = 2.0) -> Look:
        """The counters once they stand still: the same twice, and with at least as many successes as expected.

        Args:
            before: the look to count from.
            expected_requests: successes since; None if nobody knows.
            timeout_s: the last look after so long is taken as it is.

        Raises:
            ClientError: a server does not answer.
        """
        until_s = time.monotonic() + timeout_s
        found = await self.look()
        while time.monotonic() < until_s:
            await asyncio.sleep(SETTLE_S)
            last, found = found, await self.look()
            grown = found.counts["success"] - before.counts["success"]
            if last.counts == found.counts and (expected_requests is None or grown >= expected_requests):
                break
        return found


def difference(before: Look, after: Look) -> ServerSide:
    """What was counted between two looks.

    Raises:
        ServerFault: a counter went down: a server was started again meanwhile, and what it had counted is lost.
    """
    grown = {name: value - before.counts.get(name, 0.0) for name, value in after.counts.items()}
    batches = {size: count - before.batches.get(size, 0) for size, count in after.batches.items()}
    if min([*grown.values(), *batches.values()], default=0) < 0:
        raise ServerFault("a server was started again during the run, so its counters do not span it")
    seconds = ("queue_s", "input_s", "infer_s", "output_s", "request_s", "busy_s")
    return ServerSide(
        servers=after.servers,
        instances=after.instances,
        batches={size: count for size, count in batches.items() if count},
        wall_s=after.at_s - before.at_s,
        success=int(grown["success"]),
        failure=int(grown["failure"]),
        inferences=int(grown["inferences"]),
        executions=int(grown["executions"]),
        rejected=int(grown["rejected"]) if "rejected" in grown else None,
        **{name: grown[name] for name in seconds},
    )


def _together(looks: list[Look]) -> Look:
    counts: Counter[str] = Counter()
    batches: Counter[int] = Counter()
    for each in looks:
        counts.update(each.counts)
        batches.update(each.batches)
    return Look(looks[0].at_s, len(looks), sum(each.instances for each in looks), dict(counts), dict(batches))


async def _statistics_look(address: str, model: str, connection: Connection) -> Look:
    metadata = admin_metadata(address)
    async with connection.open(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        async def config_of(name: str) -> model_config_pb2.ModelConfig:
            request = service_pb2.ModelConfigRequest(name=name)
            return (await stub.ModelConfig(request, timeout=TIMEOUT_S, metadata=metadata)).config

        async def statistics_of(name: str) -> list[service_pb2.ModelStatistics]:
            request = service_pb2.ModelStatisticsRequest(name=name)
            return list((await stub.ModelStatistics(request, timeout=TIMEOUT_S, metadata=metadata)).model_stats)

        try:
            config = await config_of(model)
            steps = list(dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step)) or [model]
            computing = [await config_of(name) for name in steps]
            own = await statistics_of(model)
            at_s = time.monotonic()
            computed = own if steps == [model] else [each for name in steps for each in await statistics_of(name)]
        except grpc.aio.AioRpcError as error:
            raise error_from_status(error.code(), error.details() or "", address, TIMEOUT_S) from None
    instances = sum(group.count for each in computing for group in each.instance_group)
    return _read_statistics(own, computed, at_s=at_s, instances=instances)


def _read_statistics(own: list[Any], computed: list[Any], *, at_s: float, instances: int) -> Look:
    """Requests from the model's ``own`` statistics, what was computed from those of the models that compute."""
    counts: dict[str, float] = {
        "success": sum(each.inference_stats.success.count for each in own),
        "failure": sum(each.inference_stats.fail.count for each in own),
        "inferences": sum(each.inference_count for each in own),
        "request_s": sum(each.inference_stats.success.ns for each in own) / NS,
        "executions": sum(each.execution_count for each in computed),
        "busy_s": 0.0,
    }
    for name, phase in PHASES.items():
        counts[name] = sum(getattr(each.inference_stats, phase).ns for each in computed) / NS
    batches: Counter[int] = Counter()
    for batch in (batch for each in computed for batch in each.batch_stats):
        batches[batch.batch_size] += batch.compute_infer.count
        counts["busy_s"] += sum(getattr(batch, phase).ns for phase in list(PHASES.values())[1:]) / NS
    return Look(at_s, 1, max(1, instances), counts, dict(batches))


def _metrics_look(address: str, model: str) -> Look:
    """Metrics have no sizes of executions and no busy time; the mean batch still follows from inferences and executions."""
    url = f"http://{address}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"{url}: no metrics there ({error}); check the address, or leave it out") from None
    samples = [each for family in families for each in family.samples if each.labels.get("model") == model]
    if not samples:
        raise BadInput(f"{url}: nothing is said of a model {model} there")
    names = {
        "success": ("nv_inference_request_success_total", 1.0),
        "failure": ("nv_inference_request_failure_total", 1.0),
        "inferences": ("nv_inference_count_total", 1.0),
        "executions": ("nv_inference_exec_count_total", 1.0),
        "request_s": ("nv_inference_request_duration_us_total", US),
        "queue_s": ("nv_inference_queue_duration_us_total", US),
        "input_s": ("nv_inference_compute_input_duration_us_total", US),
        "infer_s": ("nv_inference_compute_infer_duration_us_total", US),
        "output_s": ("nv_inference_compute_output_duration_us_total", US),
    }
    counts = {
        ours: sum(each.value for each in samples if each.name in (theirs, theirs.removesuffix("_total"))) / scale
        for ours, (theirs, scale) in names.items()
    }
    return Look(time.monotonic(), 1, 1, {**counts, "busy_s": 0.0})
