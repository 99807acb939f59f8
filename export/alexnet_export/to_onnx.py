"""From a checkpoint to one ONNX file: preprocessing and softmax inside, dynamic batch, nothing of this machine in it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.export import Dim

from alexnet_export.atomic import replace_file
from alexnet_export.checkpoint import Checkpoint, labels_digest
from alexnet_export.errors import UserError
from alexnet_export.model import ServedModel

OPSET = 18
"""The opset that torch's exporter is written for; 24.10's ONNX Runtime 1.19 reads up to 21, and IR up to 10."""
IR_VERSION = 10
INPUT, OUTPUTS = "image", ("logits", "probabilities")
MAX_BATCH_SIZE = 64


def export_onnx(checkpoint: Checkpoint, path: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Export the network as it is served: ``image`` uint8 [N, 224, 224, 3] to ``logits`` and ``probabilities``.

    Args:
        checkpoint: what to export.
        path: of the ONNX file; replaced whole or not at all.
        metadata: further entries for the model's own metadata.

    Raises:
        UserError: the disk refuses.
    """
    model = ServedModel(checkpoint.network(), checkpoint.normalization).eval()
    # Two images: torch.export would take a batch of one for a constant.
    example = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # torch's and onnxscript's own deprecations inside the exporter; there is nothing to mend on our side.
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
    """What a reader of the file alone should know."""
    return {
        "architecture": "alexnet",
        "labels": json.dumps(checkpoint.labels),
        "labels_sha256": labels_digest(checkpoint.labels),
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
    """Remove what the exporter notes of its own run: stack traces with source paths, module names, doc strings."""
    graph = proto.graph
    noted: list[Any] = [graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer]
    for function in proto.functions:
        noted += [function, *function.node, *function.value_info]
    for each in noted:
        del each.metadata_props[:]
        each.doc_string = ""


def check_file(path: Path) -> None:
    """Full check of an ONNX file, and of the promises this module makes.

    Raises:
        UserError: it is no valid ONNX file, or breaks a promise; the text says which.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        onnx.checker.check_model(str(path), full_check=True)
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # the checker and protobuf have no common base
        raise UserError(f"{path}: not a valid ONNX file ({str(error).splitlines()[0]})") from error
    opset = {each.domain: each.version for each in proto.opset_import}
    problems = [
        (proto.ir_version != IR_VERSION, f"IR version {proto.ir_version}, {IR_VERSION} is promised"),
        (not 18 <= opset.get("", 0) <= 20, f"opset {opset.get('')}, 18 to 20 is promised"),
        (_signature(proto) != _expected(proto), f"signature {_signature(proto)}"),
        (any(node.metadata_props for node in proto.graph.node), "stack traces on its nodes"),
        (any(each.external_data for each in proto.graph.initializer), "weights outside the file"),
    ]
    for broken, what in problems:
        if broken:
            raise UserError(f"{path}: has {what}")


def _signature(proto: onnx.ModelProto) -> dict[str, list[Any]]:
    def shape(value: onnx.ValueInfoProto) -> list[Any]:
        tensor = value.type.tensor_type
        return [tensor.elem_type, *(size.dim_param or size.dim_value for size in tensor.shape.dim)]

    return {value.name: shape(value) for value in [*proto.graph.input, *proto.graph.output]}


def _expected(proto: onnx.ModelProto) -> dict[str, list[Any]]:
    classes = next((size[-1] for name, size in _signature(proto).items() if name == OUTPUTS[0]), 0)
    outputs = {name: [onnx.TensorProto.FLOAT, "batch", classes] for name in OUTPUTS}
    return {INPUT: [onnx.TensorProto.UINT8, "batch", 224, 224, 3], **outputs}
