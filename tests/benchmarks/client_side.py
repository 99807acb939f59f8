"""What the client costs: against tritonclient.grpc.aio and a bare stub, on a fake server and on the real one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from loads import TIMEOUT_S, Ask, Measured, closed_loop, ready_requests
from rows import Row, spread
from servers import Running, as_found, published, running
from tritonclient.grpc import InferInput, InferRequestedOutput

from alexnet_client import BatchOptions, Client, Overloaded
from alexnet_client.events import CallEnded, Event

ROUNDS, SECONDS, TASKS = 9, 1.5, 64
OUTPUTS = ("logits", "probabilities")
KEPT_MEMORY = "glibc.malloc.mmap_threshold=67108864:glibc.malloc.trim_threshold=268435456"
"""A fake server that has new pages made for each message of 4.8 MB is the limit itself: 3,000 to 4,400 images a second, and
7,000 to 8,400 with this."""


def bench_client(models: dict[str, bytes], labels: Sequence[str]) -> Iterator[Row]:
    """The rows, as they are found, with the int8 network at the real server."""
    images = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3)).astype(np.uint8)
    with TemporaryDirectory(prefix="alexnet-client-") as scratch:
        yield from as_found(rows(published(Path(scratch), "int8", models["int8"], labels), images))


async def rows(repository: Path, images: np.ndarray) -> AsyncIterator[Row]:
    """The rows, as they are found; ``images`` are uint8 [64, 224, 224, 3]."""
    with fake_server() as target:
        async with AsyncExitStack() as stack:
            sides = await singles(stack, target, "pixels", images)
            found = await in_turns({name: (ask, 1, TASKS) for name, ask in sides.items()})
            for row in against("a server that answers at once", found, faster=2.0, cheaper=0.5):
                yield row
    with running(repository) as server:
        async with AsyncExitStack() as stack:
            sides = await singles(stack, server.target, "image", images)
            found = await in_turns({name: (ask, 1, TASKS) for name, ask in sides.items()})
            for row in against("the real server", found, faster=1.0, cheaper=0.5):
                yield row
            yield tail(found)
            found = await in_turns({name: (sides[name], 1, 1) for name in ("ours", "bare")})
            yield lone(found)
        with running(tiny_queue(repository), "--config-name", "bounded") as bounded:
            yield await overload(bounded, images)
        for name, goal_us, shared in (("over loopback", 100, False), ("through shared memory", 30, True)):
            async with Client(server.target, timeout_s=TIMEOUT_S, shared_memory=shared) as client:
                yield await cost_at_32(name, client, images, goal_us)


async def overload(server: Running, images: np.ndarray) -> Row:
    """What is answered of five times as much as a server with a tiny queue can take, against what it can."""
    batching = BatchOptions(max_queue_images=64, wait_when_full=False)
    ratios, told = [], Counter[str]()
    async with Client(server.target, timeout_s=TIMEOUT_S) as steady:
        for turn in range(5):
            ask = lambda caller: steady.infer(images[caller % 64][np.newaxis])  # noqa: E731
            capacity = (await closed_loop(ask, images=1, in_flight=128, seconds=2 * SECONDS)).rate
            events: list[Event] = []
            async with Client(
                server.target, timeout_s=TIMEOUT_S, batching=batching, listeners=[events.append]
            ) as client:

                async def call(place: int, client: Client = client) -> None:
                    with suppress(Overloaded):
                        await client.infer(images[place % 64][np.newaxis])

                await client.infer(images[:1])
                began, count = time.perf_counter(), int(5 * capacity * 2 * SECONDS)
                tasks = []
                for place in range(count):
                    await asyncio.sleep(max(0.0, began + place / (5 * capacity) - time.perf_counter()))
                    tasks.append(asyncio.create_task(call(place)))
                await asyncio.gather(*tasks)
                took_s = time.perf_counter() - began
            outcomes = Counter(each.outcome for each in events if isinstance(each, CallEnded))
            if turn:
                ratios.append(outcomes["ok"] / took_s / capacity)
                told.update(outcomes)
    figures = ", ".join(f"{count:,} {outcome}" for outcome, count in told.most_common())
    return spread(
        "client: answered at five times the capacity of a server with a queue of 4 requests",
        "goodput / capacity",
        ratios,
        goal=0.9,
        figures=figures,
    )


async def singles(stack: AsyncExitStack, target: str, tensor: str, images: np.ndarray) -> dict[str, Ask]:
    """Ways to ask for one image: this client, the same without batching, tritonclient, and a bare stub."""
    ours = await stack.enter_async_context(Client(target, timeout_s=TIMEOUT_S))
    unbatched = BatchOptions(max_batch=1, max_in_flight=TASKS)
    alone = await stack.enter_async_context(Client(target, timeout_s=TIMEOUT_S, batching=unbatched))
    theirs = await stack.enter_async_context(triton.InferenceServerClient(target))
    bare = await stack.enter_async_context(ready_requests(target, images, tensor=tensor))

    async def ask_theirs(caller: int) -> Any:
        image = images[caller % 64][np.newaxis]
        given = InferInput(tensor, list(image.shape), "UINT8")
        given.set_data_from_numpy(image)
        answer = await theirs.infer("alexnet", [given], outputs=[InferRequestedOutput(name) for name in OUTPUTS])
        return answer.as_numpy("logits"), answer.as_numpy("probabilities")

    return {
        "ours": lambda caller: ours.infer(images[caller % 64][np.newaxis]),
        "unbatched": lambda caller: alone.infer(images[caller % 64][np.newaxis]),
        "tritonclient": ask_theirs,
        "bare": bare,
    }


@dataclass
class Turn(Measured):
    """A run of one side, with what it cost this process: microseconds of processor time an image."""

    cpu_us: float = 0.0


async def in_turns(sides: dict[str, tuple[Ask, int, int]], *, seconds: float = SECONDS) -> dict[str, list[Turn]]:
    """Each side (how to ask, images in a request, requests in flight) in each round; the first round warms up."""
    found: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name, (ask, images, in_flight) in sides.items():
            began_s = time.process_time()
            run = await closed_loop(ask, images=images, in_flight=in_flight, seconds=seconds)
            spent_s = time.process_time() - began_s
            turn = Turn(run.rate, run.latencies_s)
            turn.cpu_us = 1e6 * spent_s / (len(run.latencies_s) * images)
            if number:
                found[name].append(turn)
    return found


def against(where: str, found: dict[str, list[Turn]], *, faster: float, cheaper: float) -> Iterator[Row]:
    """This client against the others: images a second, and its processor time an image."""

    def median(name: str, what: str) -> float:
        return statistics.median(getattr(turn, what) for turn in found[name])

    for other, goals in (("tritonclient", (faster, cheaper)), ("bare", (None, None)), ("unbatched", (None, None))):
        name = {"tritonclient": "tritonclient.grpc.aio", "bare": "a bare stub", "unbatched": "itself without batching"}[
            other
        ]
        pairs = list(zip(found["ours"], found[other], strict=True))
        yield spread(
            f"client: images a second of {TASKS} tasks at {where}, against {name}",
            "ours / theirs",
            [ours.rate / theirs.rate for ours, theirs in pairs],
            goal=goals[0],
            figures=f"{median('ours', 'rate'):.0f} against {median(other, 'rate'):.0f}",
        )
        yield spread(
            f"client: its processor time an image there, against {name}",
            "ours / theirs",
            [ours.cpu_us / theirs.cpu_us for ours, theirs in pairs],
            goal=goals[1],
            at_most=True,
            figures=f"{median('ours', 'cpu_us'):.0f} against {median(other, 'cpu_us'):.0f} us",
        )


def tail(found: dict[str, list[Turn]]) -> Row:
    """p99 of single images, against tritonclient's."""

    def p99(turn: Turn) -> float:
        return statistics.quantiles(turn.latencies_s, n=100)[98]

    ratios = [p99(ours) / p99(theirs) for ours, theirs in zip(found["ours"], found["tritonclient"], strict=True)]
    medians = [1000 * statistics.median(map(p99, found[name])) for name in ("ours", "tritonclient")]
    return spread(
        f"client: p99 of {TASKS} tasks at the real server, against tritonclient.grpc.aio",
        "ours / theirs",
        ratios,
        goal=1.0,
        at_most=True,
        figures=f"{medians[0]:.0f} against {medians[1]:.0f} ms",
    )


