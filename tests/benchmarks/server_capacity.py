"""Benchmark of one server for `deploy/CAPACITY.md`: throughput, latency by load, and CPU time per image of Triton itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import grpc.aio
import numpy as np
from results import Result
from servers import RunningServer, running
from tritonclient.grpc import service_pb2, service_pb2_grpc
from workloads import TIMEOUT_S, Send, closed_loop, open_loop, prepared_requests, random_images

from alexnet_client import Client
from alexnet_client.admin import admin_metadata

LOADS = (0.3, 0.4, 0.5, 0.6, 0.8)
"""As shares of the throughput."""
SATURATED = 128
"""Single-image requests in flight with which every batch is full."""
UNITS = {"throughput": "images/s", "mean": "images", "triton": "us"}


async def bench_capacity(
    repositories: Mapping[str, Path], *, rounds: int = 5, seconds: float = 3.0
) -> AsyncIterator[Result]:
    """Measure the INT8 model. The names of the results are the inputs in `deploy/capacity.json`."""
    values, images = defaultdict[str, list[float]](list), random_images()
    with running(repositories["int8"]) as server:
        async with (
            prepared_requests(server.target, images) as send_one,
            Client(server.target, timeout_s=TIMEOUT_S) as client,
        ):
            await closed_loop(send_one, in_flight=SATURATED, seconds=seconds / 2)  # warm-up
            for seed in range(rounds):
                for name, value in (await _round(server, send_one, seconds, seed)).items():
                    values[name].append(value)
                for name, send, size in (("1", send_one, 1), ("32", lambda _: client.infer(images[:32]), 32)):
                    before_s = _triton_cpu_s(server)
                    run = await closed_loop(send, images=size, in_flight=3, seconds=seconds)
                    cpu_s = (_triton_cpu_s(server) - before_s) / (size * len(run.latencies_s))
                    values[f"triton_{name}_us"].append(1e6 * cpu_s)
    for name, each in values.items():
        details = name.replace("_at_", " at a load of % ").replace("_", " ")
        yield Result.of(f"capacity: {name}", each, unit=UNITS.get(name.split("_")[0], "ms"), details=details)


async def _round(server: RunningServer, send: Send, seconds: float, seed: int) -> dict[str, float]:
    throughput = (await closed_loop(send, in_flight=SATURATED, seconds=seconds)).throughput
    values = {"throughput": throughput}
    for load in LOADS:
        before = await _executions(server.target)
        run = await open_loop(send, rate=load * throughput, seconds=3 * seconds, seed=seed)
        images, batches = np.subtract(await _executions(server.target), before)
        found = {"p50_ms": run.p50_ms, "p99_ms": run.p99_ms, "mean_batch": images / batches}
        values |= {f"{name}_at_{100 * load:.0f}": float(value) for name, value in found.items()}
    return values


def _triton_cpu_s(server: RunningServer) -> float:
    """CPU time of Triton's own process: messages and queues. Inference runs in a backend process."""
    times = server.triton().cpu_times()
    return float(times.user + times.system)


async def _executions(target: str) -> tuple[int, int]:
    """Images and batches that Triton has executed."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelStatisticsRequest(name="alexnet")
        (model,) = (await stub.ModelStatistics(request, metadata=admin_metadata(target))).model_stats
    return model.inference_count, model.execution_count
