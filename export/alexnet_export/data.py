"""Data sets for training, calibration and gates: named classes and three splits of pixels with labels.

A sample depends only on the seed, the epoch and the index, so that a resumed run reads the same images as an
uninterrupted one. Kinds of data sets: ``digits`` (``digits.py``) and ``folder`` (``folder.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from alexnet_client.errors import BadInput

Pixels = npt.NDArray[np.uint8]
SplitName = Literal["train", "validation", "test"]


class Unreadable(Exception):
    """An image of a split cannot be decoded; the text names the file."""


class Split(Protocol):
    """A part of a data set."""

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int) -> tuple[Pixels, int]:
        """uint8 [224, 224, 3] RGB and the class. Raises ``Unreadable``."""
        ...


@dataclass(frozen=True)
class DataSet:
    """Class names and splits; no image is in two splits.

    ``as_served`` contains the training images without augmentation, for calibration; None if ``train`` has no
    augmentation.
    """

    name: str
    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    as_served: Split | None = None


def check_labels(labels: Sequence[str], origin: Path) -> None:
    """Check that class names can be written to labels.txt, one a line.

    Raises:
        BadInput: there are fewer than two names, one occurs twice, or one contains characters that cannot be printed.
    """
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise BadInput(f"{origin}: at least two different class names are required")
    odd = next((label for label in labels if not label.isprintable() or not label.strip()), None)
    if odd is not None:
        raise BadInput(f"{origin}: the class name {odd!r} contains characters that cannot be printed; rename it")


def open_dataset(kind: str, *, directory: Path | None = None, seed: int = 0, flip: bool = True) -> DataSet:
    """Open a data set.

    Args:
        kind: "digits" or "folder".
        directory: for "folder": contains train/<class>/ and val/<class>/.
        seed: of the augmentation.
        flip: mirror training images at random (folder only).

    Raises:
        BadInput: the kind is unknown, or the folder is missing or has another layout.
    """
    from alexnet_export import digits, folder  # both import this module

    if kind == "digits":
        return digits.open_digits(seed=seed)
    if kind == "folder":
        if directory is None:
            raise BadInput("--data folder requires --data-dir, a directory with train/<class>/ and val/<class>/")
        return folder.open_folder(directory, seed=seed, flip=flip)
    raise BadInput(f"--data {kind}: unknown; choose digits or folder")


@dataclass(frozen=True)
class Batch:
    """Pixels uint8 [N, 224, 224, 3], labels int64 [N], and a line for each unreadable file (not counted in N)."""

    images: Tensor
    labels: Tensor
    unreadable: tuple[str, ...]


def training_batches(
    split: Split, *, batch_size: int, seed: int, start: int, steps: int, workers: int = 0
) -> Iterator[Batch]:
    """Batches ``start`` to ``steps`` of an infinite stream of shuffled epochs."""
    order = _Shuffled(len(split), seed=seed, start=start * batch_size, stop=steps * batch_size)
    yield from DataLoader(
        _Addressed(split), batch_size=batch_size, sampler=order, num_workers=workers, collate_fn=_collate
    )


def evaluation_batches(split: Split, *, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
    """Each sample of a split once, or ``limit`` of them; in random order (folders are sorted by class), the same each time."""
    order = np.random.default_rng(0).permutation(len(split))[:limit]
    for start in range(0, len(order), batch_size):
        yield _collate([_Addressed(split)[0, int(index)] for index in order[start : start + batch_size]])


class _Addressed(Dataset[tuple[Pixels, int] | str]):
    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, address: tuple[int, int]) -> tuple[Pixels, int] | str:
        epoch, index = address
        try:
            return self.split.sample(index, epoch)
        except Unreadable as error:
            return str(error)


class _Shuffled(Sampler[tuple[int, int]]):
    """Position i of the stream is in epoch i // length; the order of an epoch depends only on the seed and the epoch."""

    def __init__(self, length: int, *, seed: int, start: int, stop: int) -> None:
        self.length, self.seed, self.start, self.stop = length, seed, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order: npt.NDArray[np.int64] = np.empty(0, np.int64)
        of_epoch = -1
        for position in range(self.start, self.stop):
            epoch, place = divmod(position, self.length)
            if epoch != of_epoch:
                order, of_epoch = np.random.default_rng((self.seed, epoch)).permutation(self.length), epoch
            yield epoch, int(order[place])


def _collate(samples: Sequence[tuple[Pixels, int] | str]) -> Batch:
    good = [sample for sample in samples if not isinstance(sample, str)]
    images = np.stack([pixels for pixels, _ in good]) if good else np.empty((0, 224, 224, 3), np.uint8)
    return Batch(
        torch.from_numpy(images),
        torch.tensor([label for _, label in good], dtype=torch.int64),
        tuple(sample for sample in samples if isinstance(sample, str)),
    )
