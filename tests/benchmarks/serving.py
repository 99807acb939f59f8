"""What serving costs: the real server against the same file in this process, the client on the same cores."""

from __future__ import annotations

import asyncio
import io
import os
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from loads import NO_BATCHING, Ask, Raw, closed_loop, open_loop, ready_requests, through_shared_memory
from PIL import Image
from rows import Row, spread
from servers import as_found, published, running

from alexnet_client import Client
from alexnet_client.images import load_pixels

ROUNDS = 9
SECONDS = 1.2
IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64)
STEPS = 3
DEADLINE_S = 60.0
BURSTS, BURST = 40, 8


def bench_serving(models: dict[str, bytes], labels: Sequence[str]) -> Iterator[Row]:
    """The rows, as they are found, for files by their precision."""
    images = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3)).astype(np.uint8)
    with TemporaryDirectory(prefix="alexnet-serving-") as scratch:
        for precision in ("int8", "fp32"):
            repository = published(Path(scratch, precision), precision, models[precision], labels)
            yield from as_found(_rows(precision, repository, images))


async def _rows(precision: str, repository: Path, images: np.ndarray) -> AsyncIterator[Row]:
    model = repository / "alexnet/1/model.onnx"
    raw = Raw(str(model), images, os.cpu_count() or 1)
    with running(repository) as server:
        weights = model.stat().st_size
        yield single(f"{precision}: ready after", server.ready_s, "s", 4, at_most=True)
        beside = (server.memory() - weights) / 2**20
        yield single(f"{precision}: memory beside the weights, at the start", beside, "MiB", 400, at_most=True)
        async with (
            ready_requests(server.target, images) as single_images,
            Client(server.target, timeout_s=DEADLINE_S, batching=NO_BATCHING) as client,
            Client(server.target, timeout_s=DEADLINE_S) as batching,
        ):
            await client.signature()
            async for row in against_raw(precision, raw, client, batching, single_images, images):
                yield row
            if precision == "int8":
                in_flight = {each: (single_images, 1, each) for each in IN_FLIGHT}
                yield await growth("int8: throughput from 1 to 64 in flight, worst fall", in_flight)
                sizes = {each: (lambda _, size=each: client.infer(images[:size]), each, 3) for each in IN_FLIGHT}
                yield await growth("int8: throughput from 1 to 64 images in a request, worst fall", sizes)
                yield await at_four_fifths(single_images, raw)
                yield await bursts(client, images)
        if precision == "int8":
            async with Client(
                server.target, model="alexnet_encoded", timeout_s=DEADLINE_S, batching=NO_BATCHING
            ) as client:
                yield await encoded(client, raw)
        beside = (server.memory() - weights) / 2**20
        yield single(f"{precision}: memory beside the weights, after the load", beside, "MiB", 400, at_most=True)


async def against_raw(
    precision: str, raw: Raw, client: Client, batching: Client, single_images: Ask, images: np.ndarray
) -> AsyncIterator[Row]:
    """Saturated through TCP and shared memory, single images, and one in flight; all sides in turns."""
    target = client.target
    kinds: dict[str, tuple[Any, int, int, float | None]] = {
        "32-image requests over TCP, 3 in flight": (lambda caller: client.infer(images[:32]), 32, 3, 0.95),
        "128 callers of single images through the batching client": (
            lambda caller: batching.infer(images[caller % 64][np.newaxis]),
            *(1, 128, 0.95),
        ),
        "single-image requests over TCP, 64 in flight": (
            single_images,
            *(1, 64, 0.87 if precision == "int8" else None),
        ),
    }
    ratios: dict[str, list[float]] = {}
    extra_ms: list[float] = []
    rates: dict[str, list[float]] = {"raw": []}
    with through_shared_memory(target, images[:32], f"bench_{precision}") as ask:
        kinds["32-image requests through shared memory, 3 in flight"] = (ask, 32, 3, 0.98)
        for turn in range(ROUNDS + 1):
            base, alone = raw.rate(SECONDS), statistics.median(raw.latencies_s(SECONDS / 2))
            lone = await closed_loop(
                lambda caller: client.infer(images[:1]), images=1, in_flight=1, seconds=SECONDS / 2
            )
            if turn:  # the first one warms everything up
                rates["raw"].append(base)
                extra_ms.append(1000 * (statistics.median(lone.latencies_s) - alone))
            for name, (send, batch, in_flight, _) in kinds.items():
                found = await closed_loop(send, images=batch, in_flight=in_flight, seconds=SECONDS)
                if turn:
                    ratios.setdefault(name, []).append(found.rate / base)
                    rates.setdefault(name, []).append(found.rate)
    for name, (*_, goal) in kinds.items():
        figures = f"{statistics.median(rates[name]):.0f} of {statistics.median(rates['raw']):.0f} images/s ({raw.best})"
        yield spread(f"{precision}: {name}", "served / raw", ratios[name], goal=goal, figures=figures)
    yield spread(
        f"{precision}: one image in flight, p50 over raw",
        "served - raw",
        extra_ms,
        unit="ms",
        goal=1.0,
        at_most=True,
        figures=f"raw {1000 * alone:.1f} ms, same threads",
    )


