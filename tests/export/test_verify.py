"""The parity gate: what is not equal to its source is not published."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet, Unreadable
from alexnet_export.errors import GateFailed, UserError
from alexnet_export.model import IMAGENET
from alexnet_export.verify import compare, verify

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.normal(size=(600, 10)).astype(np.float32)


def test_the_export_equals_pytorch_on_500_images_at_every_batch_size(release):
    gate = release.manifest["gates"]["parity"]
    assert gate["images"] >= 500
    assert gate["same_top1"] == gate["images"]
    assert gate["batch_sizes"] == [1, 2, 7, 64]
    assert 0 <= gate["max_logit_difference"] <= 1e-4


def test_equal_logits_pass_with_no_difference():
    parity = compare(LOGITS, LOGITS.copy(), {64})
    assert (parity.images, parity.same_top1, parity.max_logit_difference) == (600, 600, 0.0)


def test_one_logit_that_is_off_by_more_than_the_tolerance_fails():
    off = LOGITS.copy()
    off[300, 4] -= 2e-4 * np.ptp(LOGITS)
    with pytest.raises(GateFailed, match=r"a logit differs by 2\.0\de-04 of the logits' range, 1e-04 is allowed"):
        compare(LOGITS, off, {64})


def test_another_best_class_fails_however_small_the_difference():
    tied = LOGITS.copy()
    tied[7, :2] = tied[7].max() + 1, tied[7].max() + 1 + 1e-6
    swapped = tied.copy()
    swapped[7, 0] += 2e-6
    with pytest.raises(GateFailed, match="1 of 600 images get another best class"):
        compare(tied, swapped, {64})


def test_a_logit_that_is_not_finite_fails():
    broken = LOGITS.copy()
    broken[0, 0] = np.nan
    with pytest.raises(GateFailed, match="1 logits are not finite"):
        compare(LOGITS, broken, {64})


def test_a_file_with_one_changed_weight_is_caught(release, checkpoint, digits, tmp_path):
    proto = onnx.load(release.directory / "model.onnx")
    weight = next(each for each in proto.graph.initializer if each.name.endswith("classifier.6.bias"))
    changed = onnx.numpy_helper.to_array(weight).copy()
    changed[3] += 0.1
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    onnx.save_model(proto, tmp_path / "model.onnx")
    with pytest.raises(GateFailed, match="parity"):
        verify(checkpoint, tmp_path / "model.onnx", digits)


def test_a_checkpoint_of_another_normalisation_is_caught(release, checkpoint, digits):
    other = Checkpoint(checkpoint.state_dict, checkpoint.labels, IMAGENET)
    with pytest.raises(GateFailed):
        verify(other, release.directory / "model.onnx", digits)


class Some:
    """The first images of a split; every tenth is unreadable."""

    def __init__(self, split, count):
        self.split, self.count = split, count

    def __len__(self):
        return self.count

    def sample(self, index, epoch):
        if index % 10 == 0:
            raise Unreadable(f"{index}.jpg: damaged")
        return self.split.sample(index, epoch)


def test_a_small_test_split_is_filled_up_but_accuracy_counts_held_out_images_only(release, checkpoint, digits):
    small = DataSet("small", digits.labels, digits.train, Some(digits.validation, 60), Some(digits.test, 40))
    parity = verify(checkpoint, release.directory / "model.onnx", small)
    assert parity.images >= 500
    assert len(parity.unreadable) == 4 + 6
    assert round(parity.accuracy * 36) == pytest.approx(parity.accuracy * 36), "a share of the 36 readable test images"
    other = DataSet("other", ("a", "b"), small.train, small.validation, small.test)
    assert verify(checkpoint, release.directory / "model.onnx", other).accuracy is None


def test_too_few_readable_images_are_no_proof(release, checkpoint, digits):
    few = DataSet("few", digits.labels, *(Some(digits.test, 170) for _ in range(3)))
    with pytest.raises(UserError, match="459 readable images to compare on, 500 are needed"):
        verify(checkpoint, release.directory / "model.onnx", few)
