"""A lint of Triton configurations: against themselves, the release they serve, and the container they shall run in.

``check_config`` is pure; ``check_repository`` walks the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from alexnet_export.accelerators import Problem, check_accelerators
from alexnet_export.errors import UserError
from alexnet_export.publish import releases

HIGHEST_OPSET, HIGHEST_IR = 21, 10
"""What ONNX Runtime 1.19 reads; the later containers' read at least that."""
DIMENSION = "a batch axis named by a symbol, not a number"


@dataclass(frozen=True)
class Target:
    """A Triton release that the configurations shall run in."""

    name: str
    onnxruntime: str
    model_metrics: bool


TARGETS = {
    each.name: each
    for each in (
        Target("24.10", "1.19.2", model_metrics=False),
        Target("25.06", "1.22.0", model_metrics=True),
        Target("25.12", "1.23.2", model_metrics=True),
        Target("26.06", "1.24.4", model_metrics=True),
        Target("26.07", "1.27.0", model_metrics=True),
    )
}
"""Source: docs/introduction/compatibility.md and build.py of triton-inference-server/server."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with a configuration, and the exact fix."""

    path: str
    problem: str
    fix: str


@dataclass(frozen=True)
class Subject:
    """A parsed configuration and what it is to fit; ``model`` and ``manifest`` are None before there is a release."""

    config: triton.ModelConfig
    path: Path
    target: Target
    model: onnx.ModelProto | None = None
    manifest: Mapping[str, Any] | None = None
    labels: int | None = None


def check_config(
    text: str,
    *,
    path: Path,
    target: Target,
    model: onnx.ModelProto | None = None,
    manifest: Mapping[str, Any] | None = None,
    labels: int | None = None,
) -> list[Finding]:
    """Look at one configuration.

    Args:
        text: of the file.
        path: of it, ``<model>/config.pbtxt`` or ``<model>/configs/<name>.pbtxt``.
        target: the Triton it shall run in.
        model: the newest release's ONNX graph; its weights are not looked at.
        manifest: of that release.
        labels: how many lines labels.txt has; None if there is none.
    """
    try:
        config = text_format.Parse(text, triton.ModelConfig())
    except text_format.ParseError as error:
        return [
            Finding(
                str(path), f"does not parse: {error}", "mend that line; field names are those of model_config.proto"
            )
        ]
    subject = Subject(config, path, target, model, manifest, labels)
    return [Finding(str(path), problem, fix) for check in _CHECKS for problem, fix in check(subject)]


def check_repository(repository: Path, target: Target) -> tuple[list[Path], list[Finding]]:
    """Look at every configuration of every model; give what was looked at, and what is wrong.

    Raises:
        UserError: there is no configuration at all, or one cannot be read.
    """
    paths = sorted([*repository.glob("*/config.pbtxt"), *repository.glob("*/configs/*.pbtxt")])
    if not paths:
        raise UserError(f"{repository}: no <model>/config.pbtxt in it; name the model repository")
    findings: list[Finding] = []
    for directory in sorted({_model_directory(path) for path in paths}):
        newest = next(iter(releases(repository, directory.name)[::-1]), None)
        model, manifest = None, None
        labels = directory / "labels.txt"
        if newest is not None and (newest.directory / "manifest.json").is_file():
            try:
                manifest = newest.manifest
            except UserError as error:
                findings.append(Finding(str(newest.directory), str(error), "alexnet-export rollback"))
        if newest is not None and (newest.directory / "model.onnx").is_file():
            model = _read_graph(newest.directory / "model.onnx")
        for path in paths:
            if _model_directory(path) == directory:
                count = len(labels.read_text().splitlines()) if labels.is_file() else None
                text = path.read_text(errors="replace")
                findings += check_config(text, path=path, target=target, model=model, manifest=manifest, labels=count)
    return paths, findings


def _model_directory(path: Path) -> Path:
    return path.parent.parent if path.parent.name == "configs" else path.parent


