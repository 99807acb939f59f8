"""Arguments shared by several commands."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alexnet_client.errors import BadInput, ClientError
from alexnet_client.files import cache_directory
from alexnet_client.terminal import errors_reported
from alexnet_export.errors import GateFailed
from alexnet_export.terminal import PROGRAM, progress_bars

if TYPE_CHECKING:  # the heavy modules are imported by the commands that need them
    from alexnet_export.checkpoint import Checkpoint

Data = Annotated[str, typer.Option("--data", help="data set: digits, or folder for your own images")]
DataDir = Annotated[
    Path | None, typer.Option(help="with --data folder: directory with train/<class>/ and val/<class>/")
]
CheckpointDir = Annotated[Path | None, typer.Option("--checkpoint", help="directory of a trained checkpoint")]
Weights = Annotated[str | None, typer.Option(help="torchvision state dict: a file, or 'imagenet' to download it")]
Labels = Annotated[
    Path | None, typer.Option(help="file with the class names of --weights, one a line", show_default="ImageNet's")
]
Repository = Annotated[Path, typer.Option("--repository", help="Triton model repository")]
DEFAULT_REPOSITORY = Path("model_repository")


def reported() -> AbstractContextManager[None]:
    """Report expected errors as one line, with exit code 1 or 2."""
    return errors_reported(PROGRAM, ClientError, GateFailed)


def read_source(checkpoint: Path | None, weights: str | None, labels: Path | None) -> Checkpoint:
    """Read the network that a command works on.

    Raises:
        BadInput: none or both are given, or the file cannot be read.
    """
    from alexnet_export import checkpoint as checkpoints

    if checkpoint and not weights:
        return checkpoints.load(checkpoint)
    if weights and not checkpoint:
        return import_weights(weights, labels)
    raise BadInput("give either --checkpoint DIRECTORY or --weights FILE")


def import_weights(weights: str, labels: Path | None) -> Checkpoint:
    """Create a checkpoint from a torchvision state dict; download that of ImageNet."""
    from alexnet_export.weights import download_imagenet, import_state_dict, read_labels

    names = read_labels(labels) if labels else None
    if weights != "imagenet":
        return import_state_dict(Path(weights), names)
    with progress_bars() as progress:
        task = progress.add_task("Downloading weights", total=None)
        path = download_imagenet(
            cache_directory(),
            on_bytes=lambda done, total: progress.update(task, completed=done, total=total or None),
        )
    return import_state_dict(path, names, origin="torchvision AlexNet_Weights.IMAGENET1K_V1")
