"""Lint Triton configurations, and compare them with the release that they serve and with a Triton release.

``check_config`` is pure; ``check_repository`` reads the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from alexnet_client.errors import BadInput
from alexnet_client.manifest import MANIFEST, find_mismatch, read_manifest
from alexnet_export.accelerators import check_accelerators
from alexnet_export.check_release import (
    Problem,
    Subject,
    Target,
    check_engine,
    check_graph,
    check_labels,
    check_release,
    model_directory,
)
from alexnet_export.releases import releases


@dataclass(frozen=True)
class Finding:
    """A problem of a configuration, and the exact fix."""

    path: str
    problem: str
    fix: str


def check_config(
    text: str,
    *,
    path: Path,
    target: Target,
    model: onnx.ModelProto | None = None,
    manifest: Mapping[str, Any] | None = None,
    versions: Sequence[int] = (),
    labels: int | None = None,
) -> list[Finding]:
    """Lint the text of one configuration; the other arguments are the attributes of ``Subject``."""
    try:
        config = text_format.Parse(text, triton.ModelConfig())
    except text_format.ParseError as error:
        fix = "fix this line; model_config.proto defines the field names"
        return [Finding(str(path), f"cannot be parsed: {error}", fix)]
    subject = Subject(config, path, target, model, manifest, versions, labels)
    kind = "ensemble" if config.platform == "ensemble" else config.backend
    checks = _CHECKS if kind in ("onnxruntime", "tensorrt", "") else _CHECKS_OF.get(kind, (_check_name,))
    return [Finding(str(path), problem, fix) for check in checks for problem, fix in check(subject)]


def check_repository(repository: Path, target: Target) -> tuple[list[Path], list[Finding]]:
    """Lint every configuration of every model; return the files and the findings.

    Raises:
        BadInput: there is no configuration, or one cannot be read.
    """
    paths = sorted([*repository.glob("*/config.pbtxt"), *repository.glob("*/configs/*.pbtxt")])
    if not paths:
        raise BadInput(f"{repository}: contains no <model>/config.pbtxt; set the path of the model repository")
    findings: list[Finding] = []
    for directory in sorted({model_directory(path) for path in paths}):
        published = releases(repository, directory.name)
        newest = published[-1].directory if published else None
        model, manifest = None, None
        labels = directory / "labels.txt"
        if newest is not None and (newest / MANIFEST).is_file():
            manifest = read_manifest(newest)
            if problem := find_mismatch(newest):
                findings.append(Finding(str(newest), problem, "publish again, or roll back: alexnet-export rollback"))
        if newest is not None and (newest / "model.onnx").is_file():
            model = _read_graph(newest / "model.onnx")
        for path in paths:
            if model_directory(path) == directory:
                findings += check_config(
                    path.read_text(errors="replace"),
                    path=path,
                    target=target,
                    model=model,
                    manifest=manifest,
                    versions=[release.version for release in published],
                    labels=len(labels.read_text().splitlines()) if labels.is_file() else None,
                )
    return paths, findings


def _read_graph(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common base
        raise BadInput(f"{path}: not an ONNX file; publish again: make export") from error


def _check_name(subject: Subject) -> Iterator[Problem]:
    directory = model_directory(subject.path)
    if subject.config.name != directory.name:
        yield f"name {subject.config.name!r} differs from the directory", f'name: "{directory.name}"'


def _check_fields(subject: Subject) -> Iterator[Problem]:
    config = subject.config
    if not config.backend:
        yield "no backend", 'backend: "onnxruntime" (or "tensorrt" for a model.plan)'
    if config.runtime:
        yield "runtime is set", "remove it; Triton finds the library of the backend itself"
    if not config.default_model_filename:
        yield "no default_model_filename", 'default_model_filename: "model.onnx"'
    if config.max_batch_size < 1:
        yield "max_batch_size 0 disables batching", "max_batch_size: 64, and dims without the batch"
    if not config.HasField("version_policy"):
        yield "no version_policy", "version_policy { latest { num_versions: 1 } }"
    if config.HasField("model_metrics") and not subject.target.model_metrics:
        yield (
            f"Triton {subject.target.name} cannot parse model_metrics",
            "remove it, or use Triton 24.11 or newer",
        )


def _check_instances(subject: Subject) -> Iterator[Problem]:
    config = subject.config
    if not config.instance_group:
        yield "no instance_group: the default is two instances on CPUs", "instance_group { kind: KIND_CPU count: 1 }"
    for group in config.instance_group:
        if group.count < 1 or group.kind == triton.ModelInstanceGroup.KIND_AUTO:
            yield "an instance_group without count or kind", "set both: kind: KIND_CPU (or KIND_GPU), count: 1"


def _check_queue(subject: Subject) -> Iterator[Problem]:
    config = subject.config
    if not config.HasField("dynamic_batching"):
        yield "no dynamic_batching: requests are not batched", "dynamic_batching { default_queue_policy { ... } }"
        return
    policy = config.dynamic_batching.default_queue_policy
    instances = sum(max(1, group.count) for group in config.instance_group)
    if policy != triton.ModelQueuePolicy() and instances < 2:
        yield (
            "a queue policy with one instance: Triton's batcher can stall, bursts of requests then wait 500 ms",
            "instance_group { count: 2 }, or no default_queue_policy (requests past their deadline are removed nevertheless)",
        )
    if policy.max_queue_size and policy.default_timeout_microseconds < 1:
        yield "requests have no queue timeout", "default_queue_policy { default_timeout_microseconds: 10000000 }"
    if policy.default_timeout_microseconds and not policy.max_queue_size:
        yield "the queue size is not limited", "default_queue_policy { max_queue_size: 512 }"
    if policy.default_timeout_microseconds and not policy.allow_timeout_override:
        yield "requests cannot set a shorter queue timeout", "default_queue_policy { allow_timeout_override: true }"
    for batch in config.dynamic_batching.preferred_batch_size:
        if batch > config.max_batch_size:
            yield (
                f"preferred_batch_size {batch} exceeds max_batch_size {config.max_batch_size}",
                "remove it, or raise max_batch_size",
            )


def _check_warm_up(subject: Subject) -> Iterator[Problem]:
    """Batch sizes with an engine, a CUDA graph or a preference have a warm-up."""
    config = subject.config
    special = {1, config.max_batch_size, *config.dynamic_batching.preferred_batch_size}
    for spec in config.optimization.cuda.graph_spec:
        special.add(max(1, spec.batch_size))
        if spec.batch_size > config.max_batch_size:
            yield f"the CUDA graph for batch {spec.batch_size} exceeds max_batch_size", "remove that graph_spec"
    if config.optimization.cuda.graphs and config.backend != "tensorrt":
        yield "optimization.cuda.graphs has no effect outside the tensorrt backend", "remove it"
    warm = {sample.batch_size for sample in config.model_warmup}
    for batch in sorted(special - warm):
        if 0 < batch <= config.max_batch_size:
            yield f"no warm-up for batch {batch}", f"model_warmup {{ batch_size: {batch} inputs {{ ... }} }}"


def _check_ensemble(subject: Subject) -> Iterator[Problem]:
    """The steps are models of this repository, and a tensor is written before it is read."""
    config = subject.config
    written = {each.name for each in config.input}
    for step in config.ensemble_scheduling.step:
        if not (model_directory(subject.path).parent / step.model_name / "config.pbtxt").is_file():
            yield f"step {step.model_name} is not a model of this repository", "publish again: make export"
        for tensor in sorted(set(step.input_map.values()) - written):
            yield f"step {step.model_name} reads {tensor}, which no earlier step writes", "fix its input_map"
        written |= set(step.output_map.values())
    for each in config.output:
        if each.name not in written:
            yield f"no step writes output {each.name}", "fix the output_map of a step"


_Check = Callable[[Subject], Iterator[Problem]]
_CHECKS: tuple[_Check, ...] = (
    _check_name,
    _check_fields,
    _check_instances,
    _check_queue,
    _check_warm_up,
    check_labels,
    check_release,
    check_engine,
    check_graph,
    check_accelerators,
)
_CHECKS_OF: Mapping[str, tuple[_Check, ...]] = {
    "ensemble": (_check_name, _check_ensemble),
    "image_decoder": (_check_name, _check_instances, _check_queue),
}
"""Models without weights."""
