"""Exact rewrites: the same answers with less work."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest

from alexnet_export import rewrites
from alexnet_export.graph import chain_from, copy, layers, read_model, to_bytes
from alexnet_export.model import IMAGENET
from alexnet_export.quantize import CPU_WITHOUT_VNNI, TENSORRT, quantize, quantize_weights
from alexnet_export.runners import onnx_runner, operators_that_run
from alexnet_export.to_onnx import export_onnx

PIXELS = np.random.default_rng(3).integers(0, 256, (5, 224, 224, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def model(exported):
    return read_model(exported)


def quantised(model, scheme=CPU_WITHOUT_VNNI):  # its sums never overflow: they do not depend on the processor
    folded = copy(model)
    for rewrite in rewrites.FLOAT:
        rewrite(folded)
    limits = {str(node.outputs[0].name): 30.0 for node in folded.graph if node.op_type == "Relu"}
    return quantize(folded, quantize_weights(folded, scheme), limits, scheme)


def operators(model):
    return Counter(node.op_type for node in model.graph)


def difference(before, after):
    """Largest difference of a logit, as a share of their range."""
    reference, logits = onnx_runner(to_bytes(before))(PIXELS)[0], onnx_runner(to_bytes(after))(PIXELS)[0]
    return float(np.abs(reference - logits).max() / np.ptp(reference))


def valid(model):
    onnx.checker.check_model(to_bytes(model), full_check=True)
    return model


def test_only_the_identity_pool_is_removed_without_changing_the_answers(model):
    after = copy(model)
    assert rewrites.drop_identity_pool(after)
    assert operators(model) - operators(after) == {"AveragePool": 1}
    assert difference(model, valid(after)) == 0
    after = copy(model)
    pool = next(node for node in after.graph if node.op_type == "AveragePool")
    pool.attributes["kernel_shape"] = next(n for n in after.graph if n.op_type == "MaxPool").attributes["kernel_shape"]
    assert not rewrites.drop_identity_pool(after)
    assert operators(after) == operators(model)


def test_one_mean_for_all_channels_is_folded_exactly_without_a_border_map(model):
    after = copy(model)
    assert rewrites.fold_normalization(after)
    assert operators(model) - operators(after) == {"Mul": 1}
    assert not operators(after) - operators(model)
    assert difference(model, valid(after)) < 1e-6


@pytest.mark.slow
def test_a_mean_for_each_channel_is_folded_exactly_with_a_border_map(checkpoint, small, tmp_path):
    export_onnx(replace(checkpoint, normalization=IMAGENET), tmp_path / "model.onnx")
    before = read_model(tmp_path / "model.onnx")
    after = copy(before)
    assert rewrites.fold_normalization(after)
    assert difference(before, valid(after)) < 1e-5
    (addition,) = (node for node in after.graph if node.op_type == "Add")
    border = addition.inputs[1].const_value.numpy()
    assert border.shape == (1, small.channels[0], 55, 55)
    assert not border[:, :, 1:-1, 1:-1].any()
    assert border[:, :, 0, 0].any()
    addition.outputs[0].replace_all_uses_with(addition.inputs[0])
    after.graph.remove(addition)
    assert difference(before, after) > 1e-4, "without the map, the border would be wrong"


def test_rewrites_and_quantisation_do_not_change_the_original_graph(model):
    before = to_bytes(model)
    after = copy(model)
    for rewrite in rewrites.FLOAT:
        rewrite(after)
    quantised(model)
    assert to_bytes(model) == before


def test_the_integer_conv1_reads_pixels_and_gives_the_same_bits(model):
    before = quantised(model)
    after = copy(before)
    assert rewrites.pixels_into_conv1(after)
    assert chain_from(after.graph.inputs[0], "Transpose", "DequantizeLinear", "Conv")
    assert difference(before, valid(after)) == 0
    assert not {"Cast", "Sub", "QuantizeLinear"} & set(operators_that_run(to_bytes(after)))


def test_the_wide_conv1_gives_the_same_bits(model):
    before = quantised(model)
    rewrites.pixels_into_conv1(before)
    after = copy(before)
    assert rewrites.widen_conv1(after)
    assert layers(after.graph)[0].attributes["strides"].as_ints() == (4, 1)
    assert difference(before, valid(after)) == 0
    assert operators_that_run(to_bytes(after))["QLinearConv"] == 5


@pytest.mark.parametrize("rewrite", rewrites.QUANTISED, ids=lambda rewrite: rewrite.__name__)
def test_a_graph_without_the_pattern_is_not_changed(model, rewrite):
    for other in (copy(model), quantised(model, TENSORRT)):
        before = to_bytes(other)
        assert not rewrite(other)
        assert to_bytes(other) == before


def test_a_rewrite_is_not_applied_twice(model):
    once = copy(model)
    for rewrite in rewrites.FLOAT:
        assert rewrite(once)
        assert not rewrite(once)
