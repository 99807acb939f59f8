"""Half precision: half the size, the same interface, nearly the same answers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from alexnet_client.errors import BadInput
from alexnet_export.errors import GateFailed
from alexnet_export.gates import compare
from alexnet_export.runners import onnx_runner
from alexnet_export.to_fp16 import to_fp16
from alexnet_export.to_onnx import check_file


@pytest.fixture(scope="module")
def half(exported, tmp_path_factory):
    path = tmp_path_factory.mktemp("fp16") / "fp16.onnx"
    to_fp16(exported, path)
    return path


def test_the_weights_are_half_precision_and_pixels_are_normalised_in_float32(half, exported):
    check_file(half)
    assert 0.49 < half.stat().st_size / exported.stat().st_size < 0.51
    graph = onnx.load(half).graph
    types = {each.name: each.data_type for each in graph.initializer}
    assert types["network.features.0.weight"] == types["network.classifier.6.bias"] == onnx.TensorProto.FLOAT16
    assert types["normalize.mean"] == types["normalize.scale"] == onnx.TensorProto.FLOAT
    assert [node.op_type for node in graph.node[:6]] == ["Cast", "Transpose", "Sub", "Mul", "Cast", "Conv"]
    assert Counter(node.op_type for node in graph.node)["Cast"] == 3, "none between the layers"


def test_the_answers_are_nearly_equal(half, exported, digits):
    pixels = np.stack([digits.test.sample(index, 0)[0] for index in range(64)])
    reference, answer = onnx_runner(exported)(pixels)[0], onnx_runner(half)(pixels)[0]
    found = compare(reference, answer, np.full(64, -1))
    assert answer.dtype == np.float32
    assert found.agreement >= 0.95, "near-ties may change"
    assert 0 < found.max_logit_difference < 5e-3


def test_a_weight_too_large_for_half_precision_is_rejected(exported, tmp_path):
    proto = onnx.load(exported)
    bias = next(each for each in proto.graph.initializer if each.name.endswith("classifier.6.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(10, 1e6, np.float32), bias.name))
    onnx.save_model(proto, tmp_path / "large.onnx")
    with pytest.raises(GateFailed, match=r"a weight of network\.classifier\.6\.bias is 1e\+06; float16 allows 65504"):
        to_fp16(tmp_path / "large.onnx", tmp_path / "half.onnx")
    assert not (tmp_path / "half.onnx").exists()


def test_missing_and_invalid_files_are_rejected(exported, tmp_path):
    proto = onnx.load(exported)
    onnx.save_model(proto, tmp_path / "outside.onnx", save_as_external_data=True, location="weights.bin")
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    for name, message in (
        ("nowhere.onnx", "no such file"),
        ("broken.onnx", "not a complete ONNX file"),
        ("outside.onnx", r"not a complete ONNX file \(.*weights\.bin"),
    ):
        with pytest.raises(BadInput, match=f"{name}: {message}"):
            to_fp16(tmp_path / name, tmp_path / "half.onnx")
