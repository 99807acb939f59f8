"""From an image file to the pixels the model reads: EXIF orientation, RGB, resize, centre crop.

The one implementation of it, for training, client and server alike, so that they cannot disagree. Owns no
network and no numbers of the network's normalisation: that lives inside the ONNX graph.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from alexnet_client.errors import ImageError

RESIZE = 256
"""Short side after resizing, pixels: the evaluation transform of torchvision's AlexNet weights."""
CROP = 224
"""Side of the centre crop, pixels: what the network reads."""
MAX_PIXELS = 64_000_000
"""Largest image that is decoded, pixels; a small file can unpack to gigabytes."""
FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""Of the files that are taken for images when a directory is read, in lower case."""
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation (Exif 2.3, tag 274)."""

Pixels: TypeAlias = npt.NDArray[np.uint8]
ImageSource: TypeAlias = "str | Path | bytes | Image.Image | Pixels"


def load_pixels(source: ImageSource) -> Pixels:
    """Return what the model reads of an image.

    Args:
        source: a path, the bytes of a JPEG, PNG or WebP file, a PIL image, or finished pixels.

    Returns:
        uint8 [224, 224, 3], RGB, 0-255. An array of that shape and dtype is returned as it is.

    Raises:
        ImageError: the file is missing or broken, or has more than ``MAX_PIXELS`` pixels.
    """
    if isinstance(source, np.ndarray):
        return _checked_array(source)
    if isinstance(source, Image.Image):
        if not min(source.size):
            raise ImageError(f"image: {source.width} x {source.height} pixels, there is nothing in it")
        image = upright_rgb(source)
    else:
        image = open_image(source)
    name = str(source) if isinstance(source, str | Path) else "image"
    return np.asarray(center_crop(resize_short_side(image, name=name)))


def open_image(source: str | Path | bytes) -> Image.Image:
    """Decode an image file, upright (EXIF orientation applied) and in RGB.

    Raises:
        ImageError: the file is missing, broken, not JPEG, PNG or WebP, or too large.
    """
    if not isinstance(source, str | Path | bytes):
        raise ImageError(f"a {type(source).__name__} is no image; give a path, bytes, a PIL image or pixels")
    name = "image" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{name}: {image.width} x {image.height} pixels, the limit is {MAX_PIXELS:,}")
            return upright_rgb(image)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: a directory, not an image file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a JPEG, PNG or WebP image") from None
    except Image.DecompressionBombError:  # Pillow's own limit, met before the one above can be looked at
        raise ImageError(f"{name}: far too many pixels, the limit is {MAX_PIXELS:,}") from None
    except Exception as error:  # noqa: BLE001  a damaged file makes Pillow raise anything from SyntaxError to struct.error
        raise ImageError(f"{name}: cannot be read, the file looks damaged ({error})") from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation and convert to RGB; transparency is laid on white, 16 bits are scaled to 8."""
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts all above 255 off
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def resize_short_side(image: Image.Image, side: int = RESIZE, *, name: str = "image") -> Image.Image:
    """Resize so that the short side has ``side`` pixels, antialiased bilinear; the long side is rounded down.

    Raises:
        ImageError: the image is so narrow that the result would have more than ``MAX_PIXELS`` pixels.
    """
    width, height = image.size
    if min(width, height) == side:
        return image
    size = (side, side * height // width) if width <= height else (side * width // height, side)
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} pixels is too narrow to be resized to a short side of {side}")
    return image.resize(size, Image.Resampling.BILINEAR)


def center_crop(image: Image.Image, side: int = CROP) -> Image.Image:
    """Cut the middle ``side`` x ``side`` pixels out."""
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _checked_array(pixels: npt.NDArray[np.generic]) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.shape != (CROP, CROP, 3):
        raise ImageError(
            f"an array must be uint8 [{CROP}, {CROP}, 3], this one is {pixels.dtype} {list(pixels.shape)}; "
            "pass the file or a PIL image to have it resized"
        )
    return pixels  # type: ignore[return-value]  # the dtype was just checked


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, where there is none or the block is damaged."""
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  the picture may be whole though its EXIF block is not
        return 1
