"""Benchmark of serving: the real server compared with the same model file in this process, on the same CPUs."""

from __future__ import annotations

import asyncio
import io
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from results import Result
from servers import running
from workloads import (
    TIMEOUT_S,
    InProcess,
    Send,
    Side,
    closed_loop,
    open_loop,
    prepared_requests,
    random_images,
    shared_memory_requests,
)

from alexnet_client import BatchOptions, Client
from alexnet_client.cpus import usable_cpus
from alexnet_client.images import load_pixels
from alexnet_load.run import NO_BATCHING

STEPS = (1, 2, 4, 8, 16, 32, 64)
BURSTS, BURST = 40, 8
PHOTO = Path(__file__).parents[1] / "golden" / "photo.jpg"


async def bench_serving(
    repositories: Mapping[str, Path], *, rounds: int = 9, seconds: float = 1.2
) -> AsyncIterator[Result]:
    """Measure each model, and most values for INT8 only."""
    for precision, repository in repositories.items():
        async for result in _measure(precision, repository, rounds, seconds):
            yield result


async def _measure(precision: str, repository: Path, rounds: int, seconds: float) -> AsyncIterator[Result]:
    images, model = random_images(), repository / "alexnet/1/model.onnx"
    baseline = InProcess(str(model), images, usable_cpus())
    with running(repository) as server:
        yield Result.of(f"{precision}: ready after start", [server.ready_s], unit="s", goal=4, at_most=True)
        unbatched = BatchOptions(**NO_BATCHING)
        async with (
            prepared_requests(server.target, images) as send_one,
            Client(server.target, timeout_s=TIMEOUT_S, batching=unbatched) as client,
            Client(server.target, timeout_s=TIMEOUT_S) as batching,
        ):
            await client.signature()
            with shared_memory_requests(server.target, images[:32], f"bench_{precision}") as send_shared:
                sides: dict[str, tuple[Side, float]] = {
                    "32-image requests over TCP, 3 in flight": ((lambda _: client.infer(images[:32]), 32, 3), 0.95),
                    "128 callers of single images through the batching client": (
                        (lambda caller: batching.infer(images[caller % 64][np.newaxis]), 1, 128),
                        0.95,
                    ),
                    "32-image requests through shared memory, 3 in flight": ((send_shared, 32, 3), 0.98),
                }
                if precision == "int8":
                    sides["single-image requests over TCP, 64 in flight"] = (send_one, 1, 64), 0.87
                async for result in against_baseline(precision, baseline, sides, rounds, seconds):
                    yield result
            if precision == "int8":
                yield await lone_request(client, images[:1], baseline, rounds, seconds)
                in_flight = {each: (send_one, 1, each) for each in STEPS}
                yield await scaling("int8: throughput from 1 to 64 requests in flight", in_flight, seconds)
                sizes = {each: (lambda _, size=each: client.infer(images[:size]), each, 3) for each in STEPS}
                yield await scaling("int8: throughput from 1 to 64 images per request", sizes, seconds)
                yield await latency_at_80_percent(send_one, baseline, seconds)
                yield await bursts(client, images)
        if precision == "int8":
            async with Client(
                server.target, model="alexnet_encoded", timeout_s=TIMEOUT_S, batching=unbatched
            ) as client:
                yield await image_files(client, baseline, seconds)
        used_mib = (server.memory() - model.stat().st_size) / 2**20
        name = f"{precision}: memory in addition to the weights, after the load"
        yield Result.of(name, [used_mib], unit="MiB", goal=400, at_most=True)


async def against_baseline(
    precision: str, baseline: InProcess, sides: dict[str, tuple[Side, float]], rounds: int, seconds: float
) -> AsyncIterator[Result]:
    """Throughput of each side as a share of the baseline."""
    baselines: list[float] = []
    throughputs: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        baselines.append(baseline.throughput(seconds))
        for name, ((send, images, in_flight), _) in sides.items():
            run = await closed_loop(send, images=images, in_flight=in_flight, seconds=seconds)
            throughputs[name].append(run.throughput)
    for name, (_, goal) in sides.items():  # without the first round, which is the warm-up
        title = f"{precision}: {name}, served / in process ({baseline.fastest})"
        yield Result.ratio(title, throughputs[name][1:], baselines[1:], goal=goal)


