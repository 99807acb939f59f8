"""``alexnet-export verify``: run the gate of a published release again, in this process or through a running server."""

from __future__ import annotations

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
from alexnet_export.terminal import progress_bars, variants_table


def verify(
    checkpoint: CheckpointDir = None,
    weights: Weights = None,
    labels: Labels = None,
    repository: Repository = DEFAULT_REPOSITORY,
    data: Data = "digits",
    data_dir: DataDir = None,
    served: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="validate the answers of this Triton server")
    ] = None,
) -> None:
    """Compare the files of the newest release with its manifest, and its answers with PyTorch's."""
    with reported():
        from alexnet_export.data import open_dataset
        from alexnet_export.verify import verify_release

        source = read_source(checkpoint, weights, labels)
        dataset = open_dataset(data, directory=data_dir)
        with progress_bars() as progress:
            task = progress.add_task("Validating", total=None)
            found = verify_release(
                source,
                dataset,
                repository,
                served=served,
                on_images=lambda images: progress.advance(task, images),
            )
        console.print(variants_table([found]))
        console.print(f"Version {found['version']} passed its gate; answered by {found['answered_by']}.")
        print_json(found)
