"""Export a checkpoint to one ONNX file with normalisation, softmax and a dynamic batch, without traces of this machine."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.export import Dim

from alexnet_client.errors import BadInput
from alexnet_client.files import replace_file
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.model import SIDE, ServedModel

OPSET = 18
"""The opset torch's exporter is written for. ONNX Runtime 1.19 in Triton 24.10 supports opset 21 and IR version 10."""
IR_VERSION = 10
INPUT, OUTPUTS = "image", ("logits", "probabilities")
MAX_BATCH_SIZE = 64


def export_onnx(checkpoint: Checkpoint, path: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Export the network as it is served: ``image`` uint8 [N, 224, 224, 3] to ``logits`` and ``probabilities``.

    Args:
        checkpoint: the network.
        path: of the ONNX file; written atomically.
        metadata: further entries for the metadata of the model.

    Raises:
        BadInput: the file cannot be written.
    """
    model = ServedModel(checkpoint.network(), checkpoint.normalization).eval()
    # Two images: torch.export would treat a batch size of one as a constant.
    example = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # Deprecation warnings of torch and onnxscript about their own code.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: Dim("batch", min=1, max=MAX_BATCH_SIZE)},),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    strip_traces(proto)
    onnx.helper.set_model_props(proto, {**model_metadata(checkpoint), **(metadata or {})})
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = "alexnet-export", torch.__version__
    proto.doc_string = ""
    with replace_file(path) as temporary:
        onnx.save_model(proto, temporary, save_as_external_data=False)
    check_file(path)


def model_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Metadata of the ONNX file: classes, preprocessing and origin."""
    return {
        "architecture": "alexnet",
        "labels": json.dumps(checkpoint.labels),
        "checkpoint_sha256": checkpoint.sha256,
        "preprocessing": json.dumps(
            {
                "decode": "EXIF orientation, RGB, short side 256 antialiased bilinear, centre crop 224",
                "layout": "NHWC uint8",
                "mean": checkpoint.normalization.mean,
                "std": checkpoint.normalization.std,
            }
        ),
        "test_accuracy": json.dumps(checkpoint.made_by.get("test_accuracy")),
    }


def strip_traces(proto: onnx.ModelProto) -> None:
    """Remove what the exporter records about its run: stack traces with source paths, module names, doc strings."""
    graph = proto.graph
    parts: list[Any] = [graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer]
    for function in proto.functions:
        parts += [function, *function.node, *function.value_info]
    for each in parts:
        del each.metadata_props[:]
        each.doc_string = ""


def check_file(path: Path) -> None:
    """Check an ONNX file with onnx's full checker, and against the model contract.

    Raises:
        BadInput: the file is invalid, or violates the contract; the text names the first violation.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        onnx.checker.check_model(str(path), full_check=True)
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # the checker and protobuf have no common base
        raise BadInput(f"{path}: not a valid ONNX file ({str(error).splitlines()[0]})") from error
    opset = {each.domain: each.version for each in proto.opset_import}
    problems = [
        (proto.ir_version != IR_VERSION, f"IR version {proto.ir_version}, expected {IR_VERSION}"),
        (not 18 <= opset.get("", 0) <= 20, f"opset {opset.get('')}, expected 18 to 20"),
        (_signature(proto) != _expected(proto), f"unexpected signature {_signature(proto)}"),
        (any(node.metadata_props for node in proto.graph.node), "nodes contain stack traces"),
        (any(each.external_data for each in proto.graph.initializer), "weights are in another file"),
    ]
    for violated, problem in problems:
        if violated:
            raise BadInput(f"{path}: {problem}")


def _signature(proto: onnx.ModelProto) -> dict[str, list[Any]]:
    def shape(value: onnx.ValueInfoProto) -> list[Any]:
        tensor = value.type.tensor_type
        return [tensor.elem_type, *(size.dim_param or size.dim_value for size in tensor.shape.dim)]

    return {value.name: shape(value) for value in [*proto.graph.input, *proto.graph.output]}


def _expected(proto: onnx.ModelProto) -> dict[str, list[Any]]:
    classes = next((size[-1] for name, size in _signature(proto).items() if name == OUTPUTS[0]), 0)
    outputs = {name: [onnx.TensorProto.FLOAT, "batch", classes] for name in OUTPUTS}
    return {INPUT: [onnx.TensorProto.UINT8, "batch", SIDE, SIDE, 3], **outputs}
