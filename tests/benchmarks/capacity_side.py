"""Capacity on paper against the real server: what batches and messages cost, and whether the simulation foretells latencies.

All sides are taken in turns: in each round the costs are measured anew, and the loads of that round are foretold from them.
"""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc.aio
import numpy as np
import psutil
from results import Result
from servers import RunningServer, published, running, synchronous
from tritonclient.grpc import service_pb2, service_pb2_grpc
from workloads import TIMEOUT_S, Measurement, Send, closed_loop, open_loop, prepared_requests, shared_memory_requests

from alexnet_client import Client
from alexnet_client.admin import admin_metadata
from alexnet_server.capacity.costs import line_of
from alexnet_server.capacity.fleet import Fleet, Outcome, Server
from alexnet_server.capacity.measured import COSTS, NOISE
from alexnet_server.capacity.simulate import poisson_s, simulate

ROUNDS, SECONDS, OPEN_S = 5, 1.5, 8.0
IN_FLIGHT = (2, 4, 8, 16, 32, 64)
"""Closed loops of which the line through the times of batches is made."""
FULL = 128
"""In flight, so that every batch is full."""
LOADS = (0.3, 0.6, 0.8)
"""Shares of the measured capacity."""
QUANTILES = 20
Batches = dict[int, tuple[int, float]]
"""Executions, and their seconds in all, by their images."""


@dataclass
class Found:
    """What the rounds found: inputs by their names, foretold / measured by load and figure, and the figures themselves."""

    costs: dict[str, list[float]] = field(default_factory=dict)
    noise: list[float] = field(default_factory=list)
    ratios: dict[tuple[float, str], list[float]] = field(default_factory=dict)
    figures: dict[tuple[float, str], str] = field(default_factory=dict)


def bench_capacity(models: dict[str, bytes], labels: Sequence[str], *, rounds: int = ROUNDS) -> Iterator[Result]:
    """The rows, with the int8 network."""
    images = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3)).astype(np.uint8)
    with TemporaryDirectory(prefix="alexnet-capacity-") as scratch:
        yield from synchronous(rows(published(Path(scratch), "int8", models["int8"], labels), images, rounds))


async def rows(repository: Path, images: np.ndarray, rounds: int = ROUNDS) -> AsyncIterator[Result]:
    """What things cost, then what was foretold from it, as shares of what was measured."""
    found = Found()
    with running(repository) as server:
        async with (
            prepared_requests(server.target, images) as ask,
            Client(server.target, timeout_s=TIMEOUT_S) as client,
        ):
            await closed_loop(ask, images=1, in_flight=FULL, seconds=SECONDS)  # warms up
            for number in range(rounds):
                await one_round(found, server, ask, number)
                await messages(found, server, client, images)
    for name, sides in COSTS.items():
        yield Result.of(sides, found.costs[name], unit="us")
    middle = np.quantile(found.noise, (np.arange(QUANTILES) + 0.5) / QUANTILES)
    listed = " ".join(f"{each:.3f}" for each in middle)
    yield Result.of(NOISE, found.noise, unit="of its fit", details=listed)
    for (load, what), ratios in found.ratios.items():
        name = f"capacity: {what} at {100 * load:.0f} % of capacity, foretold / measured"
        yield Result.of(name, ratios, unit="of it", details=found.figures[load, what])
    for what, goal in (("p50", 1.25), ("p99", 1.5), ("mean batch", 1.25)):
        by_load = [found.ratios[load, what] for load in LOADS]
        worst = [max(max(each, 1 / each) for each in of_round) for of_round in zip(*by_load, strict=True)]
        name = f"capacity: {what}, by which factor the simulation is wrong at the worst load"
        yield Result.of(name, worst, unit="times", goal=goal, at_most=True)


