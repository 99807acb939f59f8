"""``make bench``: measure the project on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from client_overhead import bench_client
from load_generator import bench_load_generator
from monitoring_overhead import bench_monitoring
from results import Result, as_json, table_of
from rich.console import Console
from server_capacity import bench_capacity
from servers import published
from serving import bench_serving
from variants import bench_variants, make_models

from alexnet_client.errors import BadInput, ClientError
from alexnet_client.terminal import EXIT_CODES
from alexnet_export import checkpoint as checkpoints
from alexnet_export.data import open_dataset
from alexnet_export.machine import describe_cpu

WITH_SERVER = {
    "serving": bench_serving,
    "client": bench_client,
    "monitoring": bench_monitoring,
    "capacity": bench_capacity,
}
PARTS = ("variants", *WITH_SERVER, "load-generator")


def measure(checkpoint: Path, parts: Sequence[str], *, quick: bool) -> Iterator[Result]:
    """The results of the named parts."""
    rounds = {"rounds": 1} if quick else {}
    short = {"rounds": 1, "seconds": 0.3} if quick else {}
    with TemporaryDirectory(prefix="alexnet-bench-") as scratch, asyncio.Runner() as runner:
        if set(parts) != {"load-generator"}:
            loaded = checkpoints.load(checkpoint)
            models = make_models(loaded, open_dataset("digits"), Path(scratch))
            repositories = {
                precision: published(Path(scratch, precision), precision, models[precision], loaded.labels)
                for precision in ("int8", "fp32")
            }
        for part in parts:
            if part == "variants":
                yield from bench_variants(models, **rounds)
            elif part == "load-generator":
                yield from bench_load_generator(**short)
            else:
                results = WITH_SERVER[part](repositories, **short)
                while (result := runner.run(following(results))) is not None:
                    yield result


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
    logging.disable(logging.WARNING)  # advice of the exporter and the quantiser
    console, machine, results = Console(), describe_cpu(), []
    parts = [arguments.only] if arguments.only else PARTS
    try:
        with console.status("Measuring"):
            for result in measure(arguments.checkpoint, parts, quick=arguments.quick):
                console.log(f"{result.name}: {result.text} {result.details}", markup=False)
                results.append(result)
    except BadInput as error:
        parser.error(str(error))
    except ClientError as error:
        sys.exit(f"{parser.prog}: {error}")
    console.print(table_of(results, f"{machine['name']}, {machine['cpus']} CPUs"))
    report = json.dumps({"machine": machine, "results": as_json(results)})
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "bench.json").write_text(f"{report}\n")
    print(report)


if __name__ == "__main__":
    main()
