"""The images of the requests: generated or read from a directory before the run; no request copies an image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_client.codec import Array
from alexnet_client.errors import ImageError
from alexnet_client.images import CROP, find_images, load_pixels, read_file

GENERATED = "generated"
MAX_IMAGES = 256
"""Images kept in memory, 150 KB of pixels each; requests use them repeatedly."""


class Workload:
    """A set of images from which requests of any size are taken.

    Args:
        images: uint8 [N, 224, 224, 3], or object [N, 1] with the bytes of image files.
        largest: images in the largest request; a smaller set is repeated up to this length.
    """

    def __init__(self, images: Array, *, largest: int) -> None:
        self._images = np.concatenate([images] * -(-largest // len(images))) if largest > len(images) else images

    def request(self, number: int, images: int) -> Array:
        """Return a view of the images of request ``number``."""
        start = number * images % (len(self._images) - images + 1)
        return self._images[start : start + images]


def open_workload(source: str, *, encoded: bool, largest: int, seed: int) -> Workload:
    """Generate images, or read those of a directory and its subdirectories.

    Args:
        source: "generated" or a directory.
        encoded: whether the model takes image files; otherwise the images are decoded here.
        largest: images in the largest request.
        seed: seed of the generated images.

    Raises:
        BadInput: the directory does not exist or contains no image.
        ImageError: an image cannot be read.
    """
    if source == GENERATED:
        pixels = np.random.default_rng(seed).integers(0, 256, (64, CROP, CROP, 3), np.uint8)
        images = np.array([[_jpeg(each)] for each in pixels], object) if encoded else pixels
        return Workload(images, largest=largest)
    files = find_images(Path(source))[:MAX_IMAGES]
    if encoded:
        return Workload(np.array([[read_file(path)] for path in files], object), largest=largest)
    return Workload(np.stack([_pixels(path) for path in files]), largest=largest)


def _pixels(path: Path) -> Array:
    try:
        return load_pixels(path)
    except ImageError as error:
        raise ImageError(f"{error}; remove it from the directory, because this model takes decoded images") from None


def _jpeg(pixels: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((CROP * 2, CROP * 3 // 2)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
