"""Parameters of the C++ backend: each has the same effect, is ignored with a message, or is an error."""

from __future__ import annotations

import pytest

from alexnet_server.onnxruntime.providers import CPU, CUDA, OPENVINO, TENSORRT, ConfigError
from alexnet_server.onnxruntime.settings import read_settings

ALL = (TENSORRT, CUDA, CPU)
ENTRY = "session.use_device_allocator_for_initializers"


def settings(config=None, *, kind="CPU", available=(CPU,), cpus=8, **parameters):
    named = {key.replace("__", "."): {"string_value": value} for key, value in parameters.items()}
    config = {"parameters": named, **(config or {})}
    return read_settings(config, kind=kind, device_id=1, available=available, cpus=cpus)


def accelerated(name, where="gpu_execution_accelerator", **parameters):
    return {"optimization": {"execution_accelerators": {where: [{"name": name, "parameters": parameters}]}}}


def on_openvino(**parameters):
    return accelerated("openvino", "cpu_execution_accelerator", **parameters)


def test_the_defaults_are_those_of_onnxruntime_with_all_cpus():
    plain = settings()
    assert (plain.parallel, plain.intra_op_threads, plain.inter_op_threads) == (False, 8, 0)
    assert (plain.mem_arena, plain.mem_pattern) == (None, None)
    assert plain.providers == [(CPU, {})]
    assert plain.ignored == ()


@pytest.mark.parametrize(
    ("key", "value", "attribute", "effect"),
    [
        ("intra_op_thread_count", "3", "intra_op_threads", 3),
        ("inter_op_thread_count", "2", "inter_op_threads", 2),
        ("execution_mode", "0", "parallel", False),
        ("execution_mode", "1", "parallel", True),
        ("enable_mem_arena", "0", "mem_arena", False),
        ("enable_mem_arena", "true", "mem_arena", True),
        ("enable_mem_pattern", "False", "mem_pattern", False),
        ("memory__enable_memory_arena_shrinkage", "cpu:0", "arena_shrinkage", "cpu:0"),
        (ENTRY.replace(".", "__"), "1", "session_entries", {ENTRY: "1"}),
    ],
)
def test_a_parameter_has_its_effect(key, value, attribute, effect):
    assert getattr(settings(**{key: value}), attribute) == effect
    assert settings(**{key: value}).ignored == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("intra_op_thread_count", "many"),
        ("inter_op_thread_count", "1.5"),
        ("execution_mode", "2"),
        ("enable_mem_arena", "maybe"),
        ("enable_mem_pattern", ""),
        ("cudnn_conv_algo_search", "9"),
    ],
)
def test_a_parameter_with_a_wrong_type_or_range_is_an_error_with_its_name(key, value):
    with pytest.raises(ConfigError, match=key):
        settings(kind="GPU", available=ALL, **{key: value})


@pytest.mark.parametrize(("key", "value"), [("colour", "blue"), ("share_session_between_instances", "true")])
def test_a_parameter_without_effect_is_ignored_with_a_message(key, value):
    (message,) = settings(**{key: value}).ignored
    assert key in message


def test_cpus_are_divided_among_the_cpu_instances_unless_threads_do_not_spin():
    groups = {"instance_group": [{"kind": "KIND_CPU", "count": 2}, {"kind": "KIND_GPU", "count": 4}]}
    assert [settings(groups, cpus=cpus).intra_op_threads for cpus in (8, 1)] == [4, 1]
    assert settings(groups, intra_op_thread_count="7").intra_op_threads == 7
    groups["parameters"] = {"session.intra_op.allow_spinning": {"string_value": "0"}}
    assert settings(groups).intra_op_threads == 8