Step = tuple[Ask, int, int]
"""How to ask, images in a request, requests in flight."""


async def growth(name: str, steps: dict[int, Step]) -> Row:
    """Throughput while the work grows: the worst that a further step does to the best so far."""
    falls, rates = [], {}
    for _ in range(STEPS):
        for size, (ask, images, in_flight) in steps.items():
            found = await closed_loop(ask, images=images, in_flight=in_flight, seconds=SECONDS)
            rates.setdefault(size, []).append(found.rate)
        best, worst = 0.0, 1.0
        for size in steps:
            best = max(best, rates[size][-1])
            worst = min(worst, rates[size][-1] / best)
        falls.append(worst)
    figures = ", ".join(f"{size}: {statistics.median(each):.0f}" for size, each in rates.items()) + " images/s"
    return spread(name, "step / best", falls, goal=0.95, figures=figures)


async def at_four_fifths(send: Ask, raw: Raw) -> Row:
    """p99 of single images at 80 % of what the server can take, against the time of one batch of 64."""
    ratios = []
    for turn in range(5):
        capacity = (await closed_loop(send, images=1, in_flight=64, seconds=SECONDS)).rate
        batch_s = statistics.median(raw.latencies_s(SECONDS / 2, 64))
        found = await open_loop(send, rate=0.8 * capacity, seconds=3 * SECONDS, seed=turn)
        ratios.append(statistics.quantiles(found.latencies_s, n=100)[98] / batch_s)
    figures = f"a batch of 64 takes {1000 * batch_s:.0f} ms"
    return spread(
        "int8: p99 at 80 % of capacity, open loop", "p99 / batch time", ratios, goal=4.0, at_most=True, figures=figures
    )


async def bursts(client: Client, images: np.ndarray) -> Row:
    """Eight requests at once, then silence: the slowest of many such bursts against the usual one."""
    seconds = []
    for _ in range(BURSTS):
        began = time.perf_counter()
        await asyncio.gather(*(client.infer(images[place : place + 1]) for place in range(BURST)))
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)
    usual = statistics.median(seconds)
    figures = f"{1000 * usual:.0f} ms, slowest {1000 * max(seconds):.0f} ms"
    return single(
        f"int8: slowest of {BURSTS} bursts of {BURST} over the usual",
        max(seconds) / usual,
        "x",
        4,
        at_most=True,
        figures=figures,
    )


async def encoded(client: Client, raw: Raw) -> Row:
    """Image files through alexnet_encoded, against what decoding and inference cost on the same cores together."""
    photo = Image.open(Path(__file__).parent.parent / "golden" / "photo.jpg").convert("RGB").resize((500, 375))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=90)
    content = file.getvalue()
    batch = np.array([[content]], object)
    ratios, figures = [], ""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in range(5):
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < SECONDS:
                count += sum(1 for _ in pool.map(load_pixels, [content] * 64))
            decoding, inference = count / (time.perf_counter() - began), raw.rate(SECONDS)
            bound = 1 / (1 / decoding + 1 / inference)
            found = await closed_loop(lambda caller: client.infer(batch), images=1, in_flight=64, seconds=2 * SECONDS)
            ratios.append(found.rate / bound)
            figures = f"{found.rate:.0f} of {bound:.0f} images/s (decoding alone {decoding:.0f}, 500 x 375 JPEG)"
    return spread("int8: image files, 64 in flight", "served / (decode + raw)", ratios, goal=0.9, figures=figures)


def single(name: str, value: float, unit: str, goal: float, *, at_most: bool, figures: str = "") -> Row:
    """A row of one measurement."""
    return Row(name, "", value, value, value, 1, unit, goal=goal, at_most=at_most, figures=figures)
