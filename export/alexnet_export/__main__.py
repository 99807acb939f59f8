"""``alexnet-export``: train, export, publish. With ``terminal``, the only module that prints."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from alexnet_export.errors import GateFailed, UserError
from alexnet_export.terminal import complain, console, progress_bars, show_training

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Train an AlexNet, export it, publish it to Triton.")
DEFAULT_EPOCHS = 10
T = TypeVar("T")

Data = Annotated[str, typer.Option("--data", help="digits, or folder for your own images")]
DataDir = Annotated[Path | None, typer.Option(help="with --data folder: holds train/<class>/ and val/<class>/")]
Weights = Annotated[str | None, typer.Option(help="torchvision state dict: a file, or 'imagenet' to download")]
Labels = Annotated[Path | None, typer.Option(help="class names of --weights, one a line; ImageNet's if not given")]


@app.command()
def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="directory for the checkpoint")],
    data: Data = "digits",
    data_dir: DataDir = None,
    steps: Annotated[int, typer.Option(help="optimizer steps; default 300 for digits")] = 0,
    epochs: Annotated[
        float, typer.Option(help="instead of --steps: passes over the images; default 10 for a folder")
    ] = 0,
    batch_size: int = 32,
    optimizer: Annotated[str, typer.Option(help="adamw, or sgd as in the 2012 paper")] = "adamw",
    learning_rate: Annotated[float, typer.Option(help="peak of the schedule; 0: the optimizer's default")] = 0,
    weight_decay: float = 5e-4,
    schedule: Annotated[str, typer.Option(help="onecycle, cosine or constant")] = "onecycle",
    label_smoothing: float = 0.0,
    dropout: float = 0.2,
    flip: Annotated[bool, typer.Option(help="mirror training images at random (folder)")] = True,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16")] = "auto",
    evaluate_every: Annotated[int, typer.Option(help="steps between validations; default 75, or an epoch")] = 0,
    seed: int = 0,
    workers: Annotated[int, typer.Option(help="processes that load images")] = 0,
    weights: Weights = None,
    labels: Labels = None,
    resume: Annotated[bool, typer.Option(help="go on with an interrupted run, if there is one")] = False,
) -> None:
    """Train, keep the weights that validate best, and test them."""
    from alexnet_export.data import open_dataset
    from alexnet_export.digits import EVALUATION_VARIANTS
    from alexnet_export.machine import keep_freed_memory
    from alexnet_export.options import TrainOptions

    def work() -> dict[str, Any]:
        keep_freed_memory()
        dataset = open_dataset(data, directory=data_dir, seed=seed, flip=flip)
        if not math.isfinite(epochs):
            raise UserError(f"--epochs must be a number, got {epochs}")
        epoch = max(1, len(dataset.train) // max(1, batch_size))
        quick = data == "digits"  # the demo: a quarter of the validation canvases is enough to follow it
        wanted = steps or round(epochs * epoch) or (TrainOptions.steps if quick else DEFAULT_EPOCHS * epoch)
        options = TrainOptions(
            steps=wanted,
            batch_size=batch_size,
            optimizer=optimizer,  # type: ignore[arg-type]  # TrainOptions checks it
            learning_rate=learning_rate or (0.01 if optimizer == "sgd" else TrainOptions.learning_rate),
            weight_decay=weight_decay,
            schedule=schedule,  # type: ignore[arg-type]
            label_smoothing=label_smoothing,
            dropout=dropout,
            precision=precision,  # type: ignore[arg-type]
            evaluate_every=evaluate_every or (TrainOptions.evaluate_every if quick else epoch),
            evaluation_limit=len(dataset.validation) // EVALUATION_VARIANTS if quick else None,
            seed=seed,
            workers=workers,
        )
        start_from = _imported(weights, labels) if weights else None
        return show_training(dataset, options, output, resume=resume, start_from=start_from)

    _print_json(_run(work))


@app.command()
def export(
    checkpoint: Annotated[Path | None, typer.Option(help="directory of a trained checkpoint")] = None,
    weights: Weights = None,
    labels: Labels = None,
    repository: Annotated[Path, typer.Option(help="the Triton model repository")] = Path("model_repository"),
    data: Data = "digits",
    data_dir: DataDir = None,
) -> None:
    """Export to ONNX, prove it equal to PyTorch on real images, and publish it as the next version."""
    from alexnet_export import checkpoint as checkpoints
    from alexnet_export.data import open_dataset
    from alexnet_export.pipeline import Progress as Step
    from alexnet_export.pipeline import export_release

    def work() -> dict[str, Any]:
        if bool(checkpoint) == bool(weights):
            raise UserError("give either --checkpoint DIRECTORY or --weights FILE")
        source = _imported(weights, labels) if weights else checkpoints.load(checkpoint)  # type: ignore[arg-type]
        dataset = open_dataset(data, directory=data_dir)
        with progress_bars() as progress:
            tasks: dict[str, Any] = {}

            def on_progress(step: Step) -> None:
                if step.step not in tasks:
                    tasks[step.step] = progress.add_task(step.step, total=step.total)
                progress.update(tasks[step.step], completed=step.done)

            exported = export_release(source, dataset, repository, on_progress=on_progress)
        parity = exported.parity
        for line in parity.unreadable:
            complain(f"skipped {line}")
        table = Table("gate", "found", "demanded")
        table.add_row("best class as PyTorch's", f"{parity.same_top1} of {parity.images}", "all of at least 500")
        table.add_row("largest logit difference", f"{parity.max_logit_difference:.1e} of the range", "at most 1e-04")
        table.add_row("batch sizes run", ", ".join(map(str, parity.batch_sizes)), "1, 2, 7 and 64")
        if parity.accuracy is not None:
            table.add_row("accuracy of the file", f"{parity.accuracy:.1%}", "-")
        console.print(table)
        console.print(f"Published {exported.release.directory} ({exported.model_bytes / 1e6:.0f} MB)")
        return {
            "version": exported.release.version,
            "directory": str(exported.release.directory),
            "classes": len(source.labels),
            "images": parity.images,
            "max_logit_difference": parity.max_logit_difference,
            "accuracy": parity.accuracy,
        }

    _print_json(_run(work))


@app.command()
def samples(
    output: Annotated[Path, typer.Option("--output", "-o", help="directory for the images")],
    data: Data = "digits",
    data_dir: DataDir = None,
    count: Annotated[int, typer.Option(min=1, help="how many images")] = 200,
) -> None:
    """Write held-out images as PNG files, one directory a class."""
    from alexnet_export.data import open_dataset
    from alexnet_export.samples import write_samples

    def work() -> int:
        return write_samples(open_dataset(data, directory=data_dir), output, count=count)

    written = _run(work)
    console.print(f"{written} images in {output}")


def main() -> None:
    """Entry point."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would report to its makers otherwise
    # It warns that torchvision's operators are absent, which this network does not use.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    app()


def _imported(weights: str, labels: Path | None) -> Any:
    from alexnet_export.weights import download_imagenet, import_state_dict, read_labels

    names = read_labels(labels) if labels else None
    if weights != "imagenet":
        return import_state_dict(Path(weights), names)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet-serving"
    with progress_bars() as progress:
        task = progress.add_task("Downloading weights", total=None)
        path = download_imagenet(
            cache, on_bytes=lambda done, total: progress.update(task, completed=done, total=total or None)
        )
    return import_state_dict(path, names, origin="torchvision AlexNet_Weights.IMAGENET1K_V1")


def _run(work: Callable[[], T]) -> T:
    try:
        return work()
    except UserError as error:
        complain(str(error))
        raise typer.Exit(2) from None
    except GateFailed as error:
        complain(f"{error}; nothing was published")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        complain("interrupted; nothing is half-written")
        raise typer.Exit(130) from None


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    main()
