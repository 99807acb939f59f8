"""Lint rules for the execution accelerators of a configuration and their profiles. Pure.

Source of the names: src/onnxruntime.cc of triton-inference-server/onnxruntime_backend, release 24.10.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tritonclient.grpc import model_config_pb2 as triton

from alexnet_export.check_release import Problem, Subject

TENSORRT_KEYS = frozenset(
    [
        "precision_mode",
        "max_workspace_size_bytes",
        "int8_calibration_table_name",
        "int8_use_native_calibration_table",
        "trt_max_partition_iterations",
        "trt_min_subgraph_size",
        "trt_dla_enable",
        "trt_dla_core",
        "trt_engine_cache_enable",
        "trt_engine_cache_path",
        "trt_engine_cache_prefix",
        "trt_dump_subgraphs",
        "trt_force_sequential_engine_build",
        "trt_context_memory_sharing_enable",
        "trt_layer_norm_fp32_fallback",
        "trt_timing_cache_enable",
        "trt_timing_cache_path",
        "trt_force_timing_cache",
        "trt_detailed_build_log",
        "trt_build_heuristics_enable",
        "trt_sparsity_enable",
        "trt_builder_optimization_level",
        "trt_auxiliary_streams",
        "trt_tactic_sources",
        "trt_extra_plugin_lib_paths",
        "trt_profile_min_shapes",
        "trt_profile_opt_shapes",
        "trt_profile_max_shapes",
        "trt_cuda_graph_enable",
        "trt_dump_ep_context_model",
        "trt_ep_context_file_path",
        "trt_ep_context_embed_mode",
    ]
)
OVERWRITTEN_KEYS = frozenset(
    ("cudnn_conv_algo_search", "gpu_mem_limit", "arena_extend_strategy", "do_copy_in_default_stream")
)
"""The C++ backend reads these from the top-level parameters and overwrites those of the cuda accelerator."""


def check_accelerators(subject: Subject) -> Iterator[Problem]:
    """Accelerators have known names and keys, and profiles that cover every batch size."""
    config = subject.config
    accelerators = config.optimization.execution_accelerators
    for each in accelerators.cpu_execution_accelerator:
        if each.name != "openvino":
            yield f"CPU accelerator {each.name!r} is unknown", "remove it; the C++ backend supports only openvino"
    for each in accelerators.gpu_execution_accelerator:
        if each.name == "tensorrt":
            yield from _check_tensorrt(config, dict(each.parameters))
        elif each.name == "cuda":
            for key in sorted(OVERWRITTEN_KEYS & set(each.parameters)):
                yield (
                    f"accelerator cuda: {key} has no effect, the backend overwrites it",
                    f'move it: parameters {{ key: "{key}" value {{ string_value: "..." }} }}',
                )
        else:
            yield f"GPU accelerator {each.name!r} is unknown", "use tensorrt or cuda, or remove it"


def _check_tensorrt(config: triton.ModelConfig, parameters: dict[str, str]) -> Iterator[Problem]:
    for key in sorted(set(parameters) - TENSORRT_KEYS):
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
