"""Images for calibration, for choosing a quantisation, and for the gates."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from alexnet_client.errors import BadInput
from alexnet_client.images import load_pixels
from alexnet_export.data import DataSet, open_dataset
from alexnet_export.image_sets import calibration_images, gate_images, selection_images


def same(images, split, indices):
    expected = {split.sample(int(index), 0)[0].tobytes() for index in indices}
    return {one.tobytes() for one in images.pixels} == expected


def test_each_purpose_uses_its_own_split(digits, first):
    few = DataSet("few", digits.labels, first(digits.train, 20), first(digits.validation, 21), first(digits.test, 30))
    assert same(calibration_images(few), digits.train, range(20))
    assert same(selection_images(few, digits.labels), digits.validation, range(21))
    evaluated = gate_images(few, digits.labels, minimum=30)
    assert same(evaluated, digits.test, range(30))
    assert (evaluated.labels >= 0).all()
    for images in (gate_images(few, ("a", "b"), minimum=30), selection_images(few, ("a", "b"))):
        assert (images.labels == -1).all(), "images of other classes have no labels"


def test_a_small_test_split_is_filled_up_with_images_without_labels(digits, first):
    small = DataSet("small", digits.labels, digits.train, first(digits.validation, 60, 10), first(digits.test, 40, 10))
    found = gate_images(small, digits.labels, minimum=100)
    assert len(found) == 100
    assert (found.labels >= 0).sum() == 36
    assert len(found.unreadable) == 4 + 6


def test_too_few_readable_images_are_an_error(digits, first):
    few = DataSet("few", digits.labels, *(first(digits.test, 20, 10) for _ in range(3)))
    with pytest.raises(BadInput, match="54 readable images to compare answers on, 60 are required"):
        gate_images(few, digits.labels, minimum=60)
    none = DataSet("none", digits.labels, first(digits.train, 5, 1), first(digits.validation, 5, 1), digits.test)
    with pytest.raises(BadInput, match="none: no readable training image for calibration; add some, or publish with"):
        calibration_images(none)
    with pytest.raises(BadInput, match="no readable validation image to choose"):
        selection_images(none, digits.labels)


def test_a_folder_without_test_images_uses_training_images_without_augmentation(tmp_path):
    random = np.random.default_rng(0)
    for path in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / path).mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(0, 256, (256, 300, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / path / f"{number}.png")
    folder = open_dataset("folder", directory=tmp_path)
    assert same(calibration_images(folder), folder.as_served, range(6))
    assert same(selection_images(folder, folder.labels), folder.as_served, range(6)), "the gates use val"
    assert np.array_equal(folder.as_served.sample(0, 5)[0], load_pixels(tmp_path / "train/cat/0.png"))
