"""Images of the test split as files, one directory for each class, for the demo and for manual tests."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_client.errors import BadInput
from alexnet_client.files import writing
from alexnet_export.data import DataSet, Unreadable


def write_samples(dataset: DataSet, directory: Path, *, count: int) -> int:
    """Write random images of the test split as PNG files to ``directory/<class>/``.

    Args:
        dataset: source of the images.
        directory: replaced completely.
        count: number of images; all if the split has fewer.

    Returns:
        The number of images written.

    Raises:
        BadInput: ``directory`` contains other files, or is not writable.
    """
    files = [path for path in directory.rglob("*") if not path.is_dir()] if directory.is_dir() else [directory]
    if directory.exists() and not all(_is_sample(path) for path in files):
        raise BadInput(f"{directory}: contains files that are not sample images; choose another directory")
    order = np.random.default_rng(0).permutation(len(dataset.test))[:count]
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
                # 256 pixels: the client does not resize these, and its centre crop restores the canvas exactly.
                framed = np.pad(pixels, ((16, 16), (16, 16), (0, 0)), mode="edge")
                Image.fromarray(framed).save(target)
                written += 1
            shutil.rmtree(directory, ignore_errors=True)
            staged.rename(directory)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return written


def _is_sample(path: Path) -> bool:
    """Whether a file has the name of a sample."""
    return re.fullmatch(rf"{re.escape(path.parent.name)}-\d{{5}}\.png", path.name) is not None
