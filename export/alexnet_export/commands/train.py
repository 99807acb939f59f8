"""``alexnet-export train`` and ``samples``: a checkpoint, and held-out images as files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from alexnet_export.commands.arguments import Data, DataDir, Labels, Weights, imported, print_json, run
from alexnet_export.errors import UserError
from alexnet_export.terminal import console, show_training

DEFAULT_EPOCHS = 10


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
        start_from = imported(weights, labels) if weights else None
        return show_training(dataset, options, output, resume=resume, start_from=start_from)

    print_json(run(work))


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

    written = run(work)
    console.print(f"{written} images in {output}")
