"""Create an ONNX Runtime session, and check that it uses the requested providers and tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

from alexnet_client.cpus import cpu_name
from alexnet_client.golden import read_golden
from alexnet_client.manifest import MANIFEST, read_manifest, validated_engines
from alexnet_server.onnxruntime.providers import OPENVINO, PRECISION_HINT, ConfigError
from alexnet_server.onnxruntime.settings import Settings

GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
"""How the C++ backend interprets optimization.graph.level; the comment in Triton's model_config.proto differs."""
_WITHOUT_OPENVINO = (
    "Install onnxruntime-ep-openvino (`make setup`) on a machine with an Intel CPU, or publish a release for this machine "
    "(`make export`)"
)


def make_session(model: Path | bytes, settings: Settings) -> ort.InferenceSession:
    """Create the session of an ONNX file, or of its content.

    ONNX Runtime optimises the graph at each start. Saving the optimised graph would not help: the fp32 network loads in
    0.56 s in both cases, int8 in 0.19 s as published and in 0.23 s as saved by ONNX Runtime (1.32, two cores).

    Raises:
        ConfigError: ONNX Runtime rejects the file or a setting, or cannot use the requested provider.
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
    providers: list[Any] | None = [(name, dict(provider_options)) for name, provider_options in settings.providers]
    if device := check_openvino(settings):
        properties = {"CPU": dict(settings.providers[0][1])}
        options.add_provider_for_devices([device], {"load_config": json.dumps(properties)})
        providers = None
    try:
        session = ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        name = "the graph" if isinstance(model, bytes) else model.name
        raise ConfigError(f"ONNX Runtime {ort.__version__} cannot load {name}: {error}") from error
    check_providers(session.get_providers(), settings)
    return session


def openvino_device() -> Any:
    """The CPU as a device of OpenVINO's plug-in for ONNX Runtime (https://pypi.org/project/onnxruntime-ep-openvino).

    Raises:
        ConfigError: the plug-in is missing, cannot be loaded, or does not support this CPU.
    """
    try:
        _register_openvino()
    except Exception as error:  # the loader's and ONNX Runtime's exceptions have no common base
        raise ConfigError(f"OpenVINO's plug-in for ONNX Runtime cannot be loaded: {error}") from error
    devices = [each for each in ort.get_ep_devices() if each.ep_name == OPENVINO]
    if not devices:
        raise ConfigError(f"OpenVINO's plug-in supports only Intel CPUs, this is {cpu_name()}")
    return devices[0]


@cache
def _register_openvino() -> None:
    """Once per process: a second registration is an error."""
    import onnxruntime_ep_openvino as plugin

    ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())


def supports_bf16(device: Any) -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU."""
    return "BF16" in device.ep_metadata["OPTIMIZATION_CAPABILITIES"].split()


def check_openvino(settings: Settings) -> Any:
    """The device for these settings; None if they do not use OpenVINO.

    Raises:
        ConfigError: this CPU cannot be used with these settings.
    """
    name, properties = settings.providers[0]
    if name != OPENVINO:
        return None
    try:
        device = openvino_device()
    except ConfigError as error:
        raise ConfigError(f"{error}. {_WITHOUT_OPENVINO}") from error
    if properties[PRECISION_HINT] == "bf16" and not supports_bf16(device):
        raise ConfigError(f"this CPU ({cpu_name()}) has no bfloat16 instructions; publish another release: make export")
    return device


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


def check_engine(version: Path, settings: Settings) -> None:
    """A release is only served by an engine that it was validated with. On a GPU, only ``check_golden`` decides.

    Raises:
        ConfigError: the manifest names other engines than the configuration.
    """
    manifest = read_manifest(version)
    if manifest is None or settings.device_id is not None:
        return
    validated = validated_engines(manifest)
    if validated and settings.engine not in validated:
        raise ConfigError(
            f"the configuration selects the engine {settings.engine!r}, version {version.name} ({manifest.get('precision')}) was "
            f"validated with {' and '.join(map(repr, validated))}: change cpu_execution_accelerator in its configuration "
            "(for ONNX Runtime: remove it), or publish a release for this machine (`make export`)"
        )


def check_golden(version: Path, session: ort.InferenceSession, settings: Settings) -> None:
    """Compare the answers of a session with the golden answers of the release: all images in a batch, and one alone.

    Raises:
        ConfigError: they differ.
        BadInput: the golden answers are damaged.
    """
    golden = read_golden(version)
    if golden is None:
        return
    name = session.get_inputs()[0].name
    for batch in golden.batches():
        if mismatch := batch.mismatch(session.run(["logits"], {name: batch.images})[0]):
            raise ConfigError(
                f"version {version.name} gives wrong answers with {settings.engine}, ONNX Runtime {ort.__version__}, on this "
                f"CPU ({cpu_name()}): {mismatch}. Use the versions of the manifest ({MANIFEST}, tools), or publish a release "
                "for this machine (`make export`)"
            )
