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

from alexnet_export.accelerators import check_accelerators
from alexnet_export.check_fit import check_graph, check_labels, check_release
from alexnet_export.check_subject import Problem, Subject, Target, model_directory
from alexnet_export.errors import UserError
from alexnet_export.releases import check_files, releases


@dataclass(frozen=True)
class Finding:
    """What is wrong with a configuration, and the exact fix."""

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
    kind = "ensemble" if config.platform == "ensemble" else config.backend
    checks = _CHECKS if kind in ("onnxruntime", "tensorrt", "") else _CHECKS_OF.get(kind, (_check_name,))
    return [Finding(str(path), problem, fix) for check in checks for problem, fix in check(subject)]


def check_repository(repository: Path, target: Target) -> tuple[list[Path], list[Finding]]:
    """Look at every configuration of every model; give what was looked at, and what is wrong.

    Raises:
        UserError: there is no configuration at all, or one cannot be read.
    """
    paths = sorted([*repository.glob("*/config.pbtxt"), *repository.glob("*/configs/*.pbtxt")])
    if not paths:
        raise UserError(f"{repository}: no <model>/config.pbtxt in it; name the model repository")
    findings: list[Finding] = []
    for directory in sorted({model_directory(path) for path in paths}):
        newest = next(iter(releases(repository, directory.name)[::-1]), None)
        model, manifest = None, None
        labels = directory / "labels.txt"
        if newest is not None and (newest.directory / "manifest.json").is_file():
            try:
                manifest = newest.manifest
                check_files(newest)
            except UserError as error:
                findings.append(Finding(str(newest.directory), str(error), "alexnet-export rollback"))
        if newest is not None and (newest.directory / "model.onnx").is_file():
            model = _read_graph(newest.directory / "model.onnx")
        for path in paths:
            if model_directory(path) == directory:
                count = len(labels.read_text().splitlines()) if labels.is_file() else None
                text = path.read_text(errors="replace")
                findings += check_config(text, path=path, target=target, model=model, manifest=manifest, labels=count)
    return paths, findings


def _read_graph(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common base
        raise UserError(f"{path}: not an ONNX file; publish again: make export") from error


def _check_name(subject: Subject) -> Iterator[Problem]:
    directory = model_directory(subject.path)
    if subject.config.name != directory.name:
        yield f"name {subject.config.name!r} is not that of its directory", f'name: "{directory.name}"'


def _check_itself(subject: Subject) -> Iterator[Problem]:
    config = subject.config
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
    instances = sum(max(1, group.count) for group in config.instance_group)
    if policy != triton.ModelQueuePolicy() and instances < 2:
        yield (
            "a queue policy with one instance: Triton's batcher forgets to wake up, bursts then wait 500 ms",
            "instance_group { count: 2 }, or no default_queue_policy (callers' deadlines still empty the queue)",
        )
    if policy.max_queue_size and policy.default_timeout_microseconds < 1:
        yield "requests wait for ever", "default_queue_policy { default_timeout_microseconds: 10000000 }"
    if policy.default_timeout_microseconds and not policy.max_queue_size:
        yield "the queue has no bound", "default_queue_policy { max_queue_size: 512 }"
    if policy.default_timeout_microseconds and not policy.allow_timeout_override:
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


def _check_accelerators(subject: Subject) -> Iterator[Problem]:
    yield from check_accelerators(subject.config)


def _check_ensemble(subject: Subject) -> Iterator[Problem]:
    """Its steps are models of this repository, and what a step reads was made before."""
    config = subject.config
    made = {each.name for each in config.input}
    for step in config.ensemble_scheduling.step:
        if not (model_directory(subject.path).parent / step.model_name / "config.pbtxt").is_file():
            yield f"step {step.model_name} is not a model of this repository", "publish again: make export"
        for tensor in sorted(set(step.input_map.values()) - made):
            yield f"step {step.model_name} reads {tensor}, which nothing before it makes", "mend its input_map"
        made |= set(step.output_map.values())
    for each in config.output:
        if each.name not in made:
            yield f"output {each.name} is made by no step", "mend the output_map of a step"


_Check = Callable[[Subject], Iterator[Problem]]
_CHECKS: tuple[_Check, ...] = (
    *(
        _check_name,
        _check_itself,
        _check_instances,
        _check_queue,
        _check_special_sizes,
        check_labels,
        check_release,
        check_graph,
    ),
    _check_accelerators,
)
_CHECKS_OF: Mapping[str, tuple[_Check, ...]] = {
    "ensemble": (_check_name, _check_ensemble),
    "image_decoder": (_check_name, _check_instances, _check_queue),
}
"""Models without weights."""
