"""Lint rules that compare a Triton configuration with its release and with a Triton version, and what rules read. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2 as triton

from alexnet_client.manifest import validated_engines
from alexnet_server.onnxruntime.providers import CPU, PRECISION_HINT, ConfigError
from alexnet_server.onnxruntime.settings import read_settings

Problem = tuple[str, str]
"""The problem, and the exact fix."""
HIGHEST_OPSET, HIGHEST_IR = 21, 10
"""Supported by ONNX Runtime 1.19; later containers support at least these."""
_DTYPES = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT8: "TYPE_INT8",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.STRING: "TYPE_STRING",
}


@dataclass(frozen=True)
class Target:
    """A Triton release that runs the configurations: that of this project, or one of NVIDIA's containers."""

    name: str
    onnxruntime: str
    model_metrics: bool = True
    nvidia_container: bool = True


TARGETS = {
    each.name: each
    for each in (
        Target("24.10", "1.19.2", model_metrics=False, nvidia_container=False),
        Target("25.06", "1.22.0"),
        Target("25.12", "1.23.2"),
        Target("26.06", "1.24.4"),
        Target("26.07", "1.27.0"),
    )
}
"""Source: docs/introduction/compatibility.md and build.py of triton-inference-server/server."""


@dataclass(frozen=True)
class Subject:
    """A configuration and its surroundings.

    Attributes:
        config: the parsed configuration.
        path: ``<model>/config.pbtxt`` or ``<model>/configs/<name>.pbtxt``.
        target: the Triton release.
        model: ONNX graph of the newest release, without weights; None before there is a release.
        manifest: of the newest release.
        versions: numbers of the published versions.
        labels: number of names in labels.txt; None without the file.
    """

    config: triton.ModelConfig
    path: Path
    target: Target
    model: onnx.ModelProto | None = None
    manifest: Mapping[str, Any] | None = None
    versions: Sequence[int] = ()
    labels: int | None = None


def model_directory(path: Path) -> Path:
    """Directory of the model that a configuration file belongs to."""
    return path.parent.parent if path.parent.name == "configs" else path.parent


def check_labels(subject: Subject) -> Iterator[Problem]:
    """labels.txt contains a name for each class."""
    named = [each for each in subject.config.output if each.label_filename]
    if not named:
        yield "no output has a label_filename", 'label_filename: "labels.txt" at probabilities'
    for each in named:
        if subject.labels is None:
            yield f"{each.label_filename} is missing", "publish again (make export), or write one name per line"
        elif list(each.dims) != [subject.labels]:
            yield (
                f"output {each.name} has dims {list(each.dims)}, labels.txt has {subject.labels} names",
                f"dims: [ {subject.labels} ], or fix labels.txt",
            )


def check_release(subject: Subject) -> Iterator[Problem]:
    """The release contains the file, the batch size and the precision that the configuration requires."""
    config, manifest = subject.config, subject.manifest
    if manifest is None:
        return
    for version in config.version_policy.specific.versions:
        if version not in subject.versions:
            yield (
                f"version_policy names version {version}, which is not published",
                "version_policy { latest { num_versions: 1 } }",
            )
    files = manifest.get("files", {})
    # Without a GPU there is no engine, and configs/tensorrt.pbtxt is not used.
    if config.default_model_filename not in files and config.backend != "tensorrt":
        yield f"the newest release has no {config.default_model_filename}", f"name one of {', '.join(files)}"
    largest = manifest.get("max_batch_size")
    if isinstance(largest, int) and config.max_batch_size > largest:
        yield f"max_batch_size {config.max_batch_size}, the model supports {largest}", f"max_batch_size: {largest}"
    on_cpu = any(group.kind == triton.ModelInstanceGroup.KIND_CPU for group in config.instance_group)
    if manifest.get("precision") == "fp16" and on_cpu:
        yield (
            "the release is fp16, which is slow on CPUs",
            "serve --config-name gpu, or make export PRECISION=int8",
        )


def check_engine(subject: Subject) -> Iterator[Problem]:
    """On the CPU, the server accepts the configuration, and its engine is one that the release was validated with."""
    config, manifest = subject.config, subject.manifest or {}
    on_cpu = any(group.kind == triton.ModelInstanceGroup.KIND_CPU for group in config.instance_group)
    if not on_cpu or config.backend != "onnxruntime":
        return
    message = MessageToDict(config, preserving_proto_field_name=True)
    try:
        engine = read_settings(message, kind="CPU", device_id=0, available=[CPU], cpus=1).engine
    except ConfigError as error:
        yield str(error), "correct or remove it; the server does not load the model"
        return
    validated = validated_engines(manifest)
    if validated and engine not in validated:
        yield (
            f"the engine is {engine!r}, the newest release was validated with {' and '.join(map(repr, validated))}",
            f"{_accelerator(validated[0])}, or make export",
        )


def _accelerator(engine: str) -> str:
    name, _, precision = engine.partition(" ")
    if name != "openvino":
        return "remove cpu_execution_accelerator"
    parameter = f'parameters {{ key: "{PRECISION_HINT}" value: "{precision}" }}'
    return f'cpu_execution_accelerator {{ name: "openvino" {parameter} }}'


def check_graph(subject: Subject) -> Iterator[Problem]:
    """The graph has the tensors of the configuration, and a format that the Triton release supports."""
    config, model = subject.config, subject.model
    if model is None:
        return
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    runtime = f"ONNX Runtime {subject.target.onnxruntime} of Triton {subject.target.name}"
    if opset > HIGHEST_OPSET:
        yield f"opset {opset}, {runtime} supports up to {HIGHEST_OPSET}", "export with opset 18: make export"
    if model.ir_version > HIGHEST_IR:
        yield (
            f"IR version {model.ir_version}, {runtime} supports up to {HIGHEST_IR}",
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
            yield (
                f"{kind} {name} has a fixed batch size of {batch.dim_value}",
                "export with a dynamic batch axis: make export",
            )
