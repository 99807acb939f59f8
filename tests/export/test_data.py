"""Data sets: digits on canvases, and folders of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_client import images
from alexnet_client.errors import BadInput
from alexnet_export.data import evaluation_batches, open_dataset, training_batches
from alexnet_export.digits import draw


def picture(path, colour=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (300, 260), colour).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes, red cats and blue dogs, four training and two validation images each."""
    for name, colour in (("cat", (200, 0, 0)), ("dog", (0, 0, 200))):
        for number in range(4):
            picture(tmp_path / "train" / name / f"{number}.jpg", colour)
        for number in range(2):
            picture(tmp_path / "val" / name / f"{number}.png", colour)
    return tmp_path


def test_no_digit_is_in_two_splits_with_any_seed(digits):
    other = open_dataset("digits", seed=99)
    assert np.array_equal(other.test.digits, digits.test.digits)
    splits = (digits.train, digits.validation, digits.test)
    assert sum(len(split.digits) for split in splits) == 1797
    seen = [{digit.tobytes() for digit in split.digits} for split in splits]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_a_canvas_depends_only_on_seed_epoch_and_index(digits):
    first, label = digits.train.sample(5, 0)
    assert np.array_equal(first, open_dataset("digits").train.sample(5, 0)[0])
    assert label == digits.train.labels[5]
    assert (first.shape, first.dtype) == ((224, 224, 3), np.uint8)
    assert not np.array_equal(first, digits.train.sample(5, 1)[0])
    assert not np.array_equal(first, open_dataset("digits", seed=1).train.sample(5, 0)[0])


def test_an_evaluation_digit_has_four_different_canvases_that_are_the_same_in_every_epoch(digits):
    assert np.array_equal(digits.test.sample(3, 0)[0], digits.test.sample(3, 8)[0])
    originals = len(digits.test.digits)
    assert len(digits.test) == 4 * originals
    canvases = [digits.test.sample(2 + variant * originals, 0) for variant in range(4)]
    assert len({pixels.tobytes() for pixels, _ in canvases}) == 4
    assert len({label for _, label in canvases}) == 1


def test_the_ink_is_visible_and_within_the_canvas():
    luma = np.array([0.299, 0.587, 0.114])
    for seed in range(20):
        canvas = draw(np.full((8, 8), 255, np.uint8), np.random.default_rng(seed)) @ luma
        paper, ink = np.median(canvas[[0, 0, -1, -1], [0, -1, 0, -1]]), canvas.min()
        assert paper - ink > 80
        inked = np.argwhere(canvas < (paper + ink) / 2)
        assert inked.min() >= 0
        assert np.ptp(inked, axis=0).min() > 100


@pytest.mark.parametrize(("start", "workers"), [(2, 0), (0, 2)], ids=["resumed", "worker processes"])
def test_resumed_runs_and_worker_processes_read_the_same_batches(folder, start, workers):
    split = open_dataset("folder", directory=folder).train
    batches = list(training_batches(split, batch_size=3, seed=3, start=0, steps=5))
    others = training_batches(split, batch_size=3, seed=3, start=start, steps=5, workers=workers)
    for left, right in zip(batches[start:], others, strict=True):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.labels, right.labels)


def test_each_epoch_contains_every_sample_once_in_another_order(folder):
    split = open_dataset("folder", directory=folder).train
    labels = [batch.labels.tolist() for batch in training_batches(split, batch_size=8, seed=0, start=0, steps=6)]
    assert all(sorted(epoch) == [0, 0, 0, 0, 1, 1, 1, 1] for epoch in labels)
    assert len({tuple(epoch) for epoch in labels}) > 1


def test_a_limited_evaluation_uses_the_same_images_of_every_class(folder):
    split = open_dataset("folder", directory=folder).validation
    (batch,) = evaluation_batches(split, batch_size=4, limit=3)
    assert set(batch.labels.tolist()) == {0, 1}
    assert len(batch.labels) == 3
    (again,) = evaluation_batches(split, batch_size=4, limit=3)
    assert torch.equal(batch.images, again.images)


def test_the_classes_of_a_folder_are_sorted_and_its_images_decoded(folder):
    dataset = open_dataset("folder", directory=folder)
    assert dataset.labels == ("cat", "dog")
    pixels, label = dataset.validation.sample(3, 0)
    assert label == 1
    assert np.array_equal(pixels, images.load_pixels(folder / "val/dog/1.png"))
    assert dataset.test is dataset.validation, "without test/, val is the test split"
    picture(folder / "test/cat/1.png")
    picture(folder / "test/dog/1.png")
    assert len(open_dataset("folder", directory=folder).test) == 2


def test_training_images_are_cropped_and_mirrored_at_random(folder):
    ramp = np.tile(np.arange(0, 255, 255 / 400).astype(np.uint8)[None, :, None], (260, 1, 3))
    Image.fromarray(ramp).save(folder / "train/cat/0.jpg")
    crops = {
        flip: [open_dataset("folder", directory=folder, flip=flip).train.sample(0, epoch)[0] for epoch in range(12)]
        for flip in (True, False)
    }
    assert len({crop.tobytes() for crop in crops[True]}) == 12
    rising = {flip: {bool(crop[0, -1, 0] > crop[0, 0, 0]) for crop in found} for flip, found in crops.items()}
    assert rising == {True: {True, False}, False: {True}}


def test_unreadable_files_are_skipped_and_reported(folder):
    (folder / "val/cat/0.png").write_bytes(b"broken")
    batches = list(evaluation_batches(open_dataset("folder", directory=folder).validation, batch_size=3))
    assert sum(len(batch.labels) for batch in batches) == 3
    assert [line for batch in batches for line in batch.unreadable] == [
        f"{folder}/val/cat/0.png: not a JPEG, PNG or WebP image"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: folder.rename(folder.with_name("gone")), "no such directory; the directory must contain train"),
        (lambda folder: (folder / "val").rename(folder / "elsewhere"), "val/ is missing"),
        (lambda folder: [path.unlink() for path in (folder / "train/dog").iterdir()], "contains no JPEG, PNG or WebP"),
        (lambda folder: (folder / "val/dog").rename(folder / "dog"), "class dog is missing"),
        (lambda folder: picture(folder / "val/horse/1.png"), "classes that are not in train/: horse"),
        (lambda folder: (folder / "train/dog").rename(folder / "dog"), "contains 1 class directories, at least two"),
        (lambda folder: [picture(folder / part / "a\nb/1.png") for part in ("train", "val")], "cannot be printed"),
    ],
)
def test_a_folder_with_another_layout_is_rejected(folder, change, message):
    change(folder)
    with pytest.raises(BadInput, match=message):
        open_dataset("folder", directory=folder)


def test_the_resize_differs_from_torchs_antialiased_bilinear_by_at_most_one_level():
    source = Image.open("tests/golden/photo.jpg").convert("RGB")
    ours = np.asarray(images.resize_short_side(source), np.float32)
    tensor = torch.from_numpy(np.array(source)).permute(2, 0, 1)[None].float()
    theirs = torch.nn.functional.interpolate(tensor, size=ours.shape[:2], mode="bilinear", antialias=True)
    assert np.abs(ours - theirs[0].permute(1, 2, 0).numpy()).max() <= 1.0
