"""Held-out images as files, one directory a class: something to classify that the model has never seen."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_export.atomic import writing
from alexnet_export.data import DataSet, Unreadable
from alexnet_export.errors import UserError


def write_samples(dataset: DataSet, directory: Path, *, count: int, seed: int = 0) -> int:
    """Write ``count`` images of the test split, drawn at random, as PNG into ``directory/<class>/``.

    Args:
        dataset: where from.
        directory: replaced whole.
        count: how many, or all if there are fewer.
        seed: of the draw.

    Returns:
        How many were written.

    Raises:
        UserError: ``directory`` holds something else than such images, or cannot be written.
    """
    files = [path for path in directory.rglob("*") if not path.is_dir()] if directory.is_dir() else [directory]
    if directory.exists() and not all(_is_sample(path) for path in files):
        raise UserError(f"{directory}: holds other files than sample images; choose another directory")
    order = np.random.default_rng(seed).permutation(len(dataset.test))[:count]
    written = 0
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        staged.chmod(0o755)
        try:
            for index in order:
                try:
                    pixels, label = dataset.test.sample(int(index), 0)
                except Unreadable:
                    continue
                target = staged / dataset.labels[label] / f"{dataset.labels[label]}-{index:05d}.png"
                target.parent.mkdir(exist_ok=True)
                # 256 pixels, so that the client's resize leaves them alone and its centre crop gives the canvas back.
                framed = np.pad(pixels, ((16, 16), (16, 16), (0, 0)), mode="edge")
                Image.fromarray(framed).save(target)
                written += 1
            shutil.rmtree(directory, ignore_errors=True)
            staged.rename(directory)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return written


def _is_sample(path: Path) -> bool:
    """Whether a file has the name that a sample would have there."""
    return re.fullmatch(rf"{re.escape(path.parent.name)}-\d{{5}}\.png", path.name) is not None
