"""``make soak-client``: send many requests through the client to a fake server, and check that the client is steady."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
from collections import Counter

import numpy as np
import psutil
from servers import fake_server
from soak_report import Finding, finish, growth
from workloads import random_images

from alexnet_client import Client, ClientError
from alexnet_client.terminal import EXIT_CODES

TASKS, SAMPLES = 128, 20
CANCELLED = 0.02
"""Share of the calls that are cancelled while they are queued or in flight."""


async def soak(target: str, images: int) -> tuple[Counter[str], list[tuple[float, int, int]]]:
    """Outcomes of all calls, and samples of this process: memory in MB, file descriptors and asyncio tasks."""
    pixels, process, chance = random_images(), psutil.Process(os.getpid()), random.Random(0)
    outcomes: Counter[str] = Counter()
    samples = []
    sent = 0
    async with Client(target, timeout_s=30) as client:

        async def send() -> None:
            nonlocal sent
            while sent < images:
                sent += 1
                row = chance.randrange(64)
                call = asyncio.ensure_future(client.infer(pixels[row][np.newaxis]))
                if chance.random() < CANCELLED:
                    asyncio.get_running_loop().call_later(chance.random() / 100, call.cancel)
                try:
                    right = (await call).logits[0].argmax() == pixels[row, 0, 0, 0] % 2
                    outcomes["right" if right else "wrong"] += 1
                except asyncio.CancelledError:
                    outcomes["cancelled"] += 1
                except ClientError as error:
                    outcomes[type(error).__name__] += 1

        tasks = [asyncio.create_task(send()) for _ in range(TASKS)]
        for step in range(1, SAMPLES + 1):
            while sent < images * step // SAMPLES and not all(task.done() for task in tasks):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            samples.append((process.memory_info().rss / 2**20, process.num_fds(), len(asyncio.all_tasks())))
        await asyncio.gather(*tasks)
    return outcomes, samples


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python tests/benchmarks/soak_client.py", description=__doc__, epilog=EXIT_CODES
    )
    parser.add_argument("--images", type=int, default=360_000, help="number of requests (default 360,000)")
    arguments, started = parser.parse_args(), time.monotonic()
    with fake_server() as target:
        outcomes, samples = asyncio.run(soak(target, arguments.images))
    memory, descriptors, tasks = zip(*samples, strict=True)
    found = ", ".join(f"{count:,} {name}" for name, count in outcomes.items())
    findings = [
        Finding("outcomes", found, set(outcomes) <= {"right", "cancelled"}),
        growth(memory, "memory", "MB", share=0.03, slack=5),
        growth(descriptors, "file descriptors", "", share=0.03, slack=2),
        growth(tasks, "asyncio tasks", "", share=0.03, slack=10),
    ]
    finish(findings, f"Soak test of the client: {arguments.images:,} images in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
