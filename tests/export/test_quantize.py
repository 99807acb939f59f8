"""Quantisation: integer layers where the accuracy allows it, with answers close to those of the float model."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx_ir import from_proto

from alexnet_client.golden import rms_error
from alexnet_export.errors import GateFailed
from alexnet_export.graph import layers
from alexnet_export.image_sets import Images
from alexnet_export.quantize import logits_of, quantize, with_nncf

OTHER_NETWORK = """
<ir_version: 10, opset_import: ["": 18]>
other (uint8[N,224,224,3] image) => (float[N,4] logits, float[N,4] probabilities) {
    pixels = Cast<to = 1>(image)
    planes = Transpose<perm = [0, 3, 1, 2]>(pixels)
    first = Conv<strides = [8, 8]>(planes, first_weight, first_bias)
    positive = Relu(first)
    soft = Sigmoid(first)
    sum = Add(positive, soft)
    both = Concat<axis = 1>(positive, sum)
    mean = GlobalAveragePool(both)
    flat = Flatten(mean)
    logits = Gemm<transB = 1>(flat, last_weight, last_bias)
    probabilities = Softmax(logits)
}"""
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [255, 255, 0]]).repeat(16, 0).reshape(-1, 1, 1, 3)
NOISE = np.random.default_rng(5).integers(-40, 40, (64, 224, 224, 3)) * (1, 1, 0)
IMAGES = Images(np.clip(COLOURS + NOISE, 0, 255).astype(np.uint8), np.full(64, -1), ())
"""Black, red, green and yellow images."""


def other_network(**rows):
    """Operators that AlexNet does not have, and a class for each colour; ``rows`` are changes of the parameters."""
    random, model = np.random.default_rng(4054), onnx.parser.parse_model(OTHER_NETWORK)
    arrays = {
        "first_weight": random.normal(size=(6, 3, 8, 8)) / 100,
        "first_bias": random.normal(size=6),
        "last_weight": random.normal(size=(4, 12)),
        "last_bias": np.zeros(4),
    }
    arrays["first_bias"][0] = -1e4  # the first channel is always zero, as is the blue one of the images
    for name, array in arrays.items():
        row, value = rows.get(name, (..., array))
        array[row] = value
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return model


def quantize_source(source, directory):
    path = directory / "source.onnx"
    onnx.save(source, path)
    return quantize(path, IMAGES, IMAGES, reduce_range=True)


def initializers(model):
    return {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "limit", "zero_points"),
    [
        ({"reduce_range": True}, 64, {"uint8", "int8"}),
        ({"reduce_range": False}, 127, {"uint8", "int8"}),
        ({"reduce_range": False, "signed": True}, 127, {"int8"}),
    ],
)
def test_every_layer_of_alexnet_becomes_integer(exported, digits, monkeypatch, how, limit, zero_points):
    monkeypatch.setattr("alexnet_export.quantize._within_budget", lambda comparison: True)  # a random network
    images = Images(np.stack([digits.train.sample(index, 0)[0] for index in range(24)]), np.full(24, -1), ())
    counted = []
    found = quantize(exported, images, images, on_images=counted.append, **how)
    onnx.checker.check_model(found.model, full_check=True)
    assert (found.layers, found.float_layers, found.calibration_images, sum(counted)) == (8, (), 24, 24)
    # Full-range sums overflow with ONNX Runtime on CPUs without VNNI.
    assert 0 < found.error < (0.02 if how["reduce_range"] else 0.1)
    arrays = initializers(found.model)
    zeros = [array for name, array in arrays.items() if "zero_point" in name]
    assert not any(each.any() for each in zeros)
    assert {str(each.dtype) for each in zeros} == zero_points
    weights = [each.astype(int) for each in arrays.values() if each.dtype == np.int8 and each.ndim > 1]
    largest = np.concatenate([np.abs(each).reshape(len(each), -1).max(1) for each in weights])
    assert (len(weights), largest.max(), largest.min() >= limit - 1) == (8, limit, True), "filters use the whole range"


def test_filters_of_denormals_or_zeros_have_normal_scales_and_keep_their_bias(tmp_path):
    almost_zero = np.array([1e-40, 0]).reshape(2, 1, 1, 1)
    source = other_network(first_weight=(np.s_[1:3], almost_zero), last_weight=(3, 1e-12), last_bias=(3, 5))
    found = quantize_source(source, tmp_path)
    assert found.float_layers == ()
    scales = [array for name, array in initializers(found.model).items() if "scale" in name]
    assert all((np.isfinite(each) & (each > np.finfo(np.float32).tiny)).all() for each in scales)
    logits = logits_of(found.model, IMAGES.pixels)
    assert np.isfinite(logits).all()
    assert logits[:, 3] == pytest.approx(5, rel=1e-3), "its bias is not clipped to 32 bits"


def test_a_network_with_other_operators_is_quantised_and_nothing_is_printed(capfd, tmp_path):
    source = other_network()
    found = quantize_source(source, tmp_path)
    assert (found.layers, found.float_layers) == (2, ())
    reference, logits = (logits_of(each, IMAGES.pixels) for each in (source, found.model))
    assert found.error == rms_error(reference, logits) < 0.03
    assert (reference.argmax(1) == logits.argmax(1)).all()
    assert capfd.readouterr() == ("", "")


def test_a_layer_that_costs_too_much_accuracy_stays_in_float(capfd, tmp_path):
    # The weight of a channel that is always zero takes the whole range of the integers.
    source = other_network(last_weight=(np.s_[:, 0], 1e4))
    found = quantize_source(source, tmp_path)
    first, last = layers(from_proto(found.model).graph)
    assert found.float_layers == (last.name,)
    assert found.layers == 2
    assert np.array_equal(last.inputs[1].const_value.numpy(), initializers(source)["last_weight"])
    assert first.inputs[1].producer().op_type == "DequantizeLinear"
    reference, logits = (logits_of(each, IMAGES.pixels) for each in (source, found.model))
    assert (reference.argmax(1) == logits.argmax(1)).all()
    assert capfd.readouterr().out == ""


def test_without_a_layer_that_can_be_quantised_there_is_no_int8_file(tmp_path):
    source = other_network(first_weight=(np.s_[:, 2], 1e4), last_weight=(np.s_[:, 0], 1e4))
    with pytest.raises(GateFailed, match=r"accuracy: every layer in integers costs more than 0\.5 points"):
        quantize_source(source, tmp_path)


def test_a_failure_of_nncf_is_reported_as_a_failed_gate():
    without_weights = onnx.parser.parse_model(OTHER_NETWORK)
    with pytest.raises(GateFailed, match=r"NNCF .* cannot quantise this network"):
        with_nncf(without_weights, IMAGES, reduce_range=True)


def test_nncf_sends_no_telemetry():
    """In another process, because NNCF disables its telemetry under pytest."""
    code = """
import importlib.util, sys
assert importlib.util.find_spec("openvino_telemetry")
from alexnet_export.quantize import _nncf
with _nncf() as nncf:
    telemetry = nncf.telemetry.telemetry
print(type(telemetry).__name__, sys.modules["openvino_telemetry"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "MagicMock None\n"