def test_a_gpu_instance_uses_cuda_with_the_top_level_parameters_before_those_of_the_accelerator():
    numbers = {"cudnn_conv_algo_search": "1", "arena_extend_strategy": "1"}
    config = accelerated("cuda", use_tf32="0", gpu_mem_limit="1")
    found = settings(config, kind="GPU", available=ALL, gpu_mem_limit="2", do_copy_in_default_stream="0", **numbers)
    names = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
    other = {"device_id": "1", "gpu_mem_limit": "2", "do_copy_in_default_stream": "0", "use_tf32": "0"}
    assert found.providers == [(CUDA, names | other)]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("precision_mode", "FP16", {"trt_fp16_enable": "1"}),
        ("precision_mode", "FP32", {}),
        ("max_workspace_size_bytes", "1024", {"trt_max_workspace_size": "1024"}),
        ("trt_engine_cache_enable", "1", {"trt_engine_cache_enable": "1"}),
    ],
)
def test_tensorrt_is_preferred_and_its_parameters_are_translated(key, value, expected):
    found = settings(accelerated("tensorrt", **{key: value}), kind="GPU", available=ALL)
    assert found.providers == [(TENSORRT, {"device_id": "1", **expected}), (CUDA, {"device_id": "1"})]


@pytest.mark.parametrize(
    ("accelerator", "available", "message"),
    [
        (accelerated("tensorrt", trt_magic="1"), ALL, "unknown parameter 'trt_magic'"),
        (accelerated("tensorrt", precision_mode="FP8"), ALL, "precision_mode must be one of .*, got 'FP8'"),
        (accelerated("rocm"), ALL, "unknown execution accelerator 'rocm'"),
        ({}, (CPU,), "no CUDA provider; install onnxruntime-gpu"),
        (
            on_openvino(INFERENCE_PRECISION_HINT="f16"),
            None,
            "INFERENCE_PRECISION_HINT must be one of f32, bf16, got 'f16'",
        ),
        (accelerated("xnnpack", "cpu_execution_accelerator"), None, "unknown CPU execution accelerator 'xnnpack'"),
    ],
)
def test_an_accelerator_that_cannot_be_used_is_an_error(accelerator, available, message):
    with pytest.raises(ConfigError, match=message):
        settings(accelerator, **{"kind": "GPU", "available": available} if available else {})


@pytest.mark.parametrize(
    ("accelerator", "kind", "provider", "message"),
    [
        (accelerated("tensorrt", trt_magic="1"), "CPU", CPU, "tensorrt: the instance is on the CPU, ignored"),
        (accelerated("tensorrt"), "GPU", CUDA, "tensorrt: not in this build of ONNX Runtime, ignored"),
        (on_openvino(), "GPU", CUDA, "openvino: the instance is on a GPU, ignored"),
    ],
)
def test_an_accelerator_without_a_provider_is_ignored_with_a_message(accelerator, kind, provider, message):
    found = settings(accelerator, kind=kind, available=(CUDA, CPU))
    assert [name for name, _ in found.providers] == [provider]
    assert message in found.ignored[0]


def test_openvino_computes_in_f32_with_one_stream_and_the_threads_of_the_session_unless_the_accelerator_says_otherwise():
    found = settings(on_openvino(), intra_op_thread_count="3")
    defaults = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "3", "NUM_STREAMS": "1"}
    assert found.providers == [(OPENVINO, defaults)]
    assert found.session_entries == {"session.disable_cpu_ep_fallback": "1"}
    own = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": "1", "ENABLE_CPU_PINNING": "NO"}
    assert settings(on_openvino(**own)).providers == [(OPENVINO, defaults | own)]


@pytest.mark.parametrize(
    ("config", "kind", "engine"),
    [
        ({}, "CPU", "onnxruntime"),
        (on_openvino(), "CPU", "openvino f32"),
        (on_openvino(INFERENCE_PRECISION_HINT="bf16"), "CPU", "openvino bf16"),
        ({}, "GPU", "cuda"),
        (accelerated("tensorrt"), "GPU", "tensorrt"),
    ],
)
def test_the_engine_has_the_name_that_a_manifest_uses(config, kind, engine):
    assert settings(config, kind=kind, available=ALL).engine == engine
