"""Select ONNX Runtime's execution providers from a model configuration, with the C++ backend's parameter names. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ConfigError(Exception):
    """The model configuration is invalid; loading the model fails with this text."""


CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
PRECISION_HINT = "INFERENCE_PRECISION_HINT"
"""OpenVINO's property for the data type of operators that are not quantised; without it, OpenVINO uses bf16 if the CPU can."""
_OPENVINO_PRECISIONS = ("f32", "bf16")

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
TENSORRT_PARAMETERS = frozenset(("precision_mode", *_TENSORRT_RENAMED, *_TENSORRT_SAME))
"""Parameters of the tensorrt accelerator; the C++ backend (release 24.10) rejects any other."""
CUDA_PARAMETERS: Mapping[str, Mapping[str, str] | None] = {
    # The configuration contains numbers, ONNX Runtime expects names.
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "gpu_mem_limit": None,
    "do_copy_in_default_stream": None,
}


def choose_providers(
    config: Mapping[str, Any],
    parameters: Mapping[str, str],
    kind: str,
    device_id: int,
    available: Sequence[str],
    *,
    threads: int,
    fallback: bool,
) -> tuple[list[tuple[str, Mapping[str, str]]], list[str]]:
    """Return the execution providers with their options, in order of preference, and a message for each ignored accelerator.

    The arguments are those of ``settings.read_settings``. OpenVINO uses ``threads`` threads unless its accelerator sets
    INFERENCE_NUM_THREADS. With ``fallback``, the CPU may execute what the GPU cannot.

    Raises:
        ConfigError: an accelerator or one of its parameters is unknown, or this build has no GPU support.
    """
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    on_cpu, on_gpu = (accelerators.get(f"{where}_execution_accelerator", []) for where in ("cpu", "gpu"))
    if kind != "GPU":
        skipped = [f"accelerator {each['name']}: the instance is on the CPU, ignored" for each in on_gpu]
        return [_openvino(each, threads) for each in on_cpu] or [(CPU, {})], skipped
    skipped = [f"accelerator {each['name']}: the instance is on a GPU, ignored" for each in on_cpu]
    if CUDA not in available:
        raise ConfigError(
            "the instance is KIND_GPU, but this build of ONNX Runtime has no CUDA provider; "
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
            raise ConfigError(f"unknown execution accelerator {each['name']!r}; use tensorrt or cuda")
    return [*providers, (CUDA, cuda), *([(CPU, {})] if fallback else [])], skipped


def _openvino(accelerator: Mapping[str, Any], threads: int) -> tuple[str, Mapping[str, str]]:
    """OpenVINO's properties; the precision is always set, so that the validated arithmetic is the one that serves."""
    if accelerator["name"] != "openvino":
        raise ConfigError(f"unknown CPU execution accelerator {accelerator['name']!r}; use openvino")
    own = {key: str(value) for key, value in accelerator.get("parameters", {}).items()}
    options = {PRECISION_HINT: "f32", "INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1", **own}
    if options[PRECISION_HINT] not in _OPENVINO_PRECISIONS:
        raise ConfigError(
            f"accelerator openvino: {PRECISION_HINT} must be one of {', '.join(_OPENVINO_PRECISIONS)}, "
            f"got {options[PRECISION_HINT]!r}"
        )
    return OPENVINO, options


def _tensorrt_options(options: Mapping[str, str]) -> dict[str, str]:
    translated: dict[str, str] = {}
    for key, value in options.items():
        if key == "precision_mode":
            if value not in _PRECISIONS:
                raise ConfigError(
                    f"accelerator tensorrt: precision_mode must be one of {', '.join(_PRECISIONS)}, got {value!r}"
                )
            flag = _PRECISIONS[value]
            translated.update({flag: "1"} if flag else {})
        elif key in _TENSORRT_RENAMED or key in _TENSORRT_SAME:
            translated[_TENSORRT_RENAMED.get(key, key)] = value
        else:
            raise ConfigError(f"accelerator tensorrt: unknown parameter {key!r}")
    return translated


def _cuda_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, names in CUDA_PARAMETERS.items():
        if key in parameters:
            value = parameters[key]
            if names is not None and value not in names:
                raise ConfigError(f"parameter {key} must be one of {', '.join(names)}, got {value!r}")
            options[key] = names[value] if names is not None else value
    return options
