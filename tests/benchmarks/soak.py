"""``make soak``: send valid and invalid requests for a long time, and check that memory, descriptors and latency are steady."""

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

import numpy as np
import psutil
from rich.console import Console
from rich.progress import Progress
from servers import RunningServer, running
from soak_report import Sample, draw, evaluate, table_of
from workloads import random_images

from alexnet_client import Client
from alexnet_client.codec import encode_request
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, ClientError, DeadlineExceeded
from alexnet_client.terminal import EXIT_CODES
from alexnet_client.transport import Transport

PHOTO = Path(__file__).parents[1] / "golden" / "photo.jpg"
SINGLES, BATCHES, FILES, INVALID = 8, 1, 2, 3
"""Number of callers of each kind."""
TIMEOUT_S = 30.0
WRONG_SHAPE = encode_request("alexnet", {"image": np.zeros((1, 7, 7, 3), np.uint8)}, ["logits"])
"""The client itself does not send such a request."""


@dataclass
class Counts:
    """Requests since the last sample."""

    outcomes: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)


class Load:
    """Callers of every kind at one server."""

    def __init__(self, target: str) -> None:
        self._target, self._random = target, random.Random(0)
        self._images = random_images()[:32]
        self._photo = PHOTO.read_bytes()
        self.counts = Counts()

    async def run(self, seconds: float) -> None:
        """Send requests until the time is over; raises unexpected errors of invalid requests."""
        end = time.monotonic() + seconds
        photo = np.array([[self._photo]], object)
        self._transport = Transport(self._target)
        async with (
            Client(self._target, timeout_s=TIMEOUT_S) as pixels,
            Client(self._target, model="alexnet_encoded", timeout_s=TIMEOUT_S) as files,
        ):
            expected = (await pixels.infer(self._images)).logits
            expected_of_photo = (await files.infer(photo)).logits
            callers = [
                *(
                    self._send_valid(pixels, self._images[row : row + 1], expected[row : row + 1], end)
                    for row in range(SINGLES)
                ),
                *(self._send_valid(pixels, self._images, expected, end) for _ in range(BATCHES)),
                *(self._send_valid(files, photo, expected_of_photo, end) for _ in range(FILES)),
                *(self._send_invalid(pixels, files, end) for _ in range(INVALID)),
            ]
            await asyncio.gather(*callers)
        await self._transport.close()

    async def _send_valid(self, client: Client, batch: np.ndarray, expected: np.ndarray, end: float) -> None:
        tolerance = 0.05 * np.ptp(expected)  # int8 rounding differs between batches
        while time.monotonic() < end:
            started = time.perf_counter()
            try:
                logits = (await client.infer(batch)).logits
            except ClientError:
                self.counts.outcomes["failed"] += 1
                await asyncio.sleep(0.1)
                continue
            self.counts.latencies_ms.append(1000 * (time.perf_counter() - started))
            self.counts.outcomes["answered" if np.allclose(logits, expected, atol=tolerance) else "wrong"] += 1

    async def _send_invalid(self, pixels: Client, files: Client, end: float) -> None:
        """Send truncated files, wrong shapes, requests with a tiny deadline, and random bytes on a new connection."""
        while time.monotonic() < end:
            mistake = self._random.randrange(4)
            try:
                if mistake == 0:
                    truncated = self._photo[: self._random.randrange(len(self._photo))]
                    await files.infer(np.array([[truncated]], object))
                elif mistake == 1:
                    await self._transport.infer(WRONG_SHAPE, Deadline.after(TIMEOUT_S))
                elif mistake == 2:
                    await pixels.infer(self._images, timeout_s=0.005)
                else:
                    host, port = self._target.split(":")
                    with suppress(OSError), socket.create_connection((host, int(port)), timeout=1) as connection:
                        connection.sendall(self._random.randbytes(50))
                    self.counts.outcomes["rejected"] += 1
            except (BadInput, DeadlineExceeded):
                self.counts.outcomes["rejected"] += 1
            await asyncio.sleep(0.05)


def take_sample(server: RunningServer, counts: Counts, at_s: float, first_pid: int) -> Sample:
    """The state of the server now, and the requests since the last sample."""
    processes = server.process.children(recursive=True)
    latencies = sorted(counts.latencies_ms) or [0.0]
    regions = Path("/dev/shm").glob(f"alexnet_{server.process.pid}_*")
    return Sample(
        at_s=round(at_s, 1),
        **{name: counts.outcomes[name] for name in ("answered", "wrong", "failed", "rejected")},
        p50_ms=round(statistics.median(latencies), 2),
        p99_ms=round(latencies[int(0.99 * (len(latencies) - 1))], 2),
        memory_mb=round(server.memory() / 2**20, 1),
        descriptors=sum(each.num_fds() for each in processes),
        shared_mb=round(sum(path.stat().st_blocks * 512 for path in regions) / 2**20, 1),
        restarts=int(first_pid not in {each.pid for each in processes}),
    )


async def soak(server: RunningServer, seconds: float, on_sample: Callable[[Sample], None]) -> list[Sample]:
    """Load the server and take a sample every second."""
    load = Load(server.target)
    first_pid = next(each.pid for each in server.process.children() if each.name() == "tritonserver")
    work = asyncio.create_task(load.run(seconds))
    samples: list[Sample] = []
    started = time.monotonic()
    while not work.done():
        await asyncio.wait([work], timeout=1.0)
        counts, load.counts = load.counts, Counts()
        with suppress(psutil.NoSuchProcess):  # Triton is being restarted
            samples.append(take_sample(server, counts, time.monotonic() - started, first_pid))
            on_sample(samples[-1])
    await work
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/benchmarks/soak.py", description=__doc__, epilog=EXIT_CODES)
    parser.add_argument("--repository", type=Path, required=True, help="model repository to serve")
    parser.add_argument("--minutes", type=float, default=10.0, help="duration of the test (default 10)")
    parser.add_argument("--output", type=Path, required=True, help="directory for soak.png and soak.json")
    arguments = parser.parse_args()
    seconds, console = 60 * arguments.minutes, Console()
    try:
        with (
            running(arguments.repository) as server,
            Progress(console=console, disable=not console.is_terminal) as progress,
        ):
            task = progress.add_task(f"Soak test of {server.target}", total=seconds)
            samples = asyncio.run(soak(server, seconds, lambda each: progress.update(task, completed=each.at_s)))
    except ClientError as error:
        sys.exit(f"{parser.prog}: {error}")
    findings = evaluate(samples)
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw(samples, arguments.output / "soak.png")
    report = {"seconds": seconds, "findings": [asdict(each) for each in findings]}
    content = {**report, "samples": [asdict(each) for each in samples]}
    (arguments.output / "soak.json").write_text(json.dumps(content) + "\n")
    console.print(table_of(findings, f"Soak test: {arguments.minutes:g} minutes of valid and invalid requests"))
    console.print(f"Chart: {arguments.output / 'soak.png'}")
    print(json.dumps({**report, "requests": sum(each.answered + each.rejected for each in samples)}))
    sys.exit(0 if all(each.ok for each in findings) else 1)


if __name__ == "__main__":
    main()