async def lone_request(client: Client, image: np.ndarray, baseline: InProcess, rounds: int, seconds: float) -> Result:
    """Additional latency of a lone request."""
    additional_ms = []
    for _ in range(rounds):
        alone_s = statistics.median(baseline.latencies_s(seconds / 2))
        lone = await closed_loop(lambda _: client.infer(image), in_flight=1, seconds=seconds / 2)
        additional_ms.append(lone.p50_ms - 1000 * alone_s)
    return Result.of(
        "int8: p50 of a lone request, served - in process",
        additional_ms,
        unit="ms",
        goal=1.0,
        at_most=True,
        details=f"in process {1000 * alone_s:.1f} ms with the same number of threads",
    )


async def scaling(name: str, steps: dict[int, Side], seconds: float, rounds: int = 3) -> Result:
    """Smallest ratio of the throughput of a step to the best throughput of the previous steps."""
    ratios, throughputs = [], {step: [] for step in steps}
    for _ in range(rounds):
        best, worst = 0.0, 1.0
        for step, (send, images, in_flight) in steps.items():
            found = await closed_loop(send, images=images, in_flight=in_flight, seconds=seconds)
            throughputs[step].append(found.throughput)
            best = max(best, found.throughput)
            worst = min(worst, found.throughput / best)
        ratios.append(worst)
    medians = ", ".join(f"{step}: {statistics.median(each):.0f}" for step, each in throughputs.items())
    return Result.of(f"{name}, worst step / best before it", ratios, goal=0.95, details=f"{medians} images/s")


async def latency_at_80_percent(send: Send, baseline: InProcess, seconds: float, rounds: int = 5) -> Result:
    """p99 of single images with open-loop arrivals, relative to the time of one batch of 64."""
    ratios = []
    for seed in range(rounds):
        capacity = (await closed_loop(send, in_flight=64, seconds=seconds)).throughput
        batch_s = statistics.median(baseline.latencies_s(seconds / 2, 64))
        found = await open_loop(send, rate=0.8 * capacity, seconds=3 * seconds, seed=seed)
        ratios.append(found.p99_ms / 1000 / batch_s)
    return Result.of(
        "int8: p99 at 80 % of capacity, open loop, p99 / time of a batch of 64",
        ratios,
        goal=4.0,
        at_most=True,
        details=f"a batch of 64 takes {1000 * batch_s:.0f} ms",
    )


async def bursts(client: Client, images: np.ndarray) -> Result:
    """Slowest of many bursts of concurrent requests relative to the median burst."""
    seconds = []
    for _ in range(BURSTS):
        started = time.perf_counter()
        await asyncio.gather(*(client.infer(images[place : place + 1]) for place in range(BURST)))
        seconds.append(time.perf_counter() - started)
        await asyncio.sleep(0.02)
    median_s = statistics.median(seconds)
    return Result.of(
        f"int8: slowest of {BURSTS} bursts of {BURST} requests / median burst",
        [max(seconds) / median_s],
        goal=4,
        at_most=True,
        details=f"median {1000 * median_s:.0f} ms, slowest {1000 * max(seconds):.0f} ms",
    )


async def image_files(client: Client, baseline: InProcess, seconds: float, rounds: int = 5) -> Result:
    """Throughput of image files, relative to decoding and inference in turn on the same CPUs."""
    file = io.BytesIO()
    Image.open(PHOTO).convert("RGB").resize((500, 375)).save(file, "JPEG", quality=90)
    content = file.getvalue()
    batch = np.array([[content]], object)
    ratios, details = [], ""
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for _ in range(rounds):
            count, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                count += sum(1 for _ in pool.map(load_pixels, [content] * 64))
            decoding = count / (time.perf_counter() - started)
            bound = 1 / (1 / decoding + 1 / baseline.throughput(seconds))
            found = await closed_loop(lambda _: client.infer(batch), in_flight=64, seconds=2 * seconds)
            ratios.append(found.throughput / bound)
            details = (
                f"{found.throughput:.0f} and {bound:.0f} images/s (decoding {decoding:.0f}), JPEG of 500 x 375 pixels"
            )
    return Result.of(
        "int8: image files, 64 in flight, served / in process with decoding", ratios, goal=0.9, details=details
    )
