"""``alexnet-export verify``: the gates again, on a published release, in this process or through a running server."""

from __future__ import annotations

from typing import Annotated, Any

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
from alexnet_export.terminal import console, progress_bars, variants_table


def verify(
    checkpoint: CheckpointDir = None,
    weights: Weights = None,
    labels: Labels = None,
    repository: Repository = DEFAULT_REPOSITORY,
    data: Data = "digits",
    data_dir: DataDir = None,
    served: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="ask this Triton instead of ONNX Runtime")
    ] = None,
    model: Annotated[str, typer.Option(help="its name in the repository and on the server")] = "alexnet",
) -> None:
    """Check a release's files against its manifest, and its answers against PyTorch's; exits 1 if a gate fails."""

    def work() -> dict[str, Any]:
        from alexnet_export.audit import verify_release
        from alexnet_export.data import open_dataset

        source = read_source(checkpoint, weights, labels)
        dataset = open_dataset(data, directory=data_dir)
        with progress_bars() as progress:
            task = progress.add_task("Judging", total=None)
            found = verify_release(
                source,
                dataset,
                repository,
                served=served,
                model=model,
                on_images=lambda images: progress.advance(task, images),
            )
        console.print(variants_table([found]))
        console.print(f"Version {found['version']} holds its gate; answered by {found['answered_by']}.")
        return found

    print_json(run(work))
