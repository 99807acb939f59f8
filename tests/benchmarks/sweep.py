"""``make sweep``: what the batching settings of config.pbtxt are worth, all of them in turns on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from loads import NO_BATCHING, Raw, closed_loop
from rich.console import Console
from rich.table import Table
from servers import running
from tritonclient.grpc import model_config_pb2

from alexnet_client import Client
from alexnet_export.config import bounded_config
from alexnet_load.trial_server import changed

ROUNDS, SECONDS, DEADLINE_S, BURST = 5, 1.0, 60.0, 8
Config = model_config_pb2.ModelConfig


def setting(
    *, instances: int = 1, threads: int = 0, spinning: bool = False, **batching: Any
) -> Callable[[Config], None]:
    """A change of the configuration; threads 0: all processors for each instance."""

    def change(config: Config) -> None:
        config.instance_group[0].count = instances
        config.parameters["session.intra_op.allow_spinning"].string_value = "1" if spinning else "0"
        if threads:
            config.parameters["intra_op_thread_count"].string_value = str(threads)
        for name, value in batching.items():
            if name == "preferred_batch_size":
                config.dynamic_batching.preferred_batch_size.append(value)
            elif name == "bounded":
                policy = bounded_config(config.name, classes=1).dynamic_batching.default_queue_policy
                config.dynamic_batching.default_queue_policy.CopyFrom(policy)
            else:
                setattr(config.dynamic_batching, name, value)

    return change


SETTINGS = {
    "as it is: 1 instance, all threads, no spinning": setting(),
    "threads that spin": setting(spinning=True),
    "2 instances of 1 thread": setting(instances=2, threads=1),
    "2 instances, all threads each": setting(instances=2),
    "2 instances, all threads, spinning": setting(instances=2, threads=os.cpu_count() or 1, spinning=True),
    "queue delay 2 ms": setting(max_queue_delay_microseconds=2000),
    "preferred batch of 32": setting(preferred_batch_size=32),
    "bounded queue, 1 instance": setting(bounded=True),
    "bounded queue, 2 instances (configs/bounded.pbtxt)": setting(instances=2, bounded=True),
}


async def measure(repository: Path, model: Path, scratch: Path, console: Console) -> list[dict[str, Any]]:
    """For each setting the medians over the rounds."""
    images = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3)).astype(np.uint8)
    raw = Raw(str(model), images, os.cpu_count() or 1)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    with ExitStack() as stack:
        servers = {}
        for place, (name, change) in enumerate(SETTINGS.items()):
            servers[name] = stack.enter_context(running(changed(repository, scratch / str(place), change)))
        for turn in range(ROUNDS):
            console.log(f"round {turn + 1} of {ROUNDS}")
            base = raw.rate(SECONDS)
            for name, server in servers.items():
                async with Client(server.target, timeout_s=DEADLINE_S, batching=NO_BATCHING) as client:
                    found[name].append(await one(client, images, base))
    return [
        {"setting": name, **{key: statistics.median(each[key] for each in rounds) for key in rounds[0]}}
        for name, rounds in found.items()
    ]


async def one(client: Client, images: np.ndarray, base: float) -> dict[str, float]:
    """Throughput as a share of raw, and latencies, milliseconds."""

    async def rate(batch: int, in_flight: int) -> float:
        send = lambda caller: client.infer(images[:batch] if batch > 1 else images[caller : caller + 1])  # noqa: E731
        return (await closed_loop(send, images=batch, in_flight=in_flight, seconds=SECONDS)).rate / base

    await client.infer(images)
    lone = await closed_loop(lambda caller: client.infer(images[:1]), images=1, in_flight=1, seconds=SECONDS)
    bursts = []
    for _ in range(6):
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(client.infer(images[place : place + 1]) for place in range(BURST)))
        bursts.append(1000 * (asyncio.get_running_loop().time() - began))
        await asyncio.sleep(0.02)
    return {
        "singles_64": await rate(1, 64),
        "singles_8": await rate(1, 8),
        "batches_32": await rate(32, 3),
        "lone_p50_ms": 1000 * statistics.median(lone.latencies_s),
        "slowest_burst_ms": max(bursts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="directory for sweep.json")
    arguments, console = parser.parse_args(), Console()
    newest = max(arguments.repository.glob("alexnet/[0-9]*"), key=lambda path: int(path.name))
    with TemporaryDirectory(prefix="alexnet-sweep-") as scratch:
        rows = asyncio.run(measure(arguments.repository, newest / "model.onnx", Path(scratch), console))
    table = Table(
        "setting", "64 singles", "8 singles", "3 x 32", "lone p50", "slowest of bursts", title="share of raw; ms"
    )
    for row in rows:
        shares = [f"{row[key]:.2f}" for key in ("singles_64", "singles_8", "batches_32")]
        table.add_row(row["setting"], *shares, f"{row['lone_p50_ms']:.1f}", f"{row['slowest_burst_ms']:.0f}")
    console.print(table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "sweep.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
