"""Benchmark of the client: compared with tritonclient and plain gRPC, at a fake server and at the real one."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from results import Result
from servers import RunningServer, fake_server, running
from tritonclient.grpc import InferInput, InferRequestedOutput
from workloads import (
    OUTPUTS,
    TIMEOUT_S,
    Measurement,
    Send,
    Side,
    alternate,
    closed_loop,
    open_loop,
    prepared_requests,
    random_images,
)

from alexnet_client import BatchOptions, Client, Overloaded
from alexnet_client.events import CallEnded, Event

TASKS = 64
TRITONCLIENT, GRPC, UNBATCHED = "tritonclient.grpc.aio", "plain gRPC", "this client without batching"


async def bench_client(
    repositories: Mapping[str, Path], *, rounds: int = 9, seconds: float = 1.5
) -> AsyncIterator[Result]:
    """Measure with the INT8 model at the real server."""
    images, repository = random_images(), repositories["int8"]
    with fake_server() as target:
        async with AsyncExitStack() as stack:
            sides = await connect(stack, target, "pixels", images, (TRITONCLIENT,))
            found = await alternate(sides, rounds, seconds)
            name = f"throughput of {TASKS} tasks at the fake server"
            yield compared(name, found, TRITONCLIENT, "throughput", goal=2.0)
            name = "CPU time per image at the fake server"
            yield compared(name, found, TRITONCLIENT, "cpu_us", unit="us", goal=0.5, at_most=True)
    with running(repository) as server:
        async with AsyncExitStack() as stack:
            sides = await connect(stack, server.target, "image", images, (TRITONCLIENT, UNBATCHED))
            found = await alternate(sides, rounds, seconds)
            name = f"throughput of {TASKS} tasks at the real server"
            yield compared(name, found, TRITONCLIENT, "throughput", goal=1.0)
            name = f"p99 of {TASKS} tasks at the real server"
            yield compared(name, found, TRITONCLIENT, "p99_ms", unit="ms", goal=1.0, at_most=True)
            for other, goal in ((TRITONCLIENT, 0.5), (UNBATCHED, None)):
                name = "CPU time per image at the real server"
                yield compared(name, found, other, "cpu_us", unit="us", goal=goal, at_most=True)
            lone = {
                "client": (sides["client"][0], 1, 1),
                GRPC: (await stack.enter_async_context(prepared_requests(server.target, images)), 1, 1),
            }
            found = await alternate(lone, rounds, seconds)
            name = "p50 of a lone request at the real server"
            yield compared(name, found, GRPC, "p50_ms", unit="ms", goal=1.05, at_most=True)
        with running(small_queue(repository), "--config-name", "bounded") as bounded:
            yield await overload(bounded, images, seconds)
        for name, goal_us, shared in (("over loopback", 100, False), ("through shared memory", 30, True)):
            async with Client(server.target, timeout_s=TIMEOUT_S, shared_memory=shared) as client:
                side = {"client": (lambda _, client=client: client.infer(images[:32]), 32, 2)}
                turns = (await alternate(side, rounds, seconds))["client"]
            yield Result.of(
                f"client: CPU time per image in batches of 32 {name}",
                [turn.cpu_us for turn in turns],
                unit="us",
                goal=goal_us,
                at_most=True,
            )


async def connect(
    stack: AsyncExitStack, target: str, tensor: str, images: np.ndarray, others: Sequence[str]
) -> dict[str, Side]:
    """Ways to send single images of many tasks: this client and the named others."""
    batching = await stack.enter_async_context(Client(target, timeout_s=TIMEOUT_S))
    options = BatchOptions(max_batch=1, max_in_flight=TASKS)
    unbatched = await stack.enter_async_context(Client(target, timeout_s=TIMEOUT_S, batching=options))
    other = await stack.enter_async_context(triton.InferenceServerClient(target))

    async def send_with_tritonclient(caller: int) -> Any:
        image = images[caller % 64][np.newaxis]
        infer_input = InferInput(tensor, list(image.shape), "UINT8")
        infer_input.set_data_from_numpy(image)
        answer = await other.infer("alexnet", [infer_input], outputs=[InferRequestedOutput(name) for name in OUTPUTS])
        return [answer.as_numpy(name) for name in OUTPUTS]

    ways: dict[str, Send] = {
        "client": lambda caller: batching.infer(images[caller % 64][np.newaxis]),
        UNBATCHED: lambda caller: unbatched.infer(images[caller % 64][np.newaxis]),
        TRITONCLIENT: send_with_tritonclient,
    }
    return {name: (ways[name], 1, TASKS) for name in ("client", *others)}


def compared(name: str, found: dict[str, list[Measurement]], other: str, value: str, **more: Any) -> Result:
    """A value of the client relative to another way."""
    ours, theirs = ([getattr(turn, value) for turn in found[side]] for side in ("client", other))
    return Result.ratio(f"client: {name}, client / {other}", ours, theirs, **more)


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
    copy = shutil.copytree(repository, repository.parent / "small-queue", ignore=shutil.ignore_patterns(".*"))
    config = copy / "alexnet/configs/bounded.pbtxt"
    config.write_text(config.read_text().replace("max_queue_size: 512", "max_queue_size: 4"))
    return copy
