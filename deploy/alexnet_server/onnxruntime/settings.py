"""Read ONNX Runtime's settings from a model configuration, with the C++ backend's parameter names. Pure.

A parameter has the same effect as in the C++ backend, is ignored with a log message, or is an error if the C++ backend
rejects it too. Source of the names: src/onnxruntime.cc of triton-inference-server/onnxruntime_backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alexnet_server.onnxruntime.providers import (
    CPU,
    CUDA,
    CUDA_PARAMETERS,
    OPENVINO,
    PRECISION_HINT,
    TENSORRT,
    ConfigError,
    choose_providers,
)

_SESSION_PARAMETERS = frozenset(
    [
        "intra_op_thread_count",
        "inter_op_thread_count",
        "execution_mode",
        "enable_mem_arena",
        "enable_mem_pattern",
        "memory.enable_memory_arena_shrinkage",
        "share_session_between_instances",
        "allow_cpu_fallback",
        "FORCE_CPU_ONLY_INPUT_TENSORS",
    ]
)
_SESSION_ENTRIES = frozenset(
    [
        "session.dynamic_block_base",
        "session.force_spinning_stop",
        "session.inter_op.allow_spinning",
        "session.intra_op.allow_spinning",
        "session.use_device_allocator_for_initializers",
    ]
)
"""ONNX Runtime's names (onnxruntime_session_options_config_keys.h). The C++ backend ignores unknown parameters too."""


@dataclass(frozen=True)
class Settings:
    """Settings of an ONNX Runtime session.

    Attributes:
        graph_level: value of optimization.graph.level.
        parallel: execute independent branches of the graph in parallel.
        intra_op_threads: threads within an operator.
        inter_op_threads: threads across operators; 0 for ONNX Runtime's default.
        mem_arena: keep freed memory for the next run; None for ONNX Runtime's default.
        mem_pattern: plan all allocations of a run in advance; None for ONNX Runtime's default.
        arena_shrinkage: devices whose arena is freed after each run, such as "cpu:0"; empty for none.
        session_entries: other session configuration entries.
        providers: execution providers with their options, in order of preference.
        device_id: number of the GPU of the instance; None on the CPU.
        cpu_fallback: whether ONNX Runtime's CPU kernels may replace a provider that cannot be used.
        ignored: one message for each setting without effect.
    """

    graph_level: int
    parallel: bool
    intra_op_threads: int
    inter_op_threads: int
    mem_arena: bool | None
    mem_pattern: bool | None
    arena_shrinkage: str
    session_entries: Mapping[str, str]
    providers: Sequence[tuple[str, Mapping[str, str]]]
    device_id: int | None = None
    cpu_fallback: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def engine(self) -> str:
        """What computes, as in a manifest: "onnxruntime", "openvino f32", "openvino bf16", "cuda" or "tensorrt"."""
        provider, options = self.providers[0]
        if provider == OPENVINO:
            return f"openvino {options[PRECISION_HINT]}"
        return {CPU: "onnxruntime", CUDA: "cuda", TENSORRT: "tensorrt"}[provider]

    @property
    def cuda_graphs(self) -> bool:
        """Whether the CUDA provider captures graphs."""
        return any(name == CUDA and options.get("enable_cuda_graph") == "1" for name, options in self.providers)


def read_settings(
    config: Mapping[str, Any], *, kind: str, device_id: int, available: Sequence[str], cpus: int
) -> Settings:
    """Read the settings of one model instance.

    Args:
        config: the model configuration (JSON from Triton).
        kind: "CPU" or "GPU".
        device_id: number of the GPU.
        available: execution providers of this build of ONNX Runtime.
        cpus: number of CPUs that this process may use. Without ``intra_op_thread_count``, each instance has one thread for
            each CPU. If threads spin (ONNX Runtime's default), the CPUs are divided among the instances instead, because
            spinning threads would block each other. (The C++ backend does not divide them.)

    Raises:
        ConfigError: a value has the wrong type or range, an accelerator or one of its parameters is unknown, or a GPU
            instance is configured for a build without GPU support.
    """
    parameters = {key: str(value.get("string_value", "")) for key, value in config.get("parameters", {}).items()}
    ignored = [
        f"parameter {key}: unknown parameter of the onnxruntime backend, ignored"
        for key in parameters
        if key not in _SESSION_PARAMETERS | _SESSION_ENTRIES | CUDA_PARAMETERS.keys()
    ]
    if _boolean(parameters, "share_session_between_instances"):
        ignored.append(
            "parameter share_session_between_instances: not supported, each instance is a process with its own session; ignored"
        )
    fallback = bool(_boolean(parameters, "allow_cpu_fallback"))
    threads = _integer(parameters, "intra_op_thread_count") or _threads(config, parameters, cpus)
    providers, skipped = choose_providers(
        config, parameters, kind, device_id, available, threads=threads, fallback=fallback
    )
    mode = _integer(parameters, "execution_mode")
    if mode not in (0, 1):
        raise ConfigError(f"parameter execution_mode must be 0 (sequential) or 1 (parallel), got {mode}")
    return Settings(
        graph_level=int(config.get("optimization", {}).get("graph", {}).get("level", 0)),
        parallel=mode == 1,
        intra_op_threads=threads,
        inter_op_threads=_integer(parameters, "inter_op_thread_count"),
        mem_arena=_boolean(parameters, "enable_mem_arena"),
        mem_pattern=_boolean(parameters, "enable_mem_pattern"),
        arena_shrinkage=parameters.get("memory.enable_memory_arena_shrinkage", ""),
        session_entries={
            **({"session.disable_cpu_ep_fallback": "1"} if providers[0][0] != CPU and not fallback else {}),
            **{key: value for key, value in parameters.items() if key in _SESSION_ENTRIES},
        },
        providers=providers,
        device_id=device_id if kind == "GPU" else None,
        cpu_fallback=fallback,
        ignored=tuple(ignored + skipped),
    )


def _threads(config: Mapping[str, Any], parameters: Mapping[str, str], cpus: int) -> int:
    if parameters.get("session.intra_op.allow_spinning") == "0":
        return cpus
    groups = config.get("instance_group", [])
    instances = sum(int(group.get("count", 1)) for group in groups if group.get("kind") != "KIND_GPU")
    return max(1, cpus // max(1, instances))


def _integer(parameters: Mapping[str, str], key: str) -> int:
    try:
        return int(parameters.get(key) or 0)
    except ValueError:
        raise ConfigError(f"parameter {key} must be an integer, got {parameters[key]!r}") from None


def _boolean(parameters: Mapping[str, str], key: str) -> bool | None:
    if key not in parameters:
        return None
    value = parameters[key].lower()
    if value in ("1", "true"):
        return True
    if value in ("0", "false"):
        return False
    raise ConfigError(f"parameter {key} must be 1, 0, true or false, got {parameters[key]!r}")
