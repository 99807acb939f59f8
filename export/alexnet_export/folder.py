"""Images of the user, one directory for each class, in the layout of ImageNet.

    train/<class>/*.jpg    val/<class>/*.jpg    test/<class>/*.jpg (optional; without it, val is also the test split)

Files are JPEG, PNG or WebP. Unreadable files are skipped and reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alexnet_client import images
from alexnet_client.errors import BadInput, ImageError
from alexnet_export.data import DataSet, Pixels, Unreadable, check_labels


@dataclass(frozen=True)
class ImageFolder:
    """One split of image files. ``augment``: random crop and flip as in the 2012 paper, section 4.1."""

    files: tuple[tuple[Path, int], ...]
    seed: int
    augment: bool = False
    flip: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, index: int, epoch: int) -> tuple[Pixels, int]:
        path, label = self.files[index]
        try:
            return self._pixels(path, index, epoch), label
        except ImageError as error:
            raise Unreadable(str(error)) from error

    def _pixels(self, path: Path, index: int, epoch: int) -> Pixels:
        if not self.augment:
            return images.load_pixels(path)
        random = np.random.default_rng((self.seed, epoch, index))
        image = np.asarray(images.resize_short_side(images.open_image(path), name=str(path)))
        top = random.integers(image.shape[0] - images.CROP + 1)
        left = random.integers(image.shape[1] - images.CROP + 1)
        crop = image[top : top + images.CROP, left : left + images.CROP]
        return np.ascontiguousarray(crop[:, ::-1] if self.flip and random.integers(2) else crop)


def open_folder(directory: Path, *, seed: int = 0, flip: bool = True) -> DataSet:
    """Find classes and files; classes are the directories in ``train``, sorted by name.

    Raises:
        BadInput: the directory or a split is missing, a class is empty, or a split lacks a class.
    """
    layout = "the directory must contain train/<class>/ and val/<class>/"
    if not directory.is_dir():
        raise BadInput(f"{directory}: no such directory; {layout}")
    train, validation, test = (directory / name for name in ("train", "val", "test"))
    for required in (train, validation):
        if not required.is_dir():
            raise BadInput(f"{directory}: {required.name}/ is missing; {layout}")
    labels = tuple(sorted(entry.name for entry in train.iterdir() if entry.is_dir()))
    if len(labels) < 2:
        raise BadInput(f"{train}: contains {len(labels)} class directories, at least two are required")
    check_labels(labels, train)
    files, held_out = _files(train, labels), ImageFolder(_files(validation, labels), seed)
    return DataSet(
        f"folder {directory.name}" + ("" if flip else ", not mirrored"),
        labels,
        train=ImageFolder(files, seed, augment=True, flip=flip),
        validation=held_out,
        test=ImageFolder(_files(test, labels), seed) if test.is_dir() else held_out,
        as_served=ImageFolder(files, seed),
    )


def _files(directory: Path, labels: tuple[str, ...]) -> tuple[tuple[Path, int], ...]:
    unknown = {entry.name for entry in directory.iterdir() if entry.is_dir()} - set(labels)
    if unknown:
        raise BadInput(f"{directory}: contains classes that are not in train/: {', '.join(sorted(unknown))}")
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(labels):
        if not (directory / name).is_dir():
            raise BadInput(f"{directory}: class {name} is missing; every class in train/ needs images here")
        found += [(path, label) for path in images.find_images(directory / name)]
    return tuple(found)
