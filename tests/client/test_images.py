"""Reading images and preparing their pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from alexnet_client import images
from alexnet_client.errors import BadInput, ImageError

GOLDEN = Path(__file__).parent.parent / "golden"


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8))


def resized_then_cropped(image: Image.Image) -> np.ndarray:
    short = min(image.size)
    image = image.resize((256 * image.width // short, 256 * image.height // short), Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return np.asarray(image.crop((left, top, left + 224, top + 224))).astype(int)


@pytest.mark.parametrize("name", ["photo.jpg", "rotated.jpg", "transparent.png", "narrow.webp", "grey.png"])
def test_golden_files_result_in_exactly_the_stored_pixels(name):
    expected = np.asarray(Image.open(GOLDEN / f"{name}.expected.png"))
    assert np.array_equal(images.load_pixels(GOLDEN / name), expected)


def test_a_path_bytes_and_a_pil_image_result_in_equal_pixels_and_prepared_pixels_are_returned_unchanged():
    path = GOLDEN / "photo.jpg"
    pixels = images.load_pixels(path)
    for source in (str(path), path.read_bytes(), Image.open(path)):
        assert np.array_equal(images.load_pixels(source), pixels)
    assert images.load_pixels(pixels) is pixels


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (256, 256), (100, 90), (1000, 257)])
def test_images_of_any_size_result_in_224_x_224_pixels(size):
    pixels = images.load_pixels(gradient(*size))
    assert (pixels.shape, pixels.dtype) == ((224, 224, 3), np.uint8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (1001, 333), (99, 217), (224, 224)])
def test_noise_differs_by_at_most_one_level_from_resizing_before_cropping(size, kind):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = encoded(Image.fromarray(noise), kind)
    expected = resized_then_cropped(Image.open(io.BytesIO(file)))
    assert np.abs(images.load_pixels(file) - expected).max() <= 1


def test_an_image_with_a_short_side_of_256_is_only_cropped():
    image = gradient(256, 300)
    assert np.array_equal(images.load_pixels(image), np.asarray(image)[38:262, 16:240])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_is_applied_like_in_pillow(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.open(io.BytesIO(encoded(gradient(256, 300), exif=exif)))
    assert np.array_equal(np.asarray(images.upright_rgb(image)), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about skipped entries
def test_an_image_with_a_damaged_exif_block_can_be_read():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x8298] = "me"
    file = encoded(gradient(256, 300), "JPEG", exif=exif)
    block = exif.tobytes()
    at = file.index(block) + len(b"Exif\0\0")
    for place in range(at, at + len(block) - len(b"Exif\0\0")):
        for value in (0x00, 0x0B, 0xFF):
            source = file[:place] + bytes([value]) + file[place + 1 :]
            assert images.load_pixels(source).shape == (224, 224, 3), place


def test_16_bits_are_scaled_to_8():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    pixels = images.load_pixels(encoded(Image.fromarray(np.tile(ramp, (256, 1)))))
    assert np.array_equal(pixels[0, :, 0], np.arange(256)[16:240])


@pytest.mark.parametrize("source", [Image.new("RGBA", (256, 256), (200, 0, 0, 0)), images.BLANK_FILE])
def test_transparent_pixels_and_the_blank_file_are_white(source):
    assert (images.load_pixels(source) == 255).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
def test_all_common_modes_are_converted_to_rgb(mode):
    source = encoded(Image.new(mode, (260, 260)), "JPEG" if mode == "CMYK" else "PNG")
    assert images.load_pixels(source).shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "not a JPEG, PNG or WebP image"),
        (b"GIF89a" + bytes(100), "not a JPEG, PNG or WebP image"),
        (encoded(gradient(300, 300), "JPEG")[:2000], "the file is damaged"),
        (encoded(gradient(300, 300))[:2000], "the file is damaged"),
        (encoded(gradient(300, 300)).replace(b"IDAT", b"IDAT\0", 1), "the file is damaged"),
        ("nowhere.jpg", "nowhere.jpg: no such file"),
        (".", "a directory"),
        (np.zeros((224, 224, 3), np.float32), "this one is float32"),
        (np.zeros((10, 10, 3), np.uint8), r"\[10, 10, 3\]"),
        (None, "a NoneType is not an image"),
        (Image.new("RGB", (0, 0)), "it is empty"),
        (Image.new("RGB", (1, 5000)), "too narrow"),
    ],
)
def test_anything_else_is_rejected_with_the_cause(source, message):
    with pytest.raises(ImageError, match=message):
        images.load_pixels(source)


def test_a_decompression_bomb_is_rejected_before_it_is_decoded():
    for side, message in ((8_100, "8100 x 8100 pixels, the limit is 64,000,000"), (13_500, "too many pixels")):
        bomb = encoded(Image.new("1", (side, side)))
        assert len(bomb) < 100_000
        with pytest.raises(ImageError, match=message):
            images.load_pixels(bomb)


# The last size has another crop if it is computed from the reduced size.
@pytest.mark.parametrize(
    ("width", "height", "orientation"), [(2401, 1803, 1), (1803, 2401, 6), (5000, 1100, 6), (2054, 1301, 1)]
)
def test_a_large_jpeg_is_decoded_at_a_reduced_size_with_nearly_equal_pixels(width, height, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    waves = 127.5 + 127.5 * np.sin(np.asarray(gradient(width, height)) / 8)
    file = encoded(Image.fromarray(waves.astype(np.uint8)), "JPEG", quality=90, exif=exif)
    reduced, size = images._open(file, images.MAX_FILE_BYTES, images.MAX_PIXELS, draft=images.DRAFT)
    full = images.open_image(file)
    assert images.RESIZE * 2 <= min(reduced.size) < min(width, height) == min(full.size)
    assert size == full.size
    difference = np.abs(images.load_pixels(file) - resized_then_cropped(full))
    assert difference.mean() < 1
    assert difference.max() < 12


def test_the_limits_are_parameters(tmp_path):
    file, path = encoded(gradient(300, 300)), tmp_path / "image.png"
    path.write_bytes(file)
    for read, source in ((images.load_pixels, file), (images.load_pixels, path), (images.read_file, path)):
        with pytest.raises(ImageError, match=r"[\d,]+ bytes, the limit is 10$"):
            read(source, max_bytes=10)
    with pytest.raises(ImageError, match="300 x 300 pixels, the limit is 1,000"):
        images.load_pixels(file, max_pixels=1000)


def test_a_file_is_read_without_decoding(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert images.read_file(tmp_path / "file") == images.read_file(b"content") == b"content"
    with pytest.raises(ImageError, match="nowhere: no such file"):
        images.read_file("nowhere")
    with pytest.raises(ImageError, match="a ndarray is not a file; this model reads files"):
        images.read_file(np.zeros((224, 224, 3), np.uint8))


def test_images_of_a_directory_are_found_in_order_through_links_and_without_hidden_files(tmp_path):
    folder, linked = tmp_path / "folder", tmp_path / "linked"
    for name in (
        "folder/b.JPG",
        "folder/a/2.png",
        "folder/.b.png",
        "folder/.hidden/3.png",
        "folder/notes.txt",
        "linked/1.webp",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (folder / "c").symlink_to(linked)
    (linked / "loop").symlink_to(folder)
    found = [str(path.relative_to(folder)) for path in images.find_images(folder)]
    assert found == ["a/2.png", "b.JPG", "c/1.webp"]
    for name, message in (
        ("folder/.b.png", "not a directory"),
        ("nowhere", "no such file"),
        ("empty", "contains no JPEG"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(BadInput, match=f"{name}: {message}"):
            images.find_images(tmp_path / name)
