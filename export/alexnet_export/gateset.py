"""Which images calibrate, choose and judge a model, read once: training, validation and test, never one for another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alexnet_export.data import DataSet, Split, evaluation_batches
from alexnet_export.errors import UserError

MINIMUM_IMAGES = 500
MAXIMUM_IMAGES = 4096
"""600 MB of pixels; more would tell little more."""
CALIBRATION_IMAGES = 512
_READ_AT_ONCE = 64


@dataclass(frozen=True)
class Images:
    """Pixels uint8 [N, 224, 224, 3], labels int64 [N] (-1: not one of the network's), a line for each unreadable file."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    unreadable: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def gate_images(
    dataset: DataSet, labels: tuple[str, ...], *, on_images: Callable[[int], None] = lambda n: None
) -> Images:
    """The images a release is judged on: the test split; if it is small, validation and training images without labels.

    A test image of the network's own classes keeps its label, all others have -1: accuracy is a matter of held-out
    images, equality of any.

    Raises:
        UserError: fewer than ``MINIMUM_IMAGES`` can be read.
    """
    found = _read(dataset.test, MAXIMUM_IMAGES, on_images)
    if labels != dataset.labels:
        found = Images(found.pixels, np.full(len(found), -1), found.unreadable)
    for split in (dataset.validation, dataset.train):
        if len(found) < MINIMUM_IMAGES and split is not dataset.test:
            more = _read(split, MINIMUM_IMAGES - len(found), on_images)
            found = Images(
                np.concatenate([found.pixels, more.pixels]),
                np.concatenate([found.labels, np.full(len(more), -1)]),
                found.unreadable + more.unreadable,
            )
    if len(found) < MINIMUM_IMAGES:
        raise UserError(
            f"{len(found)} readable images to compare on, {MINIMUM_IMAGES} are needed; add some to the data set"
        )
    return found


def choice_images(dataset: DataSet, labels: tuple[str, ...]) -> Images:
    """Images to choose between ways of quantising by: validation's, or training's where those are what judges.

    Raises:
        UserError: none can be read.
    """
    judges = dataset.validation is dataset.test
    found = _read(_as_served(dataset) if judges else dataset.validation, MAXIMUM_IMAGES // 4)
    if not len(found):
        raise UserError(f"{dataset.name}: no readable validation images to choose a way of quantising by; add some")
    return found if labels == dataset.labels else Images(found.pixels, np.full(len(found), -1), found.unreadable)


def calibration_images(dataset: DataSet) -> Images:
    """Training images as they would be served (no augmentation), for the ranges of the activations.

    Raises:
        UserError: none can be read.
    """
    found = _read(_as_served(dataset), CALIBRATION_IMAGES)
    if not len(found):
        raise UserError(
            f"{dataset.name}: no readable training images to calibrate on; add some, or publish with PRECISION=fp32"
        )
    return found


def _as_served(dataset: DataSet) -> Split:
    return dataset.train if dataset.as_served is None else dataset.as_served


def _read(split: Split, wanted: int, on_images: Callable[[int], None] = lambda n: None) -> Images:
    """Up to ``wanted`` readable images, drawn at random but the same each time."""
    batches, count = [], 0
    for batch in evaluation_batches(_Shuffled(split), batch_size=_READ_AT_ONCE):
        batches.append(batch)
        count += len(batch.labels)
        on_images(len(batch.labels))
        if count >= wanted:
            break
    if not batches:
        return Images(np.empty((0, 224, 224, 3), np.uint8), np.empty(0, np.int64), ())
    return Images(
        np.concatenate([batch.images.numpy() for batch in batches])[:wanted],
        np.concatenate([batch.labels.numpy() for batch in batches])[:wanted],
        tuple(line for batch in batches for line in batch.unreadable),
    )


class _Shuffled:
    """A split in a random order of its own: folders come by class, and not all may be looked at."""

    def __init__(self, split: Split) -> None:
        self.split, self.order = split, np.random.default_rng(0).permutation(len(split))

    def __len__(self) -> int:
        return len(self.order)

    def sample(self, index: int, epoch: int) -> tuple[npt.NDArray[np.uint8], int]:
        return self.split.sample(int(self.order[index]), epoch)
