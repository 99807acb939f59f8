"""What requests hold: images made or read before the run, cut into requests without copying one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_client.codec import Array
from alexnet_client.errors import BadInput, ImageError
from alexnet_client.images import load_pixels, read_file

GENERATED = "generated"
MOST_IMAGES = 256
"""Images held, 150 KB of pixels each; requests go through them again and again."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
GENERATED_SIDE = 224


class Workload:
    """Images, and requests of any number of them.

    Args:
        images: uint8 [N, 224, 224, 3], or object [N, 1] of files' bytes.
        largest: images in the largest request; what is there is repeated to that length.
    """

    def __init__(self, images: Array, *, largest: int) -> None:
        self._images = np.concatenate([images] * -(-largest // len(images))) if largest > len(images) else images

    def request(self, number: int, images: int) -> Array:
        """The images of request ``number``: a view of those held."""
        start = number * images % (len(self._images) - images + 1)
        return self._images[start : start + images]


def open_workload(source: str, *, encoded: bool, largest: int, seed: int) -> Workload:
    """Generated images, or those of a directory and the directories in it.

    Args:
        source: "generated", or a directory.
        encoded: whether the model reads files; else they are decoded here, before the run.
        largest: images in the largest request.
        seed: of the generated ones.

    Raises:
        BadInput: there is no such directory, or no image in it.
        ImageError: one cannot be read.
    """
    if source == GENERATED:
        pixels = np.random.default_rng(seed).integers(0, 256, (64, GENERATED_SIDE, GENERATED_SIDE, 3), np.uint8)
        images = np.array([[_jpeg(each)] for each in pixels], object) if encoded else pixels
        return Workload(images, largest=largest)
    directory = Path(source)
    try:
        files = sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES)[:MOST_IMAGES]
    except OSError as error:
        raise BadInput(f"{directory}: {(error.strerror or str(error)).lower()}") from None
    if not files:
        raise BadInput(f"{directory}: no JPEG, PNG or WebP file is there; name a directory of images, or {GENERATED!r}")
    if encoded:
        return Workload(np.array([[read_file(path)] for path in files], object), largest=largest)
    return Workload(np.stack([_pixels(path) for path in files]), largest=largest)


def _pixels(path: Path) -> Array:
    try:
        return load_pixels(path)
    except ImageError as error:
        raise ImageError(
            f"{error}; a model that takes pixels cannot be sent it, so take it out of the directory"
        ) from None


def _jpeg(pixels: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((GENERATED_SIDE * 2, GENERATED_SIDE * 3 // 2)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
