"""``make soak``: good and bad load for a long time, memory, descriptors and latency watched, a verdict at the end."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from servers import Running, running
from verdict import Finding, Sample, draw, judge

from alexnet_client import Client
from alexnet_client.codec import encode_request
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, ClientError, DeadlineExceeded
from alexnet_client.transport import Transport

GOLDEN = Path(__file__).parent.parent / "golden"
SINGLES, BATCHES, FILES, BAD = 8, 1, 2, 3
DEADLINE_S = 30.0
WRONG = encode_request("alexnet", {"image": np.zeros((1, 7, 7, 3), np.uint8)}, ["logits"])
"""A shape that the client would not send."""


@dataclass
class Tally:
    """What happened since the last sample."""

    counts: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)


class Soak:
    """Callers of every kind on one server."""

    def __init__(self, target: str) -> None:
        self._target, self._chance = target, random.Random(0)
        self._images = np.random.default_rng(0).integers(0, 256, (32, 224, 224, 3)).astype(np.uint8)
        self._file = np.array([[(GOLDEN / "photo.jpg").read_bytes()]], object)
        self.tally = Tally()

    async def run(self, seconds: float) -> None:
        """Load the server; raises what a caller did not expect."""
        end = time.monotonic() + seconds
        self._wire = Transport(self._target)
        async with (
            Client(self._target, timeout_s=DEADLINE_S) as pixels,
            Client(self._target, model="alexnet_encoded", timeout_s=DEADLINE_S) as files,
        ):
            expected = (await pixels.infer(self._images)).logits
            of_file = (await files.infer(self._file)).logits
            callers = [
                *(
                    self._good(pixels, self._images[row : row + 1], expected[row : row + 1], end)
                    for row in range(SINGLES)
                ),
                *(self._good(pixels, self._images, expected, end) for _ in range(BATCHES)),
                *(self._good(files, self._file, of_file, end) for _ in range(FILES)),
                *(self._bad(pixels, files, end) for _ in range(BAD)),
            ]
            await asyncio.gather(*callers)
        await self._wire.close()

    async def _good(self, client: Client, batch: np.ndarray, expected: np.ndarray, end: float) -> None:
        while time.monotonic() < end:
            began = time.perf_counter()
            try:
                logits = (await client.infer(batch)).logits
            except ClientError:
                self.tally.counts["failed"] += 1
                await asyncio.sleep(0.1)
                continue
            self.tally.latencies_ms.append(1000 * (time.perf_counter() - began))
            right = np.allclose(
                logits, expected, atol=0.05 * np.ptp(expected)
            )  # int8 rounds otherwise in other batches
            self.tally.counts["answered" if right else "wrong"] += 1

    async def _bad(self, pixels: Client, files: Client, end: float) -> None:
        """One mistake after the other: damaged files, wrong shapes, callers who give up, connections that say nothing."""
        file = self._file[0, 0]
        while time.monotonic() < end:
            mistake = self._chance.randrange(4)
            try:
                if mistake == 0:
                    await files.infer(np.array([[file[: self._chance.randrange(len(file))]]], object))
                elif mistake == 1:
                    await self._wire.infer(WRONG, Deadline.after(DEADLINE_S))
                elif mistake == 2:
                    await pixels.infer(self._images, timeout_s=0.005)
                else:
                    host, port = self._target.split(":")
                    with suppress(OSError), socket.create_connection((host, int(port)), timeout=1) as connection:
                        connection.sendall(self._chance.randbytes(50))
                    self.tally.counts["refused"] += 1
            except (BadInput, DeadlineExceeded):
                self.tally.counts["refused"] += 1
            await asyncio.sleep(0.05)


def sample(server: Running, tally: Tally, at_s: float, first_pid: int) -> Sample:
    """The server and the tally now."""
    family = server.process.children(recursive=True)
    latencies = sorted(tally.latencies_ms) or [0.0]
    prefix = f"alexnet_{server.process.pid}_*"
    counts = tally.counts
    return Sample(
        at_s=round(at_s, 1),
        answered=counts["answered"],
        wrong=counts["wrong"],
        failed=counts["failed"],
        refused=counts["refused"],
        p50_ms=round(statistics.median(latencies), 2),
        p99_ms=round(latencies[int(0.99 * (len(latencies) - 1))], 2),
        memory_mb=round(server.memory() / 2**20, 1),
        descriptors=sum(each.num_fds() for each in family),
        shared_mb=round(sum(path.stat().st_blocks * 512 for path in Path("/dev/shm").glob(prefix)) / 2**20, 1),
        restarts=int(first_pid not in {each.pid for each in family}),
    )


async def soak(server: Running, seconds: float, on_sample: Callable[[Sample], None]) -> list[Sample]:
    """Load the server and look at it once a second."""
    load = Soak(server.target)
    first_pid = next(each.pid for each in server.process.children() if each.name() == "tritonserver")
    work = asyncio.create_task(load.run(seconds))
    samples: list[Sample] = []
    began = time.monotonic()
    while not work.done():
        await asyncio.wait([work], timeout=1.0)
        tally, load.tally = load.tally, Tally()
        with suppress(psutil.NoSuchProcess):  # a restart in this very moment
            samples.append(sample(server, tally, time.monotonic() - began, first_pid))
            on_sample(samples[-1])
    await work
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--output", type=Path, required=True, help="directory for soak.png and soak.json")
    arguments = parser.parse_args()
    seconds, console = 60 * arguments.minutes, Console()
    with (
        running(arguments.repository) as server,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task(f"Soaking {server.target}", total=seconds)
        samples = asyncio.run(soak(server, seconds, lambda each: progress.update(task, completed=each.at_s)))
    findings = judge(samples)
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw(samples, arguments.output / "soak.png")
    report = {"seconds": seconds, "findings": [asdict(each) for each in findings]}
    content = {**report, "samples": [asdict(each) for each in samples]}
    (arguments.output / "soak.json").write_text(json.dumps(content) + "\n")
    console.print(table_of(findings, f"{arguments.minutes:g} minutes of good and bad load"))
    console.print(f"Over time: {arguments.output / 'soak.png'}")
    print(json.dumps({**report, "requests": sum(each.answered + each.refused for each in samples)}))
    sys.exit(0 if all(each.ok for each in findings) else 1)


def table_of(findings: list[Finding], title: str) -> Any:
    table = Table("looked at", "found", "verdict", title=title)
    for each in findings:
        table.add_row(each.name, each.found, Text("steady" if each.ok else "NOT steady", "green" if each.ok else "red"))
    return table


if __name__ == "__main__":
    main()
