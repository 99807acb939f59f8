"""Whether a configuration fits the release it serves: labels, files, tensors, opset. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from tritonclient.grpc import model_config_pb2 as triton

from alexnet_export.check_subject import DIMENSION, HIGHEST_IR, HIGHEST_OPSET, Problem, Subject

_DTYPES = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT8: "TYPE_INT8",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.STRING: "TYPE_STRING",
}


def check_labels(subject: Subject) -> Iterator[Problem]:
    """A name for each class."""
    named = [each for each in subject.config.output if each.label_filename]
    if not named:
        yield "no output has a label_filename", 'label_filename: "labels.txt" at probabilities'
    for each in named:
        if subject.labels is None:
            yield f"{each.label_filename} is missing", "publish again (make export), or write a name a line"
        elif list(each.dims) != [subject.labels]:
            yield (
                f"output {each.name} has dims {list(each.dims)}, labels.txt has {subject.labels} names",
                f"dims: [ {subject.labels} ], or mend labels.txt",
            )


def check_release(subject: Subject) -> Iterator[Problem]:
    """The newest release has the file, the batch and the precision that the configuration counts on."""
    config, manifest = subject.config, subject.manifest
    if manifest is None:
        return
    files = manifest.get("files", {})
    # An engine is built where there is a GPU; elsewhere configs/tensorrt.pbtxt waits for it.
    if config.default_model_filename not in files and config.backend != "tensorrt":
        yield f"the newest release has no {config.default_model_filename}", f"name one of {', '.join(files)}"
    largest = manifest.get("max_batch_size")
    if isinstance(largest, int) and config.max_batch_size > largest:
        yield f"max_batch_size {config.max_batch_size}, the model was made for {largest}", f"max_batch_size: {largest}"
    on_cpu = any(group.kind == triton.ModelInstanceGroup.KIND_CPU for group in config.instance_group)
    if manifest.get("precision") == "fp16" and on_cpu:
        yield (
            "half precision on a CPU, which has no fast arithmetic for it",
            "serve --config-name gpu, or make export PRECISION=int8",
        )


def check_graph(subject: Subject) -> Iterator[Problem]:
    """The graph has the tensors of the configuration, and is none that is too new for the Triton."""
    config, model = subject.config, subject.model
    if model is None:
        return
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    runtime = f"ONNX Runtime {subject.target.onnxruntime} of Triton {subject.target.name}"
    if opset > HIGHEST_OPSET:
        yield f"opset {opset}, {runtime} is known to read up to {HIGHEST_OPSET}", "export with opset 18: make export"
    if model.ir_version > HIGHEST_IR:
        yield (
            f"IR version {model.ir_version}, {runtime} is known to read up to {HIGHEST_IR}",
            "export again: make export",
        )
    for kind, theirs, ours in (
        ("input", model.graph.input, config.input),
        ("output", model.graph.output, config.output),
    ):
        yield from _check_tensors(kind, {each.name: each for each in theirs}, {each.name: each for each in ours})


def _check_tensors(kind: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[Problem]:
    needed = set(theirs) if kind == "input" else set()
    for name in sorted(needed - set(ours)):
        yield f"input {name} of the graph is not in the configuration", f'input {{ name: "{name}" ... }}'
    for name, found in ours.items():
        if name not in theirs:
            yield f"{kind} {name} is not in the graph", f"name one of {', '.join(sorted(theirs))}"
            continue
        tensor = theirs[name].type.tensor_type
        batch, *sizes = tensor.shape.dim or [onnx.TensorShapeProto.Dimension()]
        expected = _DTYPES.get(tensor.elem_type, "TYPE_INVALID")
        if triton.DataType.Name(found.data_type) != expected:
            yield (
                f"{kind} {name} is {triton.DataType.Name(found.data_type)}, the graph has {expected}",
                f"data_type: {expected}",
            )
        dims = [size.dim_value or -1 for size in sizes]
        if list(found.dims) != dims:
            yield f"{kind} {name} has dims {list(found.dims)}, the graph has {dims} after the batch", f"dims: {dims}"
        if batch.dim_value:
            yield f"{kind} {name} has a batch of {batch.dim_value} for ever", f"export with {DIMENSION}"
