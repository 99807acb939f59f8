"""The decoder backend: each request gets its pixels, or the error of its first invalid file."""

from __future__ import annotations

import gc
import io
import json

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from alexnet_client.images import load_pixels


class Request:
    def __init__(self, *files, cancelled=False, name="encoded_image"):
        self.inputs = {name: np.array([[file] for file in files], object).reshape(-1, 1)}
        self.cancelled = cancelled

    def is_cancelled(self):
        return self.cancelled


def encoded(width, height, kind="PNG", shade=100):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 50, 200)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def decoder(stub_utilities):
    """Loads the backend with limits."""
    from alexnet_server.decoder.model import TritonPythonModel

    loaded = []

    def load(**limits):
        config = {
            "input": [{"name": "encoded_image"}],
            "output": [{"name": "image"}],
            "parameters": {key: {"string_value": value} for key, value in limits.items()},
        }
        model = TritonPythonModel()
        model.initialize({"model_config": json.dumps(config)})
        loaded.append(model)
        return model

    yield load
    for each in loaded:
        each.finalize()


def test_requests_with_one_and_several_files_get_their_pixels_in_order(decoder):
    files = [encoded(300, 260, kind, shade) for kind, shade in (("PNG", 10), ("JPEG", 90), ("WEBP", 200))]
    one, several = decoder().execute([Request(files[0]), Request(*files)])
    assert np.array_equal(one.outputs["image"], load_pixels(files[0])[np.newaxis])
    assert np.array_equal(several.outputs["image"], np.stack([load_pixels(file) for file in files]))


@pytest.mark.parametrize(
    ("invalid", "code", "message"),
    [
        (Request(b"not an image"), "INVALID_ARG", "image: not a JPEG, PNG or WebP image"),
        (Request(encoded(30, 30), b"", encoded(30, 30)), "INVALID_ARG", "image 2 of 3: not a JPEG"),
        (Request(encoded(500, 500)), "INVALID_ARG", "image: 500 x 500 pixels, the limit is 100,000"),
        (Request(bytes(20_000)), "INVALID_ARG", "image: 20,000 bytes, the limit is 10,000"),
        (Request(), "INVALID_ARG", "encoded_image is missing or empty"),
        (Request(b"", name="file"), "INVALID_ARG", "encoded_image is missing or empty"),
        (Request(encoded(30, 30), cancelled=True), "CANCELLED", "cancelled"),
    ],
)
def test_an_invalid_request_gets_its_error_and_the_other_requests_succeed(decoder, invalid, code, message):
    valid = Request(encoded(30, 40))
    loaded = decoder(max_pixels="100000", max_encoded_bytes="10000")
    first, middle, last = loaded.execute([valid, invalid, valid])
    assert middle.error.code == code
    assert message in middle.error.text
    assert first.error is None
    assert np.array_equal(first.outputs["image"], last.outputs["image"])


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_limit_that_is_not_a_positive_integer_fails_the_load(decoder, stub_utilities, value):
    with pytest.raises(stub_utilities.TritonModelException, match="max_pixels must be a positive integer"):
        decoder(max_pixels=value)


def test_a_damaged_file_leaves_no_image_for_the_garbage_collector(decoder):
    model, damaged = decoder(), encoded(600, 600, "JPEG")[:2000]
    gc.collect()
    gc.disable()
    try:
        responses = model.execute([Request(damaged) for _ in range(5)])
        assert all("damaged" in response.error.text for response in responses)
        assert not [each for each in gc.get_objects() if type(each) is JpegImageFile]
    finally:
        gc.enable()