def lone(found: dict[str, list[Turn]]) -> Row:
    """p50 of a lone caller, against a bare call of the same tensor."""

    def p50(turn: Turn) -> float:
        return statistics.median(turn.latencies_s)

    ratios = [p50(ours) / p50(bare) for ours, bare in zip(found["ours"], found["bare"], strict=True)]
    medians = [1000 * statistics.median(map(p50, found[name])) for name in ("ours", "bare")]
    return spread(
        "client: p50 of a lone caller at the real server, against a bare call",
        "ours / bare",
        ratios,
        goal=1.05,
        at_most=True,
        figures=f"{medians[0]:.2f} against {medians[1]:.2f} ms",
    )


async def cost_at_32(name: str, client: Client, images: np.ndarray, goal_us: float) -> Row:
    """Processor time of this process for each image of 32-image requests."""
    found = await in_turns({name: (lambda caller: client.infer(images[:32]), 32, 2)})
    return spread(
        f"client: its processor time an image in batches of 32 {name}",
        "",
        [turn.cpu_us for turn in found[name]],
        unit="us",
        goal=goal_us,
        at_most=True,
    )


def tiny_queue(repository: Path) -> Path:
    """A copy of a repository whose bounded configuration bounds the queue to 4 requests."""
    copy = repository.parent / "tiny"
    shutil.copytree(repository, copy, copy_function=os.link, ignore=shutil.ignore_patterns(".*"))
    config = copy / "alexnet/configs/bounded.pbtxt"
    text = config.read_text()
    config.unlink()  # it is a link
    config.write_text(text.replace("max_queue_size: 512", "max_queue_size: 4"))
    return copy


@contextmanager
def fake_server() -> Iterator[str]:
    """The target of a fake server in a process of its own."""
    command = [sys.executable, "-m", "alexnet_client.fake", "--port", "0"]
    environment = {**os.environ, "GLIBC_TUNABLES": KEPT_MEMORY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["target"]
        finally:
            process.terminate()
