"""The images of the requests: from a directory or generated."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from alexnet_client.errors import ImageError
from alexnet_client.images import load_pixels
from alexnet_load.workload import Workload, open_workload


def numbered(count):
    return np.arange(count).reshape(count, 1)


def test_requests_use_all_images_repeatedly_without_copying_them():
    images = numbered(5)
    workload = Workload(images, largest=1)
    assert [int(workload.request(number, 1)[0, 0]) for number in range(7)] == [0, 1, 2, 3, 4, 0, 1]
    assert np.shares_memory(workload.request(3, 2), images)


@pytest.mark.parametrize("images", [1, 3, 5, 12])
def test_a_request_can_be_larger_than_the_set_of_images(images):
    workload = Workload(numbered(5), largest=12)
    assert all(len(workload.request(number, images)) == images for number in range(30))


def test_generated_images_depend_on_the_seed():
    one, same, other = (
        open_workload("generated", encoded=False, largest=2, seed=seed).request(0, 2) for seed in (1, 1, 2)
    )
    assert (one.shape, one.dtype) == ((2, 224, 224, 3), np.uint8)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[0], one[1])


def test_files_are_generated_for_a_model_that_takes_files():
    request = open_workload("generated", encoded=True, largest=1, seed=0).request(0, 1)
    assert request.shape == (1, 1)
    assert Image.open(io.BytesIO(request[0, 0])).format == "JPEG"


def test_the_images_of_a_directory_are_decoded_or_sent_as_files(tmp_path):
    for name, grey in (("one.png", 10), ("two.JPG", 200)):
        Image.new("RGB", (300, 300), (grey,) * 3).save(tmp_path / name)
    workload = open_workload(str(tmp_path), encoded=False, largest=1, seed=0)
    files = open_workload(str(tmp_path), encoded=True, largest=1, seed=0)
    for number, name in enumerate(("one.png", "two.JPG")):
        assert np.array_equal(workload.request(number, 1)[0], load_pixels(tmp_path / name))
        assert files.request(number, 1)[0, 0] == (tmp_path / name).read_bytes()


def test_an_unreadable_image_is_rejected_with_its_path(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"broken\.png.*remove it from the directory"):
        open_workload(str(tmp_path), encoded=False, largest=1, seed=0)
