"""``alexnet-export report``: a page about the network that a person would rather look at than read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alexnet_export.commands.arguments import (
    DEFAULT_REPOSITORY,
    CheckpointDir,
    Data,
    DataDir,
    Labels,
    Repository,
    Weights,
    print_json,
    read_source,
    run,
)
from alexnet_export.terminal import console, progress_bars

if TYPE_CHECKING:
    from alexnet_export.report.write import Summary


def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="directory for index.html and report.json")],
    checkpoint: CheckpointDir = None,
    weights: Weights = None,
    labels: Labels = None,
    repository: Repository = DEFAULT_REPOSITORY,
    data: Data = "digits",
    data_dir: DataDir = None,
) -> None:
    """Draw the network's filters, sizes, invariances and mistakes, and compare the variants of its newest release."""

    def work() -> Summary:
        from alexnet_export.data import open_dataset
        from alexnet_export.releases import releases
        from alexnet_export.report.write import write_report
        from alexnet_export.train import HISTORY

        source = read_source(checkpoint, weights, labels)
        dataset = open_dataset(data, directory=data_dir)
        ours = [
            release
            for release in releases(repository)
            if release.manifest.get("checkpoint", {}).get("sha256") == source.sha256
        ]
        with progress_bars() as progress:
            task = progress.add_task("Drawing the report", total=None)
            return write_report(
                source,
                dataset,
                output,
                history=checkpoint / HISTORY if checkpoint else None,
                release=ours[-1] if ours else None,
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            )

    found: Any = run(work)
    console.print(f"Report: {found.page}")
    print_json(
        {
            "page": str(found.page),
            "data": str(found.data),
            "accuracy": found.accuracy,
            "parameters": found.parameters,
            "multiply_adds": found.multiply_adds,
        }
    )
