"""From a model's configuration to ONNX Runtime's settings, by the C++ backend's parameter names. Pure.

Each name does here what it does there, is ignored with a reason that is logged, or is an error where the C++ backend
refuses it too. Source of the names: src/onnxruntime.cc of triton-inference-server/onnxruntime_backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class ConfigError(Exception):
    """The model configuration asks for something impossible; loading the model fails with this text."""


CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

GRAPH_LEVELS = {-1: "basic", 0: "all", 1: "extended", 2: "disabled"}
"""The C++ backend's reading of optimization.graph.level; the comment in Triton's protocol file says otherwise."""

_TENSORRT_RENAMED = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
_TENSORRT_SAME = frozenset(
    [
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
_PRECISIONS = {"FP32": None, "FP16": "trt_fp16_enable", "BF16": "trt_bf16_enable", "INT8": "trt_int8_enable"}
_CUDA_PARAMETERS: Mapping[str, Mapping[str, str] | None] = {
    # Top-level parameters carry numbers, ONNX Runtime's provider options want names.
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "gpu_mem_limit": None,
    "do_copy_in_default_stream": None,
}
_SESSION_PARAMETERS = frozenset(
    [
        "intra_op_thread_count",
        "inter_op_thread_count",
        "execution_mode",
        "enable_mem_arena",
        "enable_mem_pattern",
        "memory.enable_memory_arena_shrinkage",
        "session.use_device_allocator_for_initializers",
        "share_session_between_instances",
    ]
)


@dataclass(frozen=True)
class Settings:
    """What an ONNX Runtime session is made with.

    Attributes:
        graph_level: "basic", "extended", "all" or "disabled".
        parallel: run independent branches of the graph at once.
        intra_op_threads: threads within an operator.
        inter_op_threads: threads across operators; 0 leaves it to ONNX Runtime.
        mem_arena: keep freed memory for the next run; None leaves ONNX Runtime's default.
        mem_pattern: plan all allocations of a run ahead; None leaves ONNX Runtime's default.
        arena_shrinkage: devices whose arena is given back after each run, such as "cpu:0"; empty for none.
        session_entries: further session configuration entries.
        providers: execution providers with their options, preferred first.
        ignored: one line for each setting that has no effect here.
    """

    graph_level: str
    parallel: bool
    intra_op_threads: int
    inter_op_threads: int
    mem_arena: bool | None
    mem_pattern: bool | None
    arena_shrinkage: str
    session_entries: Mapping[str, str]
    providers: Sequence[tuple[str, Mapping[str, str]]]
    ignored: tuple[str, ...] = field(default=())


def read_settings(
    config: Mapping[str, Any], *, kind: str, device_id: int, available: Sequence[str], cpus: int
) -> Settings:
    """Read the settings of one model instance.

    Args:
        config: the model configuration, as Triton hands it over (JSON).
        kind: "CPU" or "GPU", where Triton placed the instance.
        device_id: of the GPU.
        available: execution providers this ONNX Runtime was built with.
        cpus: processors this process may use; shared out among the CPU instances unless the configuration says
            ``intra_op_thread_count``. (The C++ backend takes them all for each instance.)

    Raises:
        ConfigError: a value is not of its type or range, an accelerator or one of its keys is unknown, or a GPU
            instance is asked of a build without GPU support.
    """
    parameters = {key: str(value.get("string_value", "")) for key, value in config.get("parameters", {}).items()}
    ignored = [
        f"parameter {key}: unknown to the onnxruntime backend, ignored"
        for key in parameters
        if key not in _SESSION_PARAMETERS and key not in _CUDA_PARAMETERS
    ]
    if _boolean(parameters, "share_session_between_instances"):
        ignored.append("parameter share_session_between_instances: instances are processes here, each has its own")
    providers, skipped = _providers(config, parameters, kind, device_id, available)
    mode = _integer(parameters, "execution_mode")
    if mode not in (0, 1):
        raise ConfigError(f"parameter execution_mode must be 0 (sequential) or 1 (parallel), got {mode}")
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    return Settings(
        graph_level=GRAPH_LEVELS.get(level, "all"),
        parallel=mode == 1,
        intra_op_threads=_integer(parameters, "intra_op_thread_count") or max(1, cpus // _cpu_instances(config)),
        inter_op_threads=_integer(parameters, "inter_op_thread_count"),
        mem_arena=_boolean(parameters, "enable_mem_arena"),
        mem_pattern=_boolean(parameters, "enable_mem_pattern"),
        arena_shrinkage=parameters.get("memory.enable_memory_arena_shrinkage", ""),
        session_entries={
            key: value for key, value in parameters.items() if key.startswith("session.") and key in _SESSION_PARAMETERS
        },
        providers=providers,
        ignored=tuple(ignored + skipped),
    )


def _providers(
    config: Mapping[str, Any], parameters: Mapping[str, str], kind: str, device_id: int, available: Sequence[str]
) -> tuple[list[tuple[str, Mapping[str, str]]], list[str]]:
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    skipped = [
        f"accelerator {each['name']}: not in this build of ONNX Runtime, ignored"
        for each in accelerators.get("cpu_execution_accelerator", [])
    ]
    on_gpu = accelerators.get("gpu_execution_accelerator", [])
    if kind != "GPU":
        skipped += [f"accelerator {each['name']}: the instance is on the CPU, ignored" for each in on_gpu]
        return [(CPU, {})], skipped
    if CUDA not in available:
        raise ConfigError(
            "the instance is KIND_GPU but this ONNX Runtime has no CUDA provider; "
            "install onnxruntime-gpu (ACCELERATOR=gpu) or set instance_group kind to KIND_CPU"
        )
    providers: list[tuple[str, Mapping[str, str]]] = []
    cuda = {"device_id": str(device_id), **_cuda_parameters(parameters)}
    for each in on_gpu:
        options = {key: str(value) for key, value in each.get("parameters", {}).items()}
        if each["name"] == "cuda":
            cuda = {**options, **cuda}
        elif each["name"] == "tensorrt":
            tensorrt = {"device_id": str(device_id), **_tensorrt_options(options)}
            if TENSORRT in available:
                providers.append((TENSORRT, tensorrt))
            else:
                skipped.append("accelerator tensorrt: not in this build of ONNX Runtime, ignored")
        else:
            raise ConfigError(f"unknown execution accelerator {each['name']!r}; known are tensorrt and cuda")
    return [*providers, (CUDA, cuda), (CPU, {})], skipped


def _tensorrt_options(options: Mapping[str, str]) -> dict[str, str]:
    translated: dict[str, str] = {}
    for key, value in options.items():
        if key == "precision_mode":
            if value not in _PRECISIONS:
                raise ConfigError(f"accelerator tensorrt: precision_mode {value!r}, known are {', '.join(_PRECISIONS)}")
            flag = _PRECISIONS[value]
            translated.update({flag: "1"} if flag else {})
        elif key in _TENSORRT_RENAMED or key in _TENSORRT_SAME:
            translated[_TENSORRT_RENAMED.get(key, key)] = value
        else:
            raise ConfigError(f"accelerator tensorrt: unknown parameter {key!r}")
    return translated


def _cuda_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, names in _CUDA_PARAMETERS.items():
        if key in parameters:
            value = parameters[key]
            if names is not None and value not in names:
                raise ConfigError(f"parameter {key} must be one of {', '.join(names)}, got {value!r}")
            options[key] = names[value] if names is not None else value
    return options


def _cpu_instances(config: Mapping[str, Any]) -> int:
    groups = config.get("instance_group", [])
    return max(1, sum(int(group.get("count", 1)) for group in groups if group.get("kind") != "KIND_GPU"))


def _integer(parameters: Mapping[str, str], key: str) -> int:
    try:
        return int(parameters.get(key) or 0)
    except ValueError:
        raise ConfigError(f"parameter {key} must be a whole number, got {parameters[key]!r}") from None


def _boolean(parameters: Mapping[str, str], key: str) -> bool | None:
    if key not in parameters:
        return None
    value = parameters[key].lower()
    if value in ("1", "true"):
        return True
    if value in ("0", "false"):
        return False
    raise ConfigError(f"parameter {key} must be 1, 0, true or false, got {parameters[key]!r}")
