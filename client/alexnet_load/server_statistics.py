"""Triton's counters of a model before and after a run: its statistics, or its metrics if the statistics are not accessible."""

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
from alexnet_client.errors import BadInput, ClientError, ServerFault, Unavailable
from alexnet_client.resolver import parse_targets
from alexnet_client.transport import error_from_status
from alexnet_load.run import ServerStatistics

TIMEOUT_S = 5.0
SETTLE_INTERVAL_S, SETTLE_TIMEOUT_S = 0.05, 2.0
"""Triton counts a request after it has sent the answer."""
NS, US = 1e9, 1e6
PHASES = {"queue_s": "queue", "input_s": "compute_input", "infer_s": "compute_infer", "output_s": "compute_output"}
METRICS = {
    "success": ("nv_inference_request_success", 1.0),
    "failure": ("nv_inference_request_failure", 1.0),
    "inferences": ("nv_inference_count", 1.0),
    "executions": ("nv_inference_exec_count", 1.0),
    "request_s": ("nv_inference_request_duration_us", US),
    "queue_s": ("nv_inference_queue_duration_us", US),
    "input_s": ("nv_inference_compute_input_duration_us", US),
    "infer_s": ("nv_inference_compute_infer_duration_us", US),
    "output_s": ("nv_inference_compute_output_duration_us", US),
}
"""Metric and its unit for each counter; prometheus_client adds "_total" to the names of samples."""


@dataclass(frozen=True)
class Snapshot:
    """Triton's counters at one time, summed over all servers; the names are those of ``ServerStatistics``.

    Attributes:
        at_s: time on the clock of ``time.monotonic``.
        instances: instances of the models that compute.
        counts: counters; they decrease only when a server restarts.
        batches: images in an execution -> number of executions of this size.
    """

    at_s: float
    instances: int
    counts: dict[str, float]
    batches: dict[int, int] = field(default_factory=dict)


class StatisticsRecorder:
    """Reads the counters of the servers before and after a run.

    Args:
        target: server addresses in the format of ``alexnet_client.Client``.
        model: name of the model. If it is an ensemble, the times and batches of computation are those of its steps.
        connection: connection options.
        metrics: host:port of Triton's metrics; empty to use its statistics.
    """

    def __init__(self, target: str, model: str, *, connection: Connection | None = None, metrics: str = "") -> None:
        self._targets, self._model, self._metrics = parse_targets(target), model, metrics
        self._connection = connection or Connection()
        self._before: Snapshot | None = None
        self._missing = ""

    def start(self) -> None:
        """Read the counters before the run."""
        try:
            self._before = asyncio.run(self.read())
        except ClientError as error:
            self._missing = str(error)

    def finish(self, *, expected_requests: int | None) -> tuple[ServerStatistics | None, str]:
        """Read the counters after the run; return their increase, or None and the reason why it is missing.

        Args:
            expected_requests: number of successful requests since ``start``; None if it is not known.
        """
        if self._before is None:
            return None, self._missing
        try:
            after = asyncio.run(self.read_settled(self._before, expected_requests=expected_requests))
            return difference(self._before, after), ""
        except ClientError as error:
            return None, str(error)

    async def read(self) -> Snapshot:
        """Read the counters now.

        Raises:
            BadInput: the administration key is missing, or the model does not exist.
            ClientError: a server is not reachable.
        """
        if self._metrics:
            return await asyncio.to_thread(_read_metrics, self._metrics, self._model)
        addresses = await self._targets.resolve()
        return _sum(
            await asyncio.gather(*(_read_statistics(each, self._model, self._connection) for each in addresses))
        )

    async def read_settled(self, before: Snapshot, *, expected_requests: int | None) -> Snapshot:
        """Read the counters until they are equal twice and include the expected requests, or until ``SETTLE_TIMEOUT_S``.

        Raises:
            ClientError: a server is not reachable.
        """
        end_s = time.monotonic() + SETTLE_TIMEOUT_S
        latest = await self.read()
        while time.monotonic() < end_s:
            await asyncio.sleep(SETTLE_INTERVAL_S)
            previous, latest = latest, await self.read()
            increase = latest.counts["success"] - before.counts["success"]
            if previous.counts == latest.counts and (expected_requests is None or increase >= expected_requests):
                break
        return latest


def difference(before: Snapshot, after: Snapshot) -> ServerStatistics:
    """Return the increase of the counters between two snapshots.

    Raises:
        ServerFault: a counter decreased, because a server restarted and lost its counters.
    """
    counts = {name: value - before.counts.get(name, 0.0) for name, value in after.counts.items()}
    batches = {size: count - before.batches.get(size, 0) for size, count in after.batches.items()}
    if min([*counts.values(), *batches.values()], default=0) < 0:
        raise ServerFault("a server restarted during the run, so its counters do not cover the run")
    seconds = ("queue_s", "input_s", "infer_s", "output_s", "request_s", "busy_s")
    return ServerStatistics(
        instances=after.instances,
        batches={size: count for size, count in batches.items() if count},
        wall_s=after.at_s - before.at_s,
        success=int(counts["success"]),
        failure=int(counts["failure"]),
        inferences=int(counts["inferences"]),
        executions=int(counts["executions"]),
        **{name: counts[name] for name in seconds},
    )


def _sum(snapshots: list[Snapshot]) -> Snapshot:
    counts: Counter[str] = Counter()
    batches: Counter[int] = Counter()
    for each in snapshots:
        counts.update(each.counts)
        batches.update(each.batches)
    instances = sum(each.instances for each in snapshots)
    return Snapshot(snapshots[0].at_s, instances, dict(counts), dict(batches))


async def _read_statistics(address: str, model: str, connection: Connection) -> Snapshot:
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
    return _snapshot(own, computed, at_s=at_s, instances=instances)


def _snapshot(own: list[Any], computed: list[Any], *, at_s: float, instances: int) -> Snapshot:
    """Requests are those of the model itself (``own``), executions those of the models that compute (``computed``)."""
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
    return Snapshot(at_s, max(1, instances), counts, dict(batches))


def _read_metrics(address: str, model: str) -> Snapshot:
    """Metrics contain neither batch sizes nor busy time; inferences and executions still give the mean batch size."""
    url = f"http://{address}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"{url}: cannot be read ({error}); check --metrics, or omit it") from None
    samples = [each for family in families for each in family.samples if each.labels.get("model") == model]
    if not samples:
        raise BadInput(f"{url}: contains no metrics of model {model}")
    counts = {
        counter: sum(each.value for each in samples if each.name.removesuffix("_total") == metric) / scale
        for counter, (metric, scale) in METRICS.items()
    }
    return Snapshot(time.monotonic(), 1, {**counts, "busy_s": 0.0})
