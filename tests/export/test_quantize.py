"""Quantisation: integer kernels where expected, answers close to the float model, for CPUs and TensorRT."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from alexnet_client.cpus import has_int8_instructions
from alexnet_client.errors import BadInput
from alexnet_export import rewrites
from alexnet_export.calibrate import limits, observe
from alexnet_export.graph import copy, layers, read_model, to_bytes
from alexnet_export.quantize import (
    CPU,
    CPU_WITHOUT_VNNI,
    FLOAT_OPERATORS,
    INTEGER_OPERATORS,
    TENSORRT,
    quantize,
    quantize_weights,
)
from alexnet_export.runners import onnx_runner, operators_that_run


@pytest.fixture(scope="module")
def model(exported):
    folded = read_model(exported)
    for rewrite in rewrites.FLOAT:
        rewrite(folded)
    return folded


@pytest.fixture(scope="module")
def pixels(digits):
    return np.stack([digits.train.sample(index, 0)[0] for index in range(24)])


@pytest.fixture(scope="module")
def ranges(model, pixels):
    return limits(observe(model, pixels), "minmax")


@pytest.fixture(scope="module")
def weights(model):
    return {scheme: quantize_weights(model, scheme) for scheme in (CPU, CPU_WITHOUT_VNNI, TENSORRT)}


def logits(model, pixels):
    return onnx_runner(to_bytes(model))(pixels)[0]


# Without VNNI, sums of products of full-range weights can overflow, so that scheme is not used there.
SCHEMES = {"cpu": CPU, "without VNNI": CPU_WITHOUT_VNNI, "tensorrt": TENSORRT}
if not has_int8_instructions():
    del SCHEMES["cpu"]


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=list(SCHEMES))
def test_the_answers_stay_close(model, weights, ranges, pixels, scheme):
    quantized = quantize(model, weights[scheme], ranges, scheme)
    onnx.checker.check_model(to_bytes(quantized), full_check=True)
    reference, found = logits(model, pixels), logits(quantized, pixels)
    assert np.abs(reference - found).max() < 0.05 * np.ptp(reference)
    assert np.abs(reference - found).max() > 0


def test_on_the_cpu_every_layer_runs_as_an_integer_kernel(model, weights, ranges):
    counts = operators_that_run(to_bytes(quantize(model, weights[CPU], ranges, CPU)))
    assert {name: counts[name] for name in INTEGER_OPERATORS} == {"QLinearConv": 5, "QGemm": 3}
    assert not set(FLOAT_OPERATORS) & set(counts)


def test_a_layer_that_is_kept_in_float_runs_in_float_and_only_that(model, weights, ranges):
    names = [str(node.name) for node in layers(model.graph)]
    for kept in ([names[0]], [names[2], names[7]], names[1:6]):
        counts = operators_that_run(to_bytes(quantize(model, weights[CPU], ranges, CPU, keep_float=kept)))
        assert sum(counts[name] for name in INTEGER_OPERATORS) == 8 - len(kept)
        assert sum(counts[name] for name in FLOAT_OPERATORS) == len(kept)


def test_with_every_layer_kept_in_float_nothing_changes(model, weights, ranges, pixels):
    names = [str(node.name) for node in layers(model.graph)]
    same = quantize(model, weights[CPU], ranges, CPU, keep_float=names)
    assert np.array_equal(logits(model, pixels), logits(same, pixels))


def test_weights_take_a_quarter_of_the_bytes(model, weights, ranges):
    size = len(to_bytes(quantize(model, weights[CPU], ranges, CPU)))
    assert size < 0.26 * len(to_bytes(model))


def test_each_filter_has_its_own_scale_and_uses_its_whole_range(model, weights):
    for scheme, limit in ((CPU, 127), (CPU_WITHOUT_VNNI, 64)):
        for node in layers(model.graph):
            found = weights[scheme][str(node.name)]
            largest = np.abs(found.values.astype(int)).reshape(len(found.scales), -1).max(1)
            assert (largest == limit).all()


def test_a_filter_of_almost_no_weight_does_not_push_its_bias_over_32_bits(model, ranges):
    odd = copy(model)
    last = layers(odd.graph)[-1]
    weight, bias = last.inputs[1].const_value.numpy().copy(), last.inputs[2].const_value.numpy().copy()
    weight[3], bias[3] = 1e-12, 5.0
    for place, array in ((1, weight), (2, bias)):
        name = f"odd_{place}"
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        odd.graph.register_initializer(value)
        last.replace_input_with(place, value)
    image = np.full((1, 224, 224, 3), 200, np.uint8)
    quantized = quantize(odd, quantize_weights(odd, CPU), ranges, CPU)
    assert logits(quantized, image)[0, 3] == pytest.approx(5.0, rel=1e-3)
    assert logits(odd, image)[0, 3] == pytest.approx(5.0, rel=1e-3)


def test_for_tensorrt_all_zero_points_are_zero_and_biases_stay_float(model, weights, ranges):
    quantized = quantize(model, weights[TENSORRT], ranges, TENSORRT)
    counts = Counter(node.op_type for node in quantized.graph)
    for node in quantized.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = node.inputs[2].const_value.numpy()
            assert zero.dtype == np.int8
            assert not zero.any()
    assert counts["Relu"] == 7
    assert all(node.inputs[2].is_initializer() for node in layers(quantized.graph))
    assert next(iter(quantized.graph)).op_type == "Cast", "TensorRT wants uint8 converted before all else"


def test_a_graph_with_an_unknown_range_is_rejected_with_the_name_of_the_node(exported, weights, ranges):
    unfolded = read_model(exported)
    with pytest.raises(BadInput, match=r"mul_6 \(Mul\) is neither the pixels nor behind a ReLU"):
        quantize(unfolded, weights[CPU], ranges, CPU)


def test_the_logits_are_32_bit_sums_and_not_rounded_to_8_bits(model, weights, ranges, pixels):
    quantized = quantize(model, weights[CPU_WITHOUT_VNNI], ranges, CPU_WITHOUT_VNNI)
    last = layers(quantized.graph)[-1]
    activation_scale, weight_scales = (last.inputs[place].producer().inputs[1].const_value.numpy() for place in (0, 1))
    sums = logits(quantized, pixels).astype(np.float64) / (activation_scale.astype(np.float64) * weight_scales)
    assert np.abs(sums - np.rint(sums)).max() < 0.05, "every logit is an integer times the scales"
    assert np.ptp(sums, axis=0).min() > 256, "the integers of a class need more than 8 bits"
