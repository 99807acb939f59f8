"""What a data set is to training, calibration and gates: named classes and three splits of pixels with labels.

Samples are addressed by (epoch, index) and are a pure function of the two and the seed, so a resumed run sees what
the interrupted one would have seen. Kinds: ``digits`` (``digits.py``) and ``folder`` (``folder.py``).
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

from alexnet_export.errors import UserError

Pixels = npt.NDArray[np.uint8]
SplitName = Literal["train", "validation", "test"]


class Unreadable(Exception):
    """One image of a split cannot be decoded; its text names the file."""


class Split(Protocol):
    """A part of a data set."""

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int) -> tuple[Pixels, int]:
        """uint8 [224, 224, 3] RGB and the class. Raises ``Unreadable``."""
        ...


@dataclass(frozen=True)
class DataSet:
    """Class names, and the splits that no original image crosses.

    ``as_served`` are the training images without augmentation, to calibrate on; None if ``train`` has none.
    """

    name: str
    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    as_served: Split | None = None


def check_labels(labels: Sequence[str], origin: Path) -> None:
    """Refuse class names that a list of one name a line cannot hold.

    Raises:
        UserError: there are fewer than two, one is there twice, or has a line break or bytes that are no text.
    """
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UserError(f"{origin}: at least two class names are needed, none of them twice")
    odd = next((label for label in labels if not label.isprintable() or not label.strip()), None)
    if odd is not None:
        raise UserError(f"{origin}: the class name {odd!r} has characters that cannot be printed; rename it")


def open_dataset(kind: str, *, directory: Path | None = None, seed: int = 0, flip: bool = True) -> DataSet:
    """Open a data set by kind: ``digits`` needs nothing, ``folder`` needs ``directory``.

    Raises:
        UserError: unknown kind, or the folder is missing or laid out otherwise.
    """
    from alexnet_export import digits, folder  # here, because both build on this module

    if kind == "digits":
        return digits.open_digits(seed=seed)
    if kind == "folder":
        if directory is None:
            raise UserError("--data folder needs --data-dir, a directory with train/<class>/ and val/<class>/")
        return folder.open_folder(directory, seed=seed, flip=flip)
    raise UserError(f"--data {kind}: unknown; choose digits or folder")


@dataclass(frozen=True)
class Batch:
    """Pixels uint8 [N, 224, 224, 3], labels int64 [N], and the files that could not be read (not counted in N)."""

    images: Tensor
    labels: Tensor
    unreadable: tuple[str, ...]


def training_batches(
    split: Split, *, batch_size: int, seed: int, start: int, steps: int, workers: int = 0
) -> Iterator[Batch]:
    """Batches ``start`` to ``steps`` of an endless stream of shuffled epochs."""
    order = _Shuffled(len(split), seed=seed, start=start * batch_size, stop=steps * batch_size)
    yield from DataLoader(
        _Addressed(split), batch_size=batch_size, sampler=order, num_workers=workers, collate_fn=_collate
    )


def evaluation_batches(split: Split, *, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
    """Each sample of a split once, in order; or ``limit`` of them, the same random ones each time: folders come by class."""
    count = len(split) if limit is None else min(limit, len(split))
    order = [(0, index) for index in range(count)]
    if count < len(split):
        order = [(0, int(index)) for index in np.random.default_rng(0).permutation(len(split))[:count]]
    for start in range(0, count, batch_size):
        yield _collate([_Addressed(split)[address] for address in order[start : start + batch_size]])


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
    """Position i of the stream lies in epoch i // length, whose order depends on the seed and the epoch alone."""

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
