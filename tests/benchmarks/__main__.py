"""``make bench``: the project's own figures, as ratios from one run on this machine."""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path

from rich.console import Console
from rows import table_of
from variants import bench_variants

from alexnet_export import checkpoint as checkpoints
from alexnet_export.data import open_dataset
from alexnet_export.machine import cpu_description


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="directory for bench.json")
    arguments = parser.parse_args()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    logging.disable(logging.WARNING)  # the exporter's and the quantiser's advice
    console, machine = Console(), cpu_description()
    rows = []
    with console.status("Measuring"):
        for row in bench_variants(checkpoints.load(arguments.checkpoint), open_dataset("digits")):
            console.log(f"{row.name}: {row.ratio:.2f} {row.unit} ({row.low:.2f} - {row.high:.2f}) {row.figures}")
            rows.append(row)
    console.print(table_of(rows, f"{machine['name']}, {machine['processors']} processors"))
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "rows": [row.as_json() for row in rows]}
    (arguments.output / "bench.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
