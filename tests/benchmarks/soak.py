"""``make soak``: send valid and invalid requests for a long time, and check that memory, descriptors and latency are steady."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from servers import RunningServer, running
from soak_report import Sample, evaluate, finish
from workloads import random_images

from alexnet_client import Client
from alexnet_client.codec import encode_request
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, ClientError, DeadlineExceeded
from alexnet_client.terminal import EXIT_CODES
from alexnet_client.transport import Transport

PHOTO = Path(__file__).parents[1] / "golden" / "photo.jpg"
SINGLES, FILES, INVALID = 8, 2, 3
"""Callers of each kind, in addition to one that sends batches of 32 images."""
TIMEOUT_S = 30.0
WRONG_SHAPE = encode_request("alexnet", {"image": np.zeros((1, 7, 7, 3), np.uint8)}, ["logits"])
"""The client itself does not send such a request."""


class Load:
    """Callers of every kind at one server, and the requests since the last sample: outcomes, and latencies of valid ones."""

    def __init__(self, target: str) -> None:
        self.outcomes, self.latencies_ms = Counter[str](), list[float]()
        self._target, self._random = target, random.Random(0)
        self._images, self._photo = random_images()[:32], PHOTO.read_bytes()

    async def run(self, seconds: float) -> None:
        """Send requests until the time is over; raises unexpected errors of invalid requests."""
        end = time.monotonic() + seconds
        images, photo = self._images, np.array([[self._photo]], object)
        self._transport = Transport(self._target)
        async with (
            Client(self._target, timeout_s=TIMEOUT_S) as pixels,
            Client(self._target, model="alexnet_encoded", timeout_s=TIMEOUT_S) as files,
        ):
            expected = (await pixels.infer(images)).logits
            expected_of_photo = (await files.infer(photo)).logits
            rows = [slice(row, row + 1) for row in range(SINGLES)]
            await asyncio.gather(
                *(self._send_valid(pixels, images[row], expected[row], end) for row in rows),
                self._send_valid(pixels, images, expected, end),
                *(self._send_valid(files, photo, expected_of_photo, end) for _ in range(FILES)),
                *(self._send_invalid(pixels, files, end) for _ in range(INVALID)),
            )
        await self._transport.close()

    async def _send_valid(self, client: Client, batch: np.ndarray, expected: np.ndarray, end: float) -> None:
        tolerance = 0.05 * np.ptp(expected)  # int8 rounding differs between batches
        while time.monotonic() < end:
            started = time.perf_counter()
            try:
                logits = (await client.infer(batch)).logits
            except ClientError:
                self.outcomes["failed"] += 1
                await asyncio.sleep(0.1)
                continue
            self.latencies_ms.append(1000 * (time.perf_counter() - started))
            self.outcomes["answered" if np.allclose(logits, expected, atol=tolerance) else "wrong"] += 1

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
                    self.outcomes["rejected"] += 1
            except (BadInput, DeadlineExceeded):
                self.outcomes["rejected"] += 1
            await asyncio.sleep(0.05)


def take_sample(server: RunningServer, load: Load, at_s: float, first_pid: int) -> Sample:
    """The state of the server now, and the requests since the last sample."""
    processes = server.process.children(recursive=True)
    latencies_ms, outcomes = load.latencies_ms or [0.0], load.outcomes
    load.latencies_ms, load.outcomes = [], Counter()
    p50_ms, p99_ms = np.percentile(latencies_ms, (50, 99)).round(2).tolist()
    regions = Path("/dev/shm").glob(f"alexnet_{server.process.pid}_*")
    return Sample(
        at_s=round(at_s, 1),
        **{name: outcomes[name] for name in ("answered", "wrong", "failed", "rejected")},
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        memory_mb=round(server.memory() / 2**20, 1),
        descriptors=sum(each.num_fds() for each in processes),
        shared_mb=round(sum(path.stat().st_blocks * 512 for path in regions) / 2**20, 1),
        restarts=int(first_pid not in {each.pid for each in processes}),
    )


async def soak(server: RunningServer, seconds: float) -> list[Sample]:
    """Load the server and take a sample every second."""
    load, first_pid = Load(server.target), server.triton().pid
    work = asyncio.create_task(load.run(seconds))
    samples: list[Sample] = []
    started = time.monotonic()
    while not work.done():
        await asyncio.wait([work], timeout=1.0)
        with suppress(psutil.NoSuchProcess):  # Triton is being restarted
            samples.append(take_sample(server, load, time.monotonic() - started, first_pid))
    await work
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/benchmarks/soak.py", description=__doc__, epilog=EXIT_CODES)
    parser.add_argument("--repository", type=Path, required=True, help="model repository to serve")
    parser.add_argument("--minutes", type=float, default=10.0, help="duration of the test (default 10)")
    parser.add_argument(
        "--output", type=Path, required=True, help="directory for soak.json, which contains all samples"
    )
    arguments = parser.parse_args()
    title = f"Soak test: {arguments.minutes:g} minutes of valid and invalid requests"
    try:
        with running(arguments.repository) as server, Console().status(title):
            samples = asyncio.run(soak(server, 60 * arguments.minutes))
    except ClientError as error:
        sys.exit(f"{parser.prog}: {error}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"samples": [asdict(each) for each in samples]})
    (arguments.output / "soak.json").write_text(f"{content}\n")
    finish(evaluate(samples), title, requests=sum(each.answered + each.rejected for each in samples))


if __name__ == "__main__":
    main()
