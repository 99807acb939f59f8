"""Reads an image file and prepares the pixels for the model: EXIF orientation, RGB, resize, centre crop.

The only implementation, used for training, client and server, so that all of them get equal pixels. The normalisation is part
of the ONNX graph.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from alexnet_client.errors import BadInput, ImageError
from alexnet_client.files import reason

RESIZE = 256
"""Short side after resizing, pixels, as in the evaluation transform of torchvision's AlexNet weights."""
CROP = 224
"""Side of the centre crop and of the model input, pixels."""
MAX_PIXELS = 64_000_000
"""Largest image that is decoded, pixels; a small file can decode to gigabytes."""
MAX_FILE_BYTES = 64 * 2**20
"""Largest image file that is read, bytes."""
DRAFT = 2 * RESIZE
"""Smallest short side for reduced JPEG decoding, pixels. A JPEG can be decoded at a half, a quarter or an eighth of its size
much faster; twice the final size leaves enough pixels for antialiasing."""
FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Suffixes of image files when a directory is searched, in lower case."""
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
"""The transposition that corrects each EXIF orientation (Exif 2.3, tag 274)."""
_QUARTER_TURNS = frozenset(_TURNS[orientation] for orientation in (5, 6, 7, 8))

BLANK_FILE = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c63f80f0001010100b138f6140000000049454e44ae426082"
)
"""A PNG file of one white pixel, for test requests to a model that reads files."""

Pixels: TypeAlias = npt.NDArray[np.uint8]
ImageSource: TypeAlias = "str | Path | bytes | Image.Image | Pixels"


def find_images(directory: Path) -> list[Path]:
    """Search a directory and its subdirectories for image files; return them sorted by path.

    Symbolic links are followed, except those to a directory that contains them. Hidden files and directories are ignored.

    Raises:
        BadInput: the directory contains no image file, or cannot be read.
    """

    def fail(error: OSError) -> None:
        raise BadInput(f"{error.filename}: {reason(error)}; choose a readable directory") from None

    found: list[Path] = []
    for folder, directories, files in os.walk(directory, followlinks=True, onerror=fail):
        above = Path(folder), *Path(folder).parents
        directories[:] = [
            each for each in directories if each[0] != "." and not any(map(Path(folder, each).samefile, above))
        ]
        found += [Path(folder, each) for each in files if each[0] != "." and each.lower().endswith(SUFFIXES)]
    if not found:
        raise BadInput(f"{directory}: contains no JPEG, PNG or WebP file")
    return sorted(found)


def load_pixels(source: ImageSource, *, max_bytes: int = MAX_FILE_BYTES, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Prepare the pixels of an image for the model.

    Args:
        source: a path, the bytes of a JPEG, PNG or WebP file, a PIL image, or prepared pixels.
        max_bytes: largest file that is read.
        max_pixels: largest image that is decoded.

    Returns:
        uint8 [224, 224, 3], RGB, 0-255. An array of this shape and dtype is returned unchanged.

    Raises:
        ImageError: the file is missing, damaged or larger than the limits.
    """
    if isinstance(source, np.ndarray):
        return _checked_array(source)
    if isinstance(source, Image.Image):
        if not min(source.size):
            raise ImageError(f"image: {source.width} x {source.height} pixels, it is empty")
        image = upright_rgb(source)
        size = image.size
    else:
        image, size = _open(source, max_bytes, max_pixels, draft=DRAFT)
    name = str(source) if isinstance(source, str | Path) else "image"
    return np.asarray(_resize_and_crop(image, size, name))


