"""``make soak-client``: an hour's worth of requests through the client in a few minutes, and what it holds meanwhile."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections import Counter

import numpy as np
import psutil
from client_side import fake_server
from rich.console import Console
from rich.table import Table

from alexnet_client import Client, ClientError

TASKS, SAMPLES, WARM_UP = 128, 20, 4
GIVE_UP = 0.02
"""Share of the calls that are cancelled while they wait or fly."""


async def soak(target: str, images: int, console: Console) -> list[dict[str, float]]:
    """Memory, descriptors and tasks of this process, each time another twentieth of the images was asked for."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3)).astype(np.uint8)
    process, chance, outcomes = psutil.Process(os.getpid()), random.Random(0), Counter[str]()
    samples: list[dict[str, float]] = []
    asked = 0
    async with Client(target, timeout_s=30) as client:

        async def ask() -> None:
            nonlocal asked
            while asked < images:
                asked += 1
                row = chance.randrange(64)
                call = asyncio.ensure_future(client.infer(pixels[row][np.newaxis]))
                if chance.random() < GIVE_UP:
                    asyncio.get_running_loop().call_later(chance.random() / 100, call.cancel)
                try:
                    right = (await call).logits[0].argmax() == pixels[row, 0, 0, 0] % 2
                    outcomes["right" if right else "WRONG"] += 1
                except asyncio.CancelledError:
                    outcomes["cancelled"] += 1
                except ClientError as error:
                    outcomes[type(error).__name__] += 1

        began = time.monotonic()
        tasks = [asyncio.create_task(ask()) for _ in range(TASKS)]
        for step in range(1, SAMPLES + 1):
            while asked < images * step // SAMPLES and not all(task.done() for task in tasks):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            samples.append(
                {
                    "asked": asked,
                    "memory_mb": process.memory_info().rss / 2**20,
                    "descriptors": process.num_fds(),
                    "tasks": len(asyncio.all_tasks()),
                }
            )
        await asyncio.gather(*tasks)
        console.print(f"{asked:,} images in {time.monotonic() - began:.0f} s: {dict(outcomes)}")
    if set(outcomes) - {"right", "cancelled"}:
        samples.append({key: float("inf") for key in samples[0]})
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=360_000, help="an hour at 100 a second")
    arguments, console = parser.parse_args(), Console()
    with fake_server() as target:
        samples = asyncio.run(soak(target, arguments.images, console))
    steady = samples[WARM_UP:]
    quarter = max(1, len(steady) // 4)
    table, report = Table("looked at", "first quarter", "last quarter"), {}
    for name, slack in (("memory_mb", 5.0), ("descriptors", 2.0), ("tasks", 10.0)):
        early, late = (statistics.median(each[name] for each in part) for part in (steady[:quarter], steady[-quarter:]))
        report[name] = {"early": early, "late": late, "flat": late <= early * 1.03 + slack}
        table.add_row(name, f"{early:.0f}", f"{late:.0f}")
    console.print(table)
    print(json.dumps(report))
    sys.exit(0 if all(each["flat"] for each in report.values()) else 1)


if __name__ == "__main__":
    main()
