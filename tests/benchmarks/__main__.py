"""``make bench``: the project's own figures, as ratios from one run on this machine."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from capacity_side import bench_capacity
from client_side import bench_client
from load_side import bench_load
from rich.console import Console
from rows import Row, markdown_of, table_of
from serving import bench_serving
from variants import bench_variants, make_models
from watch_side import bench_watching

from alexnet_export import checkpoint as checkpoints
from alexnet_export.data import open_dataset
from alexnet_export.machine import cpu_description


def measure(checkpoint: Path, only: str | None) -> Iterator[Row]:
    """The rows of every part, or of one."""
    if only == "load":
        yield from bench_load()
        return
    loaded, dataset = checkpoints.load(checkpoint), open_dataset("digits")
    with TemporaryDirectory(prefix="alexnet-bench-") as scratch:
        models = make_models(loaded, dataset, Path(scratch))
    if only in (None, "variants"):
        yield from bench_variants(models)
    if only in (None, "serving"):
        yield from bench_serving(models, loaded.labels)
    if only in (None, "client"):
        yield from bench_client(models, loaded.labels)
    if only in (None, "watching"):
        yield from bench_watching(models, loaded.labels)
    if only in (None, "capacity"):
        yield from bench_capacity(models, loaded.labels)
    if only is None:
        yield from bench_load()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="directory for bench.json and bench.md")
    parser.add_argument(
        "--only",
        choices=["variants", "serving", "client", "watching", "capacity", "load"],
        help="measure only one part",
    )
    arguments = parser.parse_args()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    logging.disable(logging.WARNING)  # the exporter's and the quantiser's advice
    console, machine = Console(), cpu_description()
    rows = []
    with console.status("Measuring"):
        for row in measure(arguments.checkpoint, arguments.only):
            console.log(f"{row.name}: {row.found} {row.figures}")
            rows.append(row)
    title = f"{machine['name']}, {machine['processors']} processors"
    console.print(table_of(rows, title))
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "rows": [row.as_json() for row in rows]}
    (arguments.output / "bench.md").write_text(markdown_of(rows, title))
    (arguments.output / "bench.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