async def one_round(found: Found, server: RunningServer, ask: Send, seed: int) -> None:
    """Costs, capacity, and the three loads, each against what the simulation says of the very same arrivals."""
    before, cpu_s = await batches(server.target), triton_s(server)
    lone = await closed_loop(ask, images=1, in_flight=1, seconds=SECONDS)
    alone = grown(before, await batches(server.target))
    answered = len(lone.latencies_s)
    for in_flight in IN_FLIGHT:
        answered += len((await closed_loop(ask, images=1, in_flight=in_flight, seconds=SECONDS)).latencies_s)
    fixed_s, per_image_s = line_of(grown(before, await batches(server.target)))
    count, seconds = alone[1]
    outside_s = max(0.0, statistics.median(lone.latencies_s) - seconds / count)
    alone_s = [max(0.0, each - outside_s) for each in lone.latencies_s]
    noise = [each / statistics.mean(alone_s) for each in alone_s]
    found.noise += noise
    costs = {"batch_fixed_us": fixed_s, "batch_per_image_us": per_image_s, "outside_us": outside_s}
    costs["triton_1_us"] = (triton_s(server) - cpu_s) / answered
    for name, cost_s in costs.items():
        found.costs.setdefault(name, []).append(1e6 * cost_s)
    replica = Server(fixed_s, per_image_s, outside_s=outside_s, noise=tuple(noise))
    capacity = (await closed_loop(ask, images=1, in_flight=FULL, seconds=2 * SECONDS)).throughput
    compare(found, 1.0, "images a second", replica.capacity, capacity)
    for load in LOADS:
        rate, before = load * capacity, await batches(server.target)
        run = await open_loop(ask, rate=rate, seconds=OPEN_S, seed=seed)
        ran = grown(before, await batches(server.target))
        # The same dice as open_loop's: the arrivals are those that were sent, and only the server is foretold.
        foretold = simulate(Fleet(replica), poisson_s(rate, int(rate * OPEN_S), seed=seed), seed=seed)
        against(found, load, foretold, run, ran)


def against(found: Found, load: float, foretold: Outcome, run: Measurement, ran: Batches) -> None:
    """The simulation's figures against those of the run."""
    for percent in (50, 99):
        measured_s = float(np.percentile(run.latencies_s, percent))
        compare(found, load, f"p{percent}", 1e3 * foretold.percentile_s(percent), 1e3 * measured_s, "ms")
    mean = sum(size * count for size, (count, _) in ran.items()) / sum(count for count, _ in ran.values())
    compare(found, load, "mean batch", foretold.mean_batch, mean)


def compare(found: Found, load: float, what: str, foretold: float, measured: float, unit: str = "") -> None:
    """Keep a ratio, and the figures of the last round for the reader."""
    found.ratios.setdefault((load, what), []).append(foretold / measured)
    found.figures[load, what] = f"{foretold:.1f} and {measured:.1f} {unit}".rstrip()


async def messages(found: Found, server: RunningServer, client: Client, images: np.ndarray) -> None:
    """What 32-image requests cost Triton's own process, over TCP and through shared memory."""
    with shared_memory_requests(server.target, images[:32], "bench_capacity") as shared:
        sides: dict[str, Callable[[int], Awaitable[object]]] = {
            "triton_32_us": lambda caller: client.infer(images[:32]),
            "triton_32_shared_us": shared,
        }
        for name, ask in sides.items():
            cpu_s = triton_s(server)
            run = await closed_loop(ask, images=32, in_flight=3, seconds=2 * SECONDS)
            spent_s = triton_s(server) - cpu_s
            found.costs.setdefault(name, []).append(1e6 * spent_s / (32 * len(run.latencies_s)))
    await unregister(server.target, "bench_capacity")


async def unregister(target: str, region: str) -> None:
    """So that the next round may use the name again."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=region)
        await stub.SystemSharedMemoryUnregister(request, metadata=admin_metadata(target))


def triton_s(server: RunningServer) -> float:
    """Processor time of Triton's own process, seconds: messages and queues; the network runs in another."""
    children = server.process.children(recursive=True)
    (triton,) = (each for each in children if each.name() == "tritonserver")
    times = psutil.Process(triton.pid).cpu_times()
    return float(times.user + times.system)


async def batches(target: str) -> Batches:
    """What Triton has counted so far, by the size of the batch."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelStatisticsRequest(name="alexnet")
        answer = await stub.ModelStatistics(request, metadata=admin_metadata(target))
    (model,) = answer.model_stats
    return {
        each.batch_size: (
            each.compute_infer.count,
            1e-9 * (each.compute_input.ns + each.compute_infer.ns + each.compute_output.ns),
        )
        for each in model.batch_stats
    }


def grown(before: Batches, after: Batches) -> Batches:
    """What came between two looks."""
    found = {}
    for size, (count, seconds) in after.items():
        count_before, seconds_before = before.get(size, (0, 0.0))
        if count > count_before:
            found[size] = count - count_before, seconds - seconds_before
    return found