def _read_graph(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common base
        raise UserError(f"{path}: not an ONNX file; publish again: make export") from error


def _check_itself(subject: Subject) -> Iterator[Problem]:
    config, directory = subject.config, _model_directory(subject.path)
    if config.name != directory.name:
        yield f"name {config.name!r} is not that of its directory", f'name: "{directory.name}"'
    if not config.backend:
        yield "no backend", 'backend: "onnxruntime" (or "tensorrt" for a model.plan)'
    if config.runtime:
        yield "a runtime is named", "remove it; Triton finds its backend's own"
    if not config.default_model_filename:
        yield "no default_model_filename", 'default_model_filename: "model.onnx"'
    if config.max_batch_size < 1:
        yield "max_batch_size 0: no batching", "max_batch_size: 64, and dims without the batch"
    if not config.HasField("version_policy"):
        yield "no version_policy", "version_policy { latest { num_versions: 1 } }"
    if config.HasField("model_metrics") and not subject.target.model_metrics:
        yield (
            f"model_metrics, which Triton {subject.target.name} cannot parse",
            "remove it, or use a release from 24.11 on",
        )


def _check_instances(subject: Subject) -> Iterator[Problem]:
    config = subject.config
    if not config.instance_group:
        yield "no instance_group: the default is two instances on a CPU", "instance_group { kind: KIND_CPU count: 1 }"
    for group in config.instance_group:
        if group.count < 1 or group.kind == triton.ModelInstanceGroup.KIND_AUTO:
            yield "an instance_group without count or kind", "give both: kind: KIND_CPU (or KIND_GPU), count: 1"


def _check_queue(subject: Subject) -> Iterator[Problem]:
    config = subject.config
    if not config.HasField("dynamic_batching"):
        yield "no dynamic_batching: every request runs alone", "dynamic_batching { default_queue_policy { ... } }"
        return
    policy = config.dynamic_batching.default_queue_policy
    if policy.max_queue_size < 1:
        yield "the queue has no bound", "default_queue_policy { max_queue_size: 512 }"
    if policy.default_timeout_microseconds < 1:
        yield "requests wait for ever", "default_queue_policy { default_timeout_microseconds: 10000000 }"
    if not policy.allow_timeout_override:
        yield "a caller's deadline is ignored in the queue", "default_queue_policy { allow_timeout_override: true }"
    for batch in config.dynamic_batching.preferred_batch_size:
        if batch > config.max_batch_size:
            yield (
                f"preferred_batch_size {batch} is above max_batch_size {config.max_batch_size}",
                "remove it, or raise max_batch_size",
            )


def _check_special_sizes(subject: Subject) -> Iterator[Problem]:
    """Sizes that are built, captured or preferred are to be run before the model is ready."""
    config = subject.config
    special = {1, config.max_batch_size, *config.dynamic_batching.preferred_batch_size}
    for spec in config.optimization.cuda.graph_spec:
        special.add(max(1, spec.batch_size))
        if spec.batch_size > config.max_batch_size:
            yield f"a CUDA graph for batch {spec.batch_size} is above max_batch_size", "remove that graph_spec"
    if config.optimization.cuda.graphs and config.backend != "tensorrt":
        yield "optimization.cuda.graphs has no effect outside the tensorrt backend", "remove it"
    warm = {sample.batch_size for sample in config.model_warmup}
    for batch in sorted(special - warm):
        if 0 < batch <= config.max_batch_size:
            yield f"no warm-up for batch {batch}", f"model_warmup {{ batch_size: {batch} inputs {{ ... }} }}"


def _check_labels(subject: Subject) -> Iterator[Problem]:
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


def _check_release(subject: Subject) -> Iterator[Problem]:
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


def _check_graph(subject: Subject) -> Iterator[Problem]:
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


def _check_accelerators(subject: Subject) -> Iterator[Problem]:
    yield from check_accelerators(subject.config)


_DTYPES = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT8: "TYPE_INT8",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.STRING: "TYPE_STRING",
}
_CHECKS: tuple[Callable[[Subject], Iterator[Problem]], ...] = (
    *(_check_itself, _check_instances, _check_queue, _check_special_sizes, _check_labels, _check_release, _check_graph),
    _check_accelerators,
)
