"""Create an ONNX Runtime session, and check that it uses the requested providers and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from alexnet_server.onnxruntime.providers import ConfigError
from alexnet_server.onnxruntime.settings import Settings

GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
"""How the C++ backend interprets optimization.graph.level; the comment in Triton's model_config.proto differs."""


def make_session(path: Path, settings: Settings) -> ort.InferenceSession:
    """Create the session.

    ONNX Runtime optimises the graph at each start. Saving the optimised graph would not help: the fp32 network loads in
    0.56 s in both cases, int8 in 0.19 s as published and in 0.23 s as saved by ONNX Runtime (1.32, two cores).

    Raises:
        ConfigError: ONNX Runtime rejects the file or a setting, or uses another provider than requested.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = GRAPH_LEVELS.get(settings.graph_level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if settings.parallel else ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = settings.intra_op_threads
    options.inter_op_num_threads = settings.inter_op_threads
    if settings.mem_arena is not None:
        options.enable_cpu_mem_arena = settings.mem_arena
    if settings.mem_pattern is not None:
        options.enable_mem_pattern = settings.mem_pattern
    for key, value in settings.session_entries.items():
        options.add_session_config_entry(key, value)
    providers = [(name, dict(provider_options)) for name, provider_options in settings.providers]
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise ConfigError(f"ONNX Runtime {ort.__version__} cannot load {path.name}: {error}") from error
    check_providers(session.get_providers(), settings)
    return session


def check_providers(used: Sequence[str], settings: Settings) -> None:
    """ONNX Runtime falls back to the CPU with only a warning, which would be a hundred times slower.

    Raises:
        ConfigError: a requested provider is not used, and the fallback is not allowed.
    """
    missing = [name for name, _ in settings.providers if name not in used]
    if missing and not settings.cpu_fallback:
        raise ConfigError(
            f"ONNX Runtime cannot use {', '.join(missing)} and uses {', '.join(used)} instead: libraries are missing or do not "
            "match the driver (see its log lines above); install them, set instance_group kind to KIND_CPU, or allow the "
            'fallback with the parameter allow_cpu_fallback "1"'
        )


def check_names(session: ort.InferenceSession, inputs: Mapping[str, Any], outputs: Sequence[str]) -> None:
    """Check that the tensors of the configuration exist in the graph.

    Raises:
        ConfigError: the names differ.
    """
    graph_inputs = {each.name for each in session.get_inputs()}
    graph_outputs = {each.name for each in session.get_outputs()}
    if set(inputs) != graph_inputs:
        raise ConfigError(f"config.pbtxt has inputs {sorted(inputs)}, the graph has {sorted(graph_inputs)}")
    if not set(outputs) <= graph_outputs:
        raise ConfigError(f"config.pbtxt has outputs {sorted(outputs)}, the graph has {sorted(graph_outputs)}")
