"""The ONNX file follows the model contract."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from alexnet_client.errors import BadInput
from alexnet_export.to_onnx import check_file


@pytest.fixture(scope="module")
def model_path(release):
    return release.directory / "model.onnx"


@pytest.fixture(scope="module")
def proto(model_path):
    return onnx.load(model_path)


def test_opset_ir_version_and_signature_follow_the_contract(model_path, proto):
    check_file(model_path)
    assert proto.ir_version == 10
    assert 18 <= proto.opset_import[0].version <= 20
    assert [(value.name, value.type.tensor_type.elem_type) for value in proto.graph.input] == [
        ("image", onnx.TensorProto.UINT8)
    ]
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in shape] == ["batch", 224, 224, 3]
    assert [value.name for value in proto.graph.output] == ["logits", "probabilities"]


def test_only_standard_operators_are_used_and_the_cast_is_first(proto):
    kinds = [node.op_type for node in proto.graph.node]
    assert set(kinds) <= {
        "Cast", "Transpose", "Sub", "Mul", "Conv", "Relu", "MaxPool", "AveragePool", "Flatten", "Reshape", "Gemm", "Softmax",
    }  # fmt: skip
    assert (kinds[0], kinds.count("Conv"), kinds.count("Gemm")) == ("Cast", 5, 3)


def test_the_file_contains_no_traces_of_this_machine(model_path):
    content = model_path.read_bytes()
    strings = b"\n".join(re.findall(rb"[\x20-\x7e]{6,}", content[:100_000] + content[-100_000:]))
    for trace in (b"stack_trace", b"/home", b"/root", b"site-packages", b".py"):
        assert trace not in strings


def test_the_metadata_contains_labels_preprocessing_and_origin(proto, checkpoint):
    found = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(found["labels"]) == list(checkpoint.labels)
    assert json.loads(found["preprocessing"])["mean"] == [128.0, 128.0, 128.0]
    assert found["checkpoint_sha256"] == checkpoint.sha256
    assert found["git_revision"]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_answers_do_not_depend_on_the_other_images_of_the_batch(model_path, digits, batch):
    session = ort.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    pixels = np.stack([digits.test.sample(index, 0)[0] for index in range(batch)])
    logits, probabilities = session.run(None, {"image": pixels})
    assert logits.shape == probabilities.shape == (batch, 10)
    alone = session.run(["logits"], {"image": pixels[-1:]})[0]
    assert np.allclose(logits[-1:], alone, atol=1e-4)


def test_missing_and_invalid_files_are_rejected(model_path, tmp_path):
    (tmp_path / "text.onnx").write_text("hello")
    onnx.save_model(onnx.load(model_path), tmp_path / "out.onnx", save_as_external_data=True, location="weights.bin")
    (tmp_path / "weights.bin").unlink()
    for name, message in (
        ("text.onnx", "not a valid ONNX file"),
        ("none.onnx", "no such file"),
        ("out.onnx", r"(not a valid ONNX file .*weights\.bin|weights are in another file)"),
    ):
        with pytest.raises(BadInput, match=f"{name}: {message}"):
            check_file(tmp_path / name)


def rename_input(proto):
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "images"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda proto: setattr(proto, "ir_version", 8), "IR version 8, expected 10"),
        (lambda proto: proto.graph.node[0].metadata_props.add(key="stack_trace"), "nodes contain stack traces"),
        (lambda proto: setattr(proto.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1), "signature"),
        (rename_input, r"signature \{'images'"),
    ],
)
def test_a_violation_of_the_contract_is_named(proto, tmp_path, change, message):
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    change(changed)
    onnx.save_model(changed, tmp_path / "model.onnx")
    with pytest.raises(BadInput, match=message):
        check_file(tmp_path / "model.onnx")
