"""Answers for the gates: every batch size, real images, PyTorch and ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from alexnet_client.errors import BadInput
from alexnet_export.errors import GateFailed
from alexnet_export.gates import check_parity, compare, softmax
from alexnet_export.image_sets import gate_images
from alexnet_export.model import IMAGENET
from alexnet_export.runners import answers, onnx_runner, torch_runner


@pytest.fixture(scope="module")
def images(few_digits, checkpoint):
    return gate_images(few_digits, checkpoint.labels, minimum=80, maximum=80)


@pytest.fixture(scope="module")
def reference(checkpoint, images):
    return answers(torch_runner(checkpoint), images.pixels)


def test_batches_of_1_2_7_and_64_come_first_and_every_image_is_sent_once():
    sizes = []

    def run(pixels):
        sizes.append(len(pixels))
        logits = pixels[:, 0, 0, :].astype(np.float32) / 100
        return logits, softmax(logits)

    pixels = np.random.default_rng(0).integers(0, 256, (150, 224, 224, 3)).astype(np.uint8)
    counted = []
    found = answers(run, pixels, on_images=counted.append)
    assert sizes == counted == [1, 2, 7, 64, 64, 12]
    assert np.array_equal(found, pixels[:, 0, 0, :].astype(np.float32) / 100)


def test_wrong_probabilities_and_another_number_of_images_fail():
    logits, pixels = np.eye(3, dtype=np.float32), np.zeros((1, 224, 224, 3), np.uint8)
    with pytest.raises(GateFailed, match="in a batch of 1 the probabilities are not the softmax of the logits"):
        answers(lambda pixels: (logits[:1], softmax(logits[:1])[:, ::-1]), pixels)
    with pytest.raises(GateFailed, match=r"a batch of 1 gives logits of shape \[3, 3\]"):
        answers(lambda pixels: (logits, softmax(logits)), pixels)


def test_a_file_with_one_changed_weight_fails(release, images, reference, tmp_path):
    proto = onnx.load(release.directory / "model.onnx")
    weight = next(each for each in proto.graph.initializer if each.name.endswith("classifier.6.bias"))
    changed = onnx.numpy_helper.to_array(weight).copy()
    changed[3] += 0.1
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    onnx.save_model(proto, tmp_path / "model.onnx")
    found = compare(reference, answers(onnx_runner(tmp_path / "model.onnx"), images.pixels), images.labels)
    with pytest.raises(GateFailed, match="parity"):
        check_parity(found)


def test_a_checkpoint_with_another_normalisation_fails(release, checkpoint, images, reference):
    other = torch_runner(replace(checkpoint, normalization=IMAGENET))
    with pytest.raises(GateFailed, match="parity"):
        check_parity(compare(answers(other, images.pixels), reference, images.labels))


def test_a_file_that_onnx_runtime_cannot_load_is_named(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(BadInput, match=r"ONNX Runtime .* cannot load broken\.onnx"):
        onnx_runner(tmp_path / "broken.onnx")
