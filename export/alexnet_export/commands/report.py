"""``alexnet-export report``: write the model report, a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alexnet_client.terminal import console, print_json
from alexnet_export.commands.arguments import (
    DEFAULT_REPOSITORY,
    CheckpointDir,
    Data,
    DataDir,
    Labels,
    Repository,
    Weights,
    read_source,
    reported,
)
from alexnet_export.terminal import progress_bars


def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="directory for index.html and report.json")],
    checkpoint: CheckpointDir = None,
    weights: Weights = None,
    labels: Labels = None,
    repository: Repository = DEFAULT_REPOSITORY,
    data: Data = "digits",
    data_dir: DataDir = None,
) -> None:
    """Write a page about the network: filters, layers, invariances, mistakes, and the variants of its newest release."""
    with reported():
        from alexnet_export.data import open_dataset
        from alexnet_export.releases import releases
        from alexnet_export.report.write import write_report
        from alexnet_export.train import HISTORY

        source = read_source(checkpoint, weights, labels)
        dataset = open_dataset(data, directory=data_dir)
        of_source = [
            release
            for release in releases(repository)
            if release.manifest.get("checkpoint", {}).get("sha256") == source.sha256
        ]
        with progress_bars() as progress:
            task = progress.add_task("Writing the report", total=None)
            summary = write_report(
                source,
                dataset,
                output,
                history=checkpoint / HISTORY if checkpoint else None,
                release=of_source[-1] if of_source else None,
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
    console.print(f"Report: {summary.page}", soft_wrap=True)
    print_json(
        {
            "page": str(summary.page),
            "data": str(summary.data),
            "accuracy": summary.accuracy,
            "parameters": summary.parameters,
            "multiply_adds": summary.multiply_adds,
        }
    )
