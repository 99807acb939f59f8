"""Encoded images in requests: the server decodes them exactly as the client does."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_client import BadInput, Client
from alexnet_client.codec import decode_response, encode_request
from alexnet_client.deadline import Deadline
from alexnet_client.images import load_pixels
from alexnet_client.transport import Transport

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ("photo.jpg", "rotated.jpg", "transparent.png", "narrow.webp", "grey.png")


def camera_photo() -> bytes:
    """A JPEG that is large enough for decoding at reduced size, with an EXIF orientation."""
    rows, columns = np.mgrid[0:1800, 0:2400]
    picture = Image.fromarray(np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    return file.getvalue()


FILES = {name: (GOLDEN / name).read_bytes() for name in NAMES} | {"camera": camera_photo()}


@pytest.mark.parametrize("name", FILES)
async def test_the_server_decodes_to_the_same_pixels_as_the_client(server, name):
    transport = Transport(server.target)
    request = encode_request("alexnet_decode", {"encoded_image": np.array([[FILES[name]]], object)}, ["image"])
    response = await transport.infer(request, Deadline.after(30))
    await transport.close()
    assert np.array_equal(decode_response(response)["image"][0], load_pixels(FILES[name]))


async def test_the_results_of_a_batch_of_files_are_in_order(server):
    batch = np.array([[content] for content in FILES.values()], object)
    async with Client(server.target) as pixels, Client(server.target, model="alexnet_encoded") as files:
        by_file = await files.infer(batch)
        by_pixels = await pixels.infer(np.stack([load_pixels(content) for content in FILES.values()]))
    assert np.allclose(by_file.logits, by_pixels.logits, atol=1e-4 * np.ptp(by_pixels.logits))


async def test_a_broken_image_fails_only_its_own_request(server):
    good = next(iter(FILES.values()))
    async with Client(server.target, model="alexnet_encoded", timeout_s=60) as client:
        expected = (await client.classify(good)).logits
        sent = [good if place % 3 else good[: len(good) // 2] for place in range(30)]
        answers = await asyncio.gather(*(client.classify(content) for content in sent), return_exceptions=True)
    for place, answer in enumerate(answers):
        if place % 3:
            assert np.allclose(answer.logits, expected, atol=1e-4 * np.ptp(expected))
        else:
            assert isinstance(answer, BadInput)
            assert "the file is damaged" in str(answer)


def bomb() -> bytes:
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a JPEG, PNG or WebP image"),
        (b"hello", "not a JPEG, PNG or WebP image"),
        (b"\xff\xd8\xff" + bytes(17 * 2**20), "17,825,795 bytes, the limit is 16,777,216"),
        (bomb(), "10000 x 10000 pixels, the limit is 64,000,000"),
    ],
    ids=["empty", "text", "too large", "decompression bomb"],
)
async def test_content_that_is_not_an_acceptable_image_is_rejected_with_the_reason(server, content, reason):
    async with Client(server.target, model="alexnet_encoded") as client:
        with pytest.raises(BadInput, match=reason):
            await client.infer(np.array([[content]], object))