def read_file(source: ImageSource, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read an image file without decoding it.

    Raises:
        ImageError: the file cannot be read or is too large, or the source is not a file.
    """
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str | Path):
        raise ImageError(f"a {type(source).__name__} is not a file; this model reads files, pass a path or bytes")
    try:
        if (length := Path(source).stat().st_size) > max_bytes:
            raise ImageError(f"{source}: {length:,} bytes, the limit is {max_bytes:,}")
        return Path(source).read_bytes()
    except OSError as error:
        raise ImageError(f"{source}: {reason(error)}") from None


def open_image(source: str | Path | bytes) -> Image.Image:
    """Decode an image file, with its EXIF orientation applied, as RGB.

    Raises:
        ImageError: the file is missing, damaged, not JPEG, PNG or WebP, or too large.
    """
    return _open(source, MAX_FILE_BYTES, MAX_PIXELS, draft=None)[0]


def _open(
    source: str | Path | bytes, max_bytes: int, max_pixels: int, *, draft: int | None
) -> tuple[Image.Image, tuple[int, int]]:
    """The decoded image and its original size; a JPEG is decoded at a reduced size if ``draft`` allows it."""
    if not isinstance(source, str | Path | bytes):
        raise ImageError(f"a {type(source).__name__} is not an image; pass a path, bytes, a PIL image or pixels")
    name = "image" if isinstance(source, bytes) else str(source)
    try:
        length = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        if length > max_bytes:
            raise ImageError(f"{name}: {length:,} bytes, the limit is {max_bytes:,}")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            return _decode(image, name, max_pixels, draft)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: a directory, not an image file") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a JPEG, PNG or WebP image") from None
    except Image.DecompressionBombError:  # Pillow checks its own limit first
        raise ImageError(f"{name}: too many pixels, the limit is {MAX_PIXELS:,}") from None
    except Exception as error:  # noqa: BLE001  Pillow raises many types for damaged files, such as SyntaxError and struct.error
        raise ImageError(f"{name}: cannot be decoded, the file is damaged ({error})") from None


def _decode(image: Image.Image, name: str, max_pixels: int, draft: int | None) -> tuple[Image.Image, tuple[int, int]]:
    width, height = size = image.size
    if width * height > max_pixels:
        raise ImageError(f"{name}: {width} x {height} pixels, the limit is {max_pixels:,}")
    if draft is not None and image.format == "JPEG":
        image.draft(None, _scaled_to_short_side(size, draft))
    upright = upright_rgb(image)
    turned = _TURNS.get(_orientation(image)) in _QUARTER_TURNS
    return upright, (height, width) if turned else size


def upright_rgb(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation and convert to RGB; transparent pixels get a white background, 16 bits are scaled to 8."""
    image.load()  # _orientation would decode a PNG file and ignore that it is damaged
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I;16"):  # Pillow's conversion would clip all values above 255
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # the conversion would copy an RGB image


def resize_short_side(image: Image.Image, *, name: str = "image") -> Image.Image:
    """Resize so that the short side has ``RESIZE`` pixels, antialiased bilinear; the long side is rounded down.

    Args:
        image: the image.
        name: of the image in errors.

    Raises:
        ImageError: the image is so narrow that the result would have more than ``MAX_PIXELS`` pixels.
    """
    return image.resize(_resized(image.size, name), Image.Resampling.BILINEAR)


def _resize_and_crop(image: Image.Image, original_size: tuple[int, int], name: str) -> Image.Image:
    """``resize_short_side`` and a crop of the centre in one step, at half the cost; rounding differs by at most one level.

    ``original_size`` is the size before reduced decoding.
    """
    width, height = _resized(original_size, name)
    left, top = (width - CROP) // 2, (height - CROP) // 2
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, (left + CROP) * x, (top + CROP) * y)
    return image.resize((CROP, CROP), Image.Resampling.BILINEAR, box)


def _resized(size: tuple[int, int], name: str) -> tuple[int, int]:
    width, height = size
    resized = (RESIZE, RESIZE * height // width) if width <= height else (RESIZE * width // height, RESIZE)
    if resized[0] * resized[1] > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} pixels, too narrow to resize to a short side of {RESIZE}")
    return resized


def _scaled_to_short_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size scaled to a short side of ``side`` pixels, rounded up."""
    short = min(size)
    return -(-size[0] * side // short), -(-size[1] * side // short)


def _checked_array(pixels: npt.NDArray[np.generic]) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.shape != (CROP, CROP, 3):
        raise ImageError(
            f"an array must be uint8 [{CROP}, {CROP}, 3], this one is {pixels.dtype} {list(pixels.shape)}; "
            "pass a file or a PIL image, which are resized"
        )
    return pixels  # type: ignore[return-value]  # the dtype was just checked


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if there is none or the EXIF block is damaged."""
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  the image may be valid although its EXIF block is damaged
        return 1
