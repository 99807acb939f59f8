"""Images for calibration, for choosing a quantisation, and for the gates: training, validation and test images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from alexnet_client.errors import BadInput
from alexnet_export.data import DataSet, Split, evaluation_batches

MINIMUM_IMAGES = 500
MAXIMUM_IMAGES = 4096
"""600 MB of pixels; more images hardly change the result."""
CALIBRATION_IMAGES = 512
_BATCH_SIZE = 64


@dataclass(frozen=True)
class Images:
    """Pixels uint8 [N, 224, 224, 3], labels int64 [N] (-1: unknown), and a line for each unreadable file."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    unreadable: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def without_labels(self) -> Images:
        """The same images with unknown labels."""
        return replace(self, labels=np.full(len(self), -1))


def gate_images(
    dataset: DataSet, labels: tuple[str, ...], *, minimum: int = MINIMUM_IMAGES, maximum: int = MAXIMUM_IMAGES
) -> Images:
    """Images for the gates: the test split; a small one is filled up with validation and training images.

    Only test images of the network's own classes keep their label: accuracy is measured on held-out images, equality
    of answers on any image.

    Args:
        dataset: source of the images.
        labels: class names of the network.
        minimum: smallest number of images.
        maximum: largest number of test images.

    Raises:
        BadInput: fewer than ``minimum`` images are readable.
    """
    found = _read(dataset.test, maximum)
    if labels != dataset.labels:
        found = found.without_labels()
    for split in (dataset.validation, dataset.train):
        if len(found) < minimum and split is not dataset.test:
            more = _read(split, minimum - len(found)).without_labels()
            found = Images(
                np.concatenate([found.pixels, more.pixels]),
                np.concatenate([found.labels, more.labels]),
                found.unreadable + more.unreadable,
            )
    if len(found) < minimum:
        raise BadInput(
            f"the data set has {len(found)} readable images to compare answers on, {minimum} are required; add images"
        )
    return found


def selection_images(dataset: DataSet, labels: tuple[str, ...]) -> Images:
    """Validation images, to choose a quantisation on; training images if the gates use the validation images.

    Raises:
        BadInput: no image is readable.
    """
    validation_is_test = dataset.validation is dataset.test
    found = _read(_as_served(dataset) if validation_is_test else dataset.validation, MAXIMUM_IMAGES // 4)
    if not len(found):
        raise BadInput(f"{dataset.name}: no readable validation image to choose a quantisation on; add some")
    return found if labels == dataset.labels else found.without_labels()


def calibration_images(dataset: DataSet) -> Images:
    """Training images without augmentation, to calibrate the ranges of the activations.

    Raises:
        BadInput: no image is readable.
    """
    found = _read(_as_served(dataset), CALIBRATION_IMAGES)
    if not len(found):
        raise BadInput(
            f"{dataset.name}: no readable training image for calibration; add some, or publish with PRECISION=fp32"
        )
    return found


def _as_served(dataset: DataSet) -> Split:
    return dataset.train if dataset.as_served is None else dataset.as_served


def _read(split: Split, wanted: int) -> Images:
    """Up to ``wanted`` readable images in random order, the same ones each time."""
    batches, count = [], 0
    for batch in evaluation_batches(split, batch_size=_BATCH_SIZE):
        batches.append(batch)
        count += len(batch.labels)
        if count >= wanted:
            break
    return Images(
        np.concatenate([batch.images.numpy() for batch in batches])[:wanted],
        np.concatenate([batch.labels.numpy() for batch in batches])[:wanted],
        tuple(line for batch in batches for line in batch.unreadable),
    )
