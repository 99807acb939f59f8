"""Rewrites of the graph around the quantiser: the same answers, and pixels that conv1 reads as they are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx_ir import from_proto, to_proto

from alexnet_export import rewrites
from alexnet_export.graph import copy, layers, read_model, to_bytes
from alexnet_export.image_sets import Images
from alexnet_export.model import IMAGENET, UNIFORM, Normalize
from alexnet_export.quantize import with_nncf
from alexnet_export.runners import onnx_runner

PIXELS = np.random.default_rng(3).integers(0, 256, (3, 224, 224, 3)).astype(np.uint8)
NETWORK = """
<ir_version: 10, opset_import: ["": 18]>
network (uint8[N,224,224,3] image) => (float[N,C,H,W] logits, float[N,C,H,W] probabilities) {{
    pixels = Cast<to = 1>(image)
    planes = Transpose<perm = [0, 3, 1, 2]>(pixels)
    centred = Sub(planes, mean)
    normalised = {normalised}(centred, scale)
    logits = Conv<{attributes}>(normalised, weight{bias})
    probabilities = Identity(logits)
}}"""


def network(normalization=UNIFORM, *, kernel=(11, 11), group=1, bias=", bias", normalised="Mul", **attributes):
    """The normalisation and conv1, whose answers are the logits."""
    attributes = ", ".join(f"{name} = {value}" for name, value in {"group": group, **attributes}.items())
    model = onnx.parser.parse_model(NETWORK.format(attributes=attributes, bias=bias, normalised=normalised))
    random, normalize = np.random.default_rng(2), Normalize(normalization)
    arrays = {
        "mean": normalize.mean.numpy(),
        "scale": normalize.scale.numpy(),
        "weight": random.normal(size=(6, 3 // group, *kernel)),
        **({"bias": random.normal(size=6)} if bias else {}),
    }
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return from_proto(model)


def answers(model):
    onnx.checker.check_model(to_bytes(model), full_check=True)
    return onnx_runner(to_bytes(model))(PIXELS)[0]


def difference(before, after):
    """Largest difference of an answer, as a share of their range."""
    reference = answers(before)
    return float(np.abs(reference - answers(after)).max() / np.ptp(reference))


def operators(model):
    return Counter(node.op_type for node in model.graph)


def test_only_the_identity_pool_is_removed_without_changing_the_answers(exported):
    model = read_model(exported)
    after = copy(model)
    assert rewrites.drop_identity_pool(after)
    assert operators(model) - operators(after) == {"AveragePool": 1}
    assert difference(model, after) == 0
    before = to_bytes(after)
    assert not rewrites.drop_identity_pool(after), "the other pools are larger"
    assert to_bytes(after) == before


@pytest.mark.parametrize(
    ("conv", "shape", "strides"),
    [
        ({"strides": [4, 4], "pads": [2] * 4}, (12, 11, 3), (4, 1)),
        ({"strides": [2, 3], "pads": [0, 1, 2, 3], "kernel": (3, 7), "bias": ""}, (9, 3, 3), (2, 1)),
        ({"kernel": (5, 5)}, (3, 5, 5), (1, 1)),
    ],
    ids=["conv1 of AlexNet", "other sizes", "no stride"],
)
def test_the_normalisation_is_folded_and_pixels_are_read_in_blocks(conv, shape, strides):
    before = network(**conv)
    after = copy(before)
    assert rewrites.fold_normalization(after)
    assert operators(before) - operators(after) == {"Sub": 1, "Mul": 1}
    (layer,) = layers(after.graph)
    assert layer.inputs[1].shape == (6, *shape)
    assert layer.attributes["strides"].as_ints() == strides
    assert difference(before, after) < 1e-6
    assert not rewrites.fold_normalization(after)


def test_with_a_mean_for_each_channel_the_border_is_their_rounded_mean():
    after = network(IMAGENET, strides=[4, 4], pads=[2] * 4)
    weight, bias = (torch.from_numpy(each.const_value.numpy().copy()) for each in layers(after.graph)[0].inputs[1:])
    assert rewrites.fold_normalization(after)
    padded = np.pad(PIXELS, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=114)
    expected = torch.nn.functional.conv2d(Normalize(IMAGENET)(torch.from_numpy(padded)), weight, bias, stride=4).numpy()
    assert np.abs(answers(after) - expected).max() < 1e-6 * np.ptp(expected)


@pytest.mark.parametrize(
    "other",
    [{"group": 3}, {"dilations": [2, 2]}, {"auto_pad": '"SAME_UPPER"'}, {"normalised": "Div"}],
    ids=lambda other: next(iter(other)),
)
def test_another_network_is_not_changed(other):
    model = network(**other)
    before = to_bytes(model)
    assert not any(rewrite(model) for rewrite in (rewrites.fold_normalization, rewrites.read_uint8))
    assert to_bytes(model) == before


@pytest.fixture
def quantized(monkeypatch):
    """What NNCF returns for the folded network; its sums do not overflow on any processor."""
    model = network(strides=[4, 4], pads=[2] * 4)
    rewrites.fold_normalization(model)
    with monkeypatch.context() as patch:
        patch.setattr(rewrites, "read_uint8", lambda model: False)
        images = Images(PIXELS, np.full(len(PIXELS), -1), ())
        return from_proto(with_nncf(to_proto(model), images, reduce_range=True))


def test_the_integer_conv1_reads_uint8_pixels_and_gives_the_same_answers(quantized):
    after = copy(quantized)
    assert rewrites.read_uint8(after)
    assert operators(quantized) - operators(after) == {"Cast": 1, "QuantizeLinear": 1}
    pixels = next(node for node in after.graph if node.op_type == "DequantizeLinear" and not node.inputs[0].const_value)
    scale, zero_point = (each.const_value.numpy() for each in pixels.inputs[1:])
    assert (scale, zero_point, zero_point.dtype) == (1 / 64, 0, np.uint8)
    assert next(iter(after.graph)).op_type == "Pad"
    assert difference(quantized, after) < 1e-6
    assert not rewrites.read_uint8(after)


def test_signed_activations_have_the_same_range(quantized):
    after = copy(quantized)
    assert rewrites.make_signed(after)
    assert 0 < difference(quantized, after) < 0.01, "pixels lose a bit"
    assert not rewrites.make_signed(after)
