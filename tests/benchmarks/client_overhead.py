"""Benchmark of the client: compared with tritonclient and plain gRPC, at a fake server and at the real one."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from results import Result
from servers import RunningServer, fake_server, published, running, synchronous
from tritonclient.grpc import InferInput, InferRequestedOutput
from workloads import (
    OUTPUTS,
    TIMEOUT_S,
    Measurement,
    Send,
    closed_loop,
    open_loop,
    prepared_requests,
    random_images,
)

from alexnet_client import BatchOptions, Client, Overloaded
from alexnet_client.events import CallEnded, Event

TASKS = 64
TRITONCLIENT, GRPC, UNBATCHED = "tritonclient.grpc.aio", "plain gRPC", "this client without batching"


def bench_client(
    models: dict[str, bytes], labels: Sequence[str], *, rounds: int = 9, seconds: float = 1.5
) -> Iterator[Result]:
    """Measure with the INT8 model at the real server."""
    with TemporaryDirectory(prefix="alexnet-client-") as scratch:
        repository = published(Path(scratch), "int8", models["int8"], labels)
        yield from synchronous(_measure(repository, random_images(), rounds, seconds))


async def _measure(repository: Path, images: np.ndarray, rounds: int, seconds: float) -> AsyncIterator[Result]:
    with fake_server() as target:
        async with AsyncExitStack() as stack:
            clients = await connect(stack, target, "pixels", images)
            found = await alternate({name: (send, 1, TASKS) for name, send in clients.items()}, rounds, seconds)
            for result in compared("fake server", found, min_throughput=2.0, max_cpu=0.5):
                yield result
    with running(repository) as server:
        async with AsyncExitStack() as stack:
            clients = await connect(stack, server.target, "image", images)
            found = await alternate({name: (send, 1, TASKS) for name, send in clients.items()}, rounds, seconds)
            for result in compared("real server", found, min_throughput=1.0, max_cpu=0.5):
                yield result
            yield latency_ratio(f"p99 of {TASKS} tasks", found, TRITONCLIENT, 99, goal=1.0)
            found = await alternate({name: (clients[name], 1, 1) for name in ("client", GRPC)}, rounds, seconds)
            yield latency_ratio("p50 of a lone request", found, GRPC, 50, goal=1.05)
        with running(small_queue(repository), "--config-name", "bounded") as bounded:
            yield await overload(bounded, images, seconds)
        for name, goal_us, shared in (("over loopback", 100, False), ("through shared memory", 30, True)):
            async with Client(server.target, timeout_s=TIMEOUT_S, shared_memory=shared) as client:
                sides = {"client": (lambda _, client=client: client.infer(images[:32]), 32, 2)}
                turns = (await alternate(sides, rounds, seconds))["client"]
            yield Result.of(
                f"client: CPU time per image in batches of 32 {name}",
                [turn.cpu_us for turn in turns],
                unit="us",
                goal=goal_us,
                at_most=True,
            )


async def connect(stack: AsyncExitStack, target: str, tensor: str, images: np.ndarray) -> dict[str, Send]:
    """Four ways to send single images: this client with and without batching, tritonclient, and plain gRPC."""
    batching = await stack.enter_async_context(Client(target, timeout_s=TIMEOUT_S))
    options = BatchOptions(max_batch=1, max_in_flight=TASKS)
    unbatched = await stack.enter_async_context(Client(target, timeout_s=TIMEOUT_S, batching=options))
    other = await stack.enter_async_context(triton.InferenceServerClient(target))
    prepared = await stack.enter_async_context(prepared_requests(target, images, tensor=tensor))

    async def send_with_tritonclient(caller: int) -> Any:
        image = images[caller % 64][np.newaxis]
        infer_input = InferInput(tensor, list(image.shape), "UINT8")
        infer_input.set_data_from_numpy(image)
        answer = await other.infer("alexnet", [infer_input], outputs=[InferRequestedOutput(name) for name in OUTPUTS])
        return [answer.as_numpy(name) for name in OUTPUTS]

    return {
        "client": lambda caller: batching.infer(images[caller % 64][np.newaxis]),
        UNBATCHED: lambda caller: unbatched.infer(images[caller % 64][np.newaxis]),
        TRITONCLIENT: send_with_tritonclient,
        GRPC: prepared,
    }


@dataclass
class Turn(Measurement):
    """One side in one round, with the CPU time of this process per image, microseconds."""

    cpu_us: float = 0.0


async def alternate(sides: dict[str, tuple[Send, int, int]], rounds: int, seconds: float) -> dict[str, list[Turn]]:
    """Measure each side (how to send, images per request, requests in flight) in each round after a warm-up round."""
    found: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, (send, images, in_flight) in sides.items():
            started_s = time.process_time()
            run = await closed_loop(send, images=images, in_flight=in_flight, seconds=seconds)
            cpu_us = 1e6 * (time.process_time() - started_s) / (len(run.latencies_s) * images)
            if number:
                found[name].append(Turn(run.throughput, run.latencies_s, cpu_us))
    return found


def compared(where: str, found: dict[str, list[Turn]], *, min_throughput: float, max_cpu: float) -> Iterator[Result]:
    """Throughput and CPU time of the client relative to each other way; the goals are for tritonclient."""
    for other in (TRITONCLIENT, GRPC, UNBATCHED):
        for value, name, unit, goal in (
            ("throughput", f"throughput of {TASKS} tasks", "images/s", min_throughput),
            ("cpu_us", "CPU time per image", "us", max_cpu),
        ):
            ours, theirs = ([getattr(turn, value) for turn in found[side]] for side in ("client", other))
            yield Result.of(
                f"client: {name} at the {where}, client / {other}",
                [one / another for one, another in zip(ours, theirs, strict=True)],
                goal=goal if other == TRITONCLIENT else None,
                at_most=value == "cpu_us",
                details=f"{statistics.median(ours):.0f} and {statistics.median(theirs):.0f} {unit}",
            )


def latency_ratio(name: str, found: dict[str, list[Turn]], other: str, percentile: int, *, goal: float) -> Result:
    """A latency percentile of the client relative to another way, at the real server."""
    ours, theirs = (
        [1000 * np.percentile(turn.latencies_s, percentile) for turn in found[side]] for side in ("client", other)
    )
    return Result.of(
        f"client: {name} at the real server, client / {other}",
        [one / another for one, another in zip(ours, theirs, strict=True)],
        goal=goal,
        at_most=True,
        details=f"{statistics.median(ours):.2f} and {statistics.median(theirs):.2f} ms",
    )


async def overload(server: RunningServer, images: np.ndarray, seconds: float, rounds: int = 4) -> Result:
    """Goodput at five times the capacity of a server with a small queue, relative to the capacity."""
    batching = BatchOptions(max_queue_images=64, wait_when_full=False)
    ratios, outcomes = [], Counter[str]()
    async with Client(server.target, timeout_s=TIMEOUT_S) as steady:
        for number in range(rounds + 1):
            send = lambda caller: steady.infer(images[caller % 64][np.newaxis])  # noqa: E731
            capacity = (await closed_loop(send, in_flight=128, seconds=2 * seconds)).throughput
            events: list[Event] = []
            async with Client(
                server.target, timeout_s=TIMEOUT_S, batching=batching, listeners=[events.append]
            ) as client:

                async def send_or_drop(caller: int, client: Client = client) -> None:
                    with suppress(Overloaded):
                        await client.infer(images[caller % 64][np.newaxis])

                await client.signature()
                offered = await open_loop(send_or_drop, rate=5 * capacity, seconds=2 * seconds)
            ended = Counter(each.outcome for each in events if isinstance(each, CallEnded))
            if number:  # the first round is the warm-up
                ratios.append(offered.throughput * ended["ok"] / len(offered.latencies_s) / capacity)
                outcomes.update(ended)
    return Result.of(
        "client: goodput at 5 times the capacity of a server with a queue of 4 requests, goodput / capacity",
        ratios,
        goal=0.9,
        details=", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.most_common()),
    )


def small_queue(repository: Path) -> Path:
    """Copy of a repository whose "bounded" configuration limits the queue to 4 requests."""
    copy = repository.parent / "small-queue"
    shutil.copytree(repository, copy, copy_function=os.link, ignore=shutil.ignore_patterns(".*"))
    config = copy / "alexnet/configs/bounded.pbtxt"
    text = config.read_text()
    config.unlink()  # a hard link: do not change the original
    config.write_text(text.replace("max_queue_size: 512", "max_queue_size: 4"))
    return copy
