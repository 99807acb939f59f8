"""``make bench``: measure the project on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from client_overhead import bench_client
from load_generator import bench_load_generator
from monitoring_overhead import bench_monitoring
from results import Result, as_json, table_of
from rich.console import Console
from server_capacity import bench_capacity
from serving import bench_serving
from variants import bench_variants

from alexnet_client.errors import BadInput, ClientError
from alexnet_client.terminal import EXIT_CODES
from alexnet_export import checkpoint as checkpoints
from alexnet_export.data import open_dataset
from alexnet_export.machine import describe_cpu
from alexnet_export.pipeline import ExportOptions, export_release

WITH_SERVER = {
    "serving": bench_serving,
    "client": bench_client,
    "monitoring": bench_monitoring,
    "capacity": bench_capacity,
}
PARTS = ("export", "variants", *WITH_SERVER, "load-generator")


def measure(checkpoint: Path, parts: Sequence[str], *, quick: bool) -> Iterator[Result]:
    """The results of the named parts."""
    rounds = {"rounds": 1} if quick else {}
    short = {"rounds": 1, "seconds": 0.3} if quick else {}
    dataset = open_dataset("digits")
    with TemporaryDirectory(prefix="alexnet-bench-") as scratch, asyncio.Runner() as runner:
        repositories = {name: Path(scratch, name) for name in ("int8", "fp32")}
        if set(parts) - {"export", "load-generator"}:
            export_release(checkpoints.load(checkpoint), dataset, repositories["int8"], precision="int8")
            few = ExportOptions(rounds=1, minimum_images=64, maximum_images=64)  # one engine: no speeds to compare
            export_release(checkpoints.load(checkpoint), dataset, repositories["fp32"], precision="fp32", options=few)
        for part in parts:
            if part == "export":
                yield from bench_export(checkpoint, Path(scratch, "auto"))
            elif part == "variants":
                yield from bench_variants(repositories, dataset, **rounds)
            elif part == "load-generator":
                yield from bench_load_generator(**short)
            else:
                results = WITH_SERVER[part](repositories, **short)
                while (result := runner.run(following(results))) is not None:
                    yield result


def bench_export(checkpoint: Path, repository: Path) -> Iterator[Result]:
    """Time and memory of the command behind `make export`, after training."""
    command = [sys.executable, "-m", "alexnet_export", "export", "--checkpoint", checkpoint, "--data", "digits"]
    started = time.perf_counter()
    subprocess.run([*command, "--repository", repository], stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - started
    yield Result.of("export: time, all variants tried and timed", [seconds], unit="s", goal=120, at_most=True)
    # Of all child processes so far, this is the largest.
    memory_gb = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e9
    yield Result.of("export: largest memory", [memory_gb], unit="GB", goal=4, at_most=True)


async def following(results: AsyncIterator[Result]) -> Result | None:
    """The next result, or None at the end."""
    return await anext(results, None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__, epilog=EXIT_CODES)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint directory of `make train`")
    parser.add_argument("--output", type=Path, required=True, help="directory for bench.json")
    parser.add_argument("--only", choices=PARTS, help="run one part only")
    parser.add_argument("--quick", action="store_true", help="check that the benchmarks run; the results are useless")
    arguments = parser.parse_args()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the benchmarks measure the CPU
    logging.disable(logging.WARNING)  # advice of the exporter and the quantiser
    console, machine, results = Console(), describe_cpu(), []
    parts = [arguments.only] if arguments.only else PARTS
    if "variants" in parts and not find_spec("openvino"):
        console.print("The comparison with benchmark_app is left out: the Python package openvino is not installed")
    try:
        with console.status("Measuring"):
            for result in measure(arguments.checkpoint, parts, quick=arguments.quick):
                console.log(f"{result.name}: {result.text} {result.details}", markup=False)
                results.append(result)
    except BadInput as error:
        parser.error(str(error))
    except ClientError as error:
        sys.exit(f"{parser.prog}: {error}")
    title = f"{machine['name']}, {machine['cpus']} CPUs, {' '.join(machine['flags'])}"
    console.print(table_of(results, title))
    report = json.dumps({"machine": machine, "results": as_json(results)})
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "bench.json").write_text(f"{report}\n")
    print(report)


if __name__ == "__main__":
    main()
