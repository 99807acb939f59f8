"""Lint rules for the execution accelerators of a configuration and their profiles. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tritonclient.grpc import model_config_pb2 as triton

from alexnet_export.check_release import Problem, Subject
from alexnet_server.onnxruntime.providers import CUDA_PARAMETERS, PRECISION_HINT, TENSORRT_PARAMETERS


def check_accelerators(subject: Subject) -> Iterator[Problem]:
    """Accelerators have known names and keys, and profiles that cover every batch size."""
    config = subject.config
    accelerators = config.optimization.execution_accelerators
    if subject.target.nvidia_container:
        for each in accelerators.cpu_execution_accelerator:
            yield from _check_openvino_of_nvidia(subject, dict(each.parameters))
    for each in accelerators.gpu_execution_accelerator:
        if each.name == "tensorrt":
            yield from _check_tensorrt(config, dict(each.parameters))
        elif each.name == "cuda":
            for key in sorted(CUDA_PARAMETERS.keys() & set(each.parameters)):
                yield (
                    f"accelerator cuda: {key} has no effect, the backend overwrites it",
                    f'move it: parameters {{ key: "{key}" value {{ string_value: "..." }} }}',
                )
        else:
            yield f"GPU accelerator {each.name!r} is unknown", "use tensorrt or cuda, or remove it"


def _check_openvino_of_nvidia(subject: Subject, parameters: dict[str, str]) -> Iterator[Problem]:
    """https://github.com/triton-inference-server/onnxruntime_backend/issues/260: the container ignores all parameters."""
    for key in sorted(set(parameters) - {PRECISION_HINT}):
        yield (
            f"accelerator openvino: {key} has no effect in NVIDIA's container",
            "remove it, or run the server of this project",
        )
    if subject.manifest is not None and subject.manifest.get("precision") == "fp32":
        yield (
            "accelerator openvino: NVIDIA's container computes this fp32 release in bf16 if the CPU can",
            "remove the accelerator, or publish a validated bf16 or int8 release: make export PRECISION=bf16",
        )


def _check_tensorrt(config: triton.ModelConfig, parameters: dict[str, str]) -> Iterator[Problem]:
    for key in sorted(set(parameters) - TENSORRT_PARAMETERS):
        yield f"accelerator tensorrt: unknown key {key}", "remove it; the C++ backend rejects the model"
    if "precision_mode" in parameters:
        yield (
            "accelerator tensorrt: TensorRT 11 does not support precision_mode",
            "remove it and publish a file of that precision: make export PRECISION=fp16",
        )
    cached = parameters.get("trt_engine_cache_enable", "0").lower() in ("1", "true")
    if cached and not parameters.get("trt_engine_cache_path"):
        yield (
            "accelerator tensorrt: an engine cache without a path",
            "set trt_engine_cache_path to a writable directory",
        )
    if cached and not parameters.get("trt_engine_cache_prefix"):
        yield (
            "accelerator tensorrt: the engine cache does not distinguish releases, its key does not contain the weights",
            'set trt_engine_cache_enable to "0", or a trt_engine_cache_prefix for each release',
        )
    shapes = {}
    for end in ("min", "opt", "max"):
        key = f"trt_profile_{end}_shapes"
        if key not in parameters:
            yield (
                f"accelerator tensorrt: {key} is missing, so a new batch size builds an engine while its requests wait",
                f'add it: parameters {{ key: "{key}" value: "{_profile(config, end)}" }}',
            )
            continue
        found = _read_profile(parameters[key])
        expected = {each.name: list(each.dims) for each in config.input}
        if found is None or {name: dims for name, (_, *dims) in found.items()} != expected:
            fix = f'set it to "{_profile(config, end)}"'
            yield f"accelerator tensorrt: {key} {parameters[key]!r} does not contain the inputs with their dims", fix
            continue
        shapes[end] = {batch for batch, *_ in found.values()}
    yield from _check_ends(config, shapes)


def _check_ends(config: triton.ModelConfig, shapes: dict[str, set[int]]) -> Iterator[Problem]:
    for end, name, wanted in (("min", "minimum", 1), ("max", "maximum", config.max_batch_size)):
        if end in shapes and shapes[end] != {wanted}:
            yield (
                f"accelerator tensorrt: the {name} of the profile is batch {min(shapes[end])}, requests need {wanted}",
                f'set trt_profile_{end}_shapes to "{_profile(config, end)}"',
            )


def _read_profile(text: str) -> dict[str, list[int]] | None:
    """Sizes by name of ``image:1x224x224x3,other:...``; None if the format is invalid."""
    parts = [re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", part.strip()) for part in text.split(",")]
    if not all(parts):
        return None
    return {part[1]: [int(size) for size in part[2].split("x")] for part in parts if part}


def _profile(config: triton.ModelConfig, end: str) -> str:
    batch = {"min": 1, "opt": min(32, config.max_batch_size), "max": config.max_batch_size}[end]
    return ",".join(f"{each.name}:{'x'.join(map(str, (batch, *each.dims)))}" for each in config.input)
