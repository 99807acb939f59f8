"""Benchmark of serving: the real server compared with the same release in this process, on the same CPUs."""

from __future__ import annotations

import asyncio
import io
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from in_process import HAS_AMX, InProcess
from PIL import Image
from results import Result
from servers import running
from workloads import TIMEOUT_S, Send, closed_loop, prepared_requests, random_images, shared_memory_requests

from alexnet_client import BatchOptions, Client
from alexnet_client.cpus import usable_cpus
from alexnet_client.images import load_pixels
from alexnet_export.releases import releases
from alexnet_export.triton_config import ONNXRUNTIME
from alexnet_load.run import NO_BATCHING

BURSTS, BURST = 40, 8
PHOTO = Path(__file__).parents[1] / "golden" / "photo.jpg"
Load = tuple[str, Send, int, int, Sequence[float]]
"""Name, how to send a request, images per request, requests in flight, and a goal for each baseline."""


async def bench_serving(
    repositories: Mapping[str, Path], *, rounds: int = 9, seconds: float = 1.2
) -> AsyncIterator[Result]:
    """Measure each release, and most values for INT8 only."""
    for precision, repository in repositories.items():
        async for result in _measure(precision, repository, rounds, seconds):
            yield result


async def _measure(precision: str, repository: Path, rounds: int, seconds: float) -> AsyncIterator[Result]:
    release, images = releases(repository)[-1], random_images()
    model, engine = release.directory / "model.onnx", release.manifest["engine"]
    baseline = InProcess(model, engine, images)
    baselines = {f"in process ({engine}, {baseline.fastest})": baseline}
    if engine != ONNXRUNTIME:
        baselines["plain ONNX Runtime in process"] = InProcess(model, ONNXRUNTIME, images)
    with running(repository) as server:
        yield Result.of(f"{precision}: ready after start", [server.ready_s], unit="s", goal=4, at_most=True)
        unbatched = BatchOptions(**NO_BATCHING)
        async with (
            prepared_requests(server.target, images) as send_one,
            Client(server.target, timeout_s=TIMEOUT_S, batching=unbatched) as client,
            Client(server.target, timeout_s=TIMEOUT_S) as batching,
        ):
            await client.signature()
            with shared_memory_requests(server.target, images, f"bench_{precision}") as send_shared:
                one_of_128 = "128 callers of single images through the batching client"
                loads: list[Load] = [
                    (one_of_128, lambda caller: batching.infer(images[caller % 64][np.newaxis]), 1, 128, (0.75, 1.7)),
                    ("64-image requests over TCP, 3 in flight", lambda _: client.infer(images), 64, 3, (0.78, 1.7)),
                    ("64-image requests through shared memory, 3 in flight", send_shared, 64, 3, (0.87, 2.0)),
                    ("single-image requests over TCP, 64 in flight", send_one, 1, 64, (0.5, 1.1)),
                ]
                async for result in against_baselines(precision, baselines, loads, rounds, seconds):
                    yield result
            if precision == "int8":
                yield await lone_request(client, images[:1], baseline, rounds, seconds)
                yield await bursts(client, images)
        if precision == "int8":
            async with Client(
                server.target, model="alexnet_encoded", timeout_s=TIMEOUT_S, batching=unbatched
            ) as client:
                yield await image_files(client, baseline, seconds)
        used_mib = (server.memory() - model.stat().st_size) / 2**20
        name = f"{precision}: memory in addition to the weights, after the load"
        yield Result.of(name, [used_mib], unit="MiB", goal=400, at_most=True)


async def against_baselines(
    precision: str, baselines: dict[str, InProcess], loads: Sequence[Load], rounds: int, seconds: float
) -> AsyncIterator[Result]:
    """Throughput of each load as a share of each baseline."""
    found = defaultdict[str, list[float]](list)
    for _ in range(rounds + 1):
        for name, baseline in baselines.items():
            found[name].append(baseline.throughput(seconds))
        for name, send, images, in_flight, _ in loads:
            run = await closed_loop(send, images=images, in_flight=in_flight, seconds=seconds)
            found[name].append(run.throughput)
    for number, baseline in enumerate(baselines):
        for name, _, _, _, goals in loads:
            title, goal = f"{precision}: {name}, served / {baseline}", goals[number] if HAS_AMX or not number else None
            # The first round is the warm-up.
            yield Result.ratio(title, found[name][1:], found[baseline][1:], goal=goal)


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
        goal=1.2,
        at_most=True,
        details=f"in process {1000 * alone_s:.1f} ms with the same number of threads",
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
