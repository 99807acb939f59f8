"""``alexnet-export train`` and ``samples``: train a checkpoint, and write test images as files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from alexnet_client.errors import BadInput
from alexnet_client.terminal import console, print_json
from alexnet_export.commands.arguments import Data, DataDir, Labels, Weights, import_weights, reported
from alexnet_export.terminal import show_training

DEFAULT_EPOCHS = 10


def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="directory for the checkpoint")],
    data: Data = "digits",
    data_dir: DataDir = None,
    steps: Annotated[int, typer.Option(help="optimizer steps", show_default="300 for digits")] = 0,
    epochs: Annotated[
        float,
        typer.Option(help="passes over the training images, instead of --steps", show_default="10 for a folder"),
    ] = 0,
    batch_size: Annotated[int, typer.Option(help="images in a training batch")] = 32,
    learning_rate: Annotated[float, typer.Option(help="highest learning rate of the one-cycle schedule")] = 4e-4,
    weight_decay: Annotated[float, typer.Option(help="weight decay")] = 5e-4,
    dropout: Annotated[float, typer.Option(help="dropout probability of the fully connected layers")] = 0.2,
    flip: Annotated[bool, typer.Option(help="mirror training images at random (folder)")] = True,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, or auto: bf16 if the device has instructions for it")
    ] = "auto",
    evaluate_every: Annotated[
        int, typer.Option(help="steps between two validations", show_default="75 for digits, an epoch for a folder")
    ] = 0,
    seed: Annotated[int, typer.Option(help="random seed of weights, data order, augmentation and dropout")] = 0,
    workers: Annotated[int, typer.Option(help="processes that load images")] = 0,
    weights: Weights = None,
    labels: Labels = None,
    resume: Annotated[bool, typer.Option(help="continue an interrupted run, if there is one")] = False,
) -> None:
    """Train a network, keep the weights with the best validation accuracy, and test them.

    With --weights, the training starts from these weights.
    """
    with reported():
        from alexnet_export.data import open_dataset
        from alexnet_export.digits import EVALUATION_VARIANTS
        from alexnet_export.machine import keep_freed_memory
        from alexnet_export.options import TrainOptions

        keep_freed_memory()
        dataset = open_dataset(data, directory=data_dir, seed=seed, flip=flip)
        if not math.isfinite(epochs):
            raise BadInput(f"--epochs must be a number, got {epochs}")
        epoch = max(1, len(dataset.train) // max(1, batch_size))
        demo = data == "digits"  # in the demo, a quarter of the validation canvases is enough
        options = TrainOptions(
            steps=steps or round(epochs * epoch) or (TrainOptions.steps if demo else DEFAULT_EPOCHS * epoch),
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            dropout=dropout,
            precision=precision,  # type: ignore[arg-type]  # TrainOptions checks it
            evaluate_every=evaluate_every or (TrainOptions.evaluate_every if demo else epoch),
            evaluation_limit=len(dataset.validation) // EVALUATION_VARIANTS if demo else None,
            seed=seed,
            workers=workers,
        )
        start_from = import_weights(weights, labels) if weights else None
        print_json(show_training(dataset, options, output, resume=resume, start_from=start_from))


def samples(
    output: Annotated[Path, typer.Option("--output", "-o", help="directory for the images")],
    data: Data = "digits",
    data_dir: DataDir = None,
    count: Annotated[int, typer.Option(min=1, help="number of images")] = 200,
) -> None:
    """Write images of the test split as PNG files, one directory for each class."""
    with reported():
        from alexnet_export.data import open_dataset
        from alexnet_export.samples import write_samples

        written = write_samples(open_dataset(data, directory=data_dir), output, count=count)
    console.print(f"Wrote {written} images to {output}")
