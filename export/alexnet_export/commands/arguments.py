"""Arguments that several commands take, what they mean, and how a mistake ends a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from alexnet_export.atomic import user_cache
from alexnet_export.errors import GateFailed, UserError
from alexnet_export.terminal import complain, progress_bars

if TYPE_CHECKING:  # the heavy modules are imported by the commands that need them
    from alexnet_export.checkpoint import Checkpoint

T = TypeVar("T")

Data = Annotated[str, typer.Option("--data", help="digits, or folder for your own images")]
DataDir = Annotated[Path | None, typer.Option(help="with --data folder: holds train/<class>/ and val/<class>/")]
CheckpointDir = Annotated[Path | None, typer.Option("--checkpoint", help="directory of a trained checkpoint")]
Weights = Annotated[str | None, typer.Option(help="torchvision state dict: a file, or 'imagenet' to download")]
Labels = Annotated[Path | None, typer.Option(help="class names of --weights, one a line; ImageNet's if not given")]
Repository = Annotated[Path, typer.Option("--repository", help="the Triton model repository")]
DEFAULT_REPOSITORY = Path("model_repository")


def read_source(checkpoint: Path | None, weights: str | None, labels: Path | None) -> Checkpoint:
    """The network that a command is about.

    Raises:
        UserError: neither or both are given, or what is given cannot be read.
    """
    from alexnet_export import checkpoint as checkpoints

    if bool(checkpoint) == bool(weights):
        raise UserError("give either --checkpoint DIRECTORY or --weights FILE")
    return imported(weights, labels) if weights else checkpoints.load(checkpoint)  # type: ignore[arg-type]


def imported(weights: str, labels: Path | None) -> Checkpoint:
    """A checkpoint made of a torchvision state dict, downloaded if it is ImageNet's."""
    from alexnet_export.weights import download_imagenet, import_state_dict, read_labels

    names = read_labels(labels) if labels else None
    if weights != "imagenet":
        return import_state_dict(Path(weights), names)
    cache = user_cache()
    with progress_bars() as progress:
        task = progress.add_task("Downloading weights", total=None)
        path = download_imagenet(
            cache, on_bytes=lambda done, total: progress.update(task, completed=done, total=total or None)
        )
    return import_state_dict(path, names, origin="torchvision AlexNet_Weights.IMAGENET1K_V1")


def run(work: Callable[[], T]) -> T:
    """Do the work of a command; what goes wrong ends it with one line and an exit code."""
    try:
        return work()
    except UserError as error:
        complain(str(error))
        raise typer.Exit(2) from None
    except GateFailed as error:
        complain(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        complain("interrupted; nothing is half-written")
        raise typer.Exit(130) from None


def print_json(content: Any) -> None:
    """The last line of a command, for machines."""
    print(json.dumps(content), flush=True)
