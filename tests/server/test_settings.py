"""Parameters of the C++ backend: each has the same effect, is ignored with a message, or is an error."""

from __future__ import annotations

import pytest

from alexnet_server.onnxruntime.providers import CPU, CUDA, TENSORRT, ConfigError
from alexnet_server.onnxruntime.settings import read_settings

ALL = (TENSORRT, CUDA, CPU)


def settings(config=None, *, kind="CPU", available=(CPU,), cpus=8, **parameters):
    named = {key.replace("__", "."): {"string_value": value} for key, value in parameters.items()}
    return read_settings(
        {"parameters": named, **(config or {})}, kind=kind, device_id=1, available=available, cpus=cpus
    )


def accelerated(*accelerators, where="gpu_execution_accelerator"):
    return {"optimization": {"execution_accelerators": {where: list(accelerators)}}}


def test_the_defaults_are_those_of_onnxruntime_with_all_cpus():
    plain = settings()
    assert (plain.graph_level, plain.parallel, plain.inter_op_threads) == ("all", False, 0)
    assert plain.intra_op_threads == 8
    assert plain.mem_arena is None
    assert plain.mem_pattern is None
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
        ("enable_mem_pattern", "1", "mem_pattern", True),
        ("enable_mem_pattern", "False", "mem_pattern", False),
        ("memory__enable_memory_arena_shrinkage", "cpu:0", "arena_shrinkage", "cpu:0"),
        (
            "session__use_device_allocator_for_initializers",
            "1",
            "session_entries",
            {"session.use_device_allocator_for_initializers": "1"},
        ),
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
    ],
)
def test_a_parameter_with_a_wrong_type_or_range_is_an_error_with_its_name(key, value):
    with pytest.raises(ConfigError, match=key):
        settings(**{key: value})


@pytest.mark.parametrize(("key", "value"), [("colour", "blue"), ("share_session_between_instances", "true")])
def test_a_parameter_without_effect_is_ignored_with_a_message(key, value):
    assert len(settings(**{key: value}).ignored) == 1
    assert key in settings(**{key: value}).ignored[0]


@pytest.mark.parametrize(("level", "name"), [(-1, "basic"), (0, "all"), (1, "extended"), (2, "disabled"), (7, "all")])
def test_the_graph_level_has_the_same_meaning_as_in_the_cpp_backend(level, name):
    assert settings({"optimization": {"graph": {"level": level}}}).graph_level == name


def test_cpus_are_divided_among_the_cpu_instances():
    groups = {"instance_group": [{"kind": "KIND_CPU", "count": 2}, {"kind": "KIND_GPU", "count": 4}]}
    assert settings(groups, cpus=8).intra_op_threads == 4
    assert settings(groups, cpus=1).intra_op_threads == 1
    assert settings(groups, cpus=8, intra_op_thread_count="7").intra_op_threads == 7
    assert settings(groups, cpus=8, session__intra_op__allow_spinning="0").intra_op_threads == 8


def test_a_gpu_instance_uses_cuda_with_the_four_top_level_parameters():
    found = settings(
        kind="GPU",
        available=ALL,
        cudnn_conv_algo_search="1",
        arena_extend_strategy="1",
        gpu_mem_limit="1000",
        do_copy_in_default_stream="0",
    )
    assert found.providers == [
        (
            CUDA,
            {
                "device_id": "1",
                "cudnn_conv_algo_search": "HEURISTIC",
                "arena_extend_strategy": "kSameAsRequested",
                "gpu_mem_limit": "1000",
                "do_copy_in_default_stream": "0",
            },
        ),
    ]


def test_top_level_parameters_override_those_of_the_cuda_accelerator():
    cuda = {"name": "cuda", "parameters": {"use_tf32": "0", "gpu_mem_limit": "1"}}
    found = settings(accelerated(cuda), kind="GPU", available=ALL, gpu_mem_limit="2")
    assert found.providers[0] == (CUDA, {"device_id": "1", "use_tf32": "0", "gpu_mem_limit": "2"})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("precision_mode", "FP16", {"trt_fp16_enable": "1"}),
        ("precision_mode", "INT8", {"trt_int8_enable": "1"}),
        ("precision_mode", "BF16", {"trt_bf16_enable": "1"}),
        ("precision_mode", "FP32", {}),
        ("max_workspace_size_bytes", "1024", {"trt_max_workspace_size": "1024"}),
        ("int8_calibration_table_name", "t", {"trt_int8_calibration_table_name": "t"}),
        ("int8_use_native_calibration_table", "1", {"trt_int8_use_native_calibration_table": "1"}),
        ("trt_engine_cache_enable", "1", {"trt_engine_cache_enable": "1"}),
        ("trt_profile_min_shapes", "image:1x224x224x3", {"trt_profile_min_shapes": "image:1x224x224x3"}),
    ],
)
def test_tensorrt_is_preferred_and_its_parameters_are_translated(key, value, expected):
    found = settings(accelerated({"name": "tensorrt", "parameters": {key: value}}), kind="GPU", available=ALL)
    assert found.providers[0] == (TENSORRT, {"device_id": "1", **expected})
    assert [name for name, _ in found.providers] == [TENSORRT, CUDA]


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [
        ({"name": "tensorrt", "parameters": {"trt_magic": "1"}}, "unknown parameter 'trt_magic'"),
        ({"name": "tensorrt", "parameters": {"precision_mode": "FP8"}}, "precision_mode must be one of .*, got 'FP8'"),
        ({"name": "rocm"}, "unknown execution accelerator 'rocm'"),
    ],
)
def test_an_accelerator_that_the_cpp_backend_rejects_is_an_error(accelerator, message):
    with pytest.raises(ConfigError, match=message):
        settings(accelerated(accelerator), kind="GPU", available=ALL)


def test_gpu_accelerators_are_ignored_on_the_cpu():
    found = settings(accelerated({"name": "tensorrt", "parameters": {"trt_magic": "1"}}))
    assert found.providers == [(CPU, {})]
    assert found.ignored == ("accelerator tensorrt: the instance is on the CPU, ignored",)


def test_accelerators_without_a_provider_are_ignored():
    found = settings(accelerated({"name": "tensorrt"}), kind="GPU", available=(CUDA, CPU))
    assert [name for name, _ in found.providers] == [CUDA]
    assert "not in this build" in found.ignored[0]
    assert "openvino" in settings(accelerated({"name": "openvino"}, where="cpu_execution_accelerator")).ignored[0]


def test_a_gpu_instance_without_a_cuda_provider_is_an_error():
    with pytest.raises(ConfigError, match="no CUDA provider; install onnxruntime-gpu"):
        settings(kind="GPU", available=(CPU,))


def test_an_unknown_number_of_an_algorithm_is_an_error():
    with pytest.raises(ConfigError, match="cudnn_conv_algo_search must be one of 0, 1, 2"):
        settings(kind="GPU", available=ALL, cudnn_conv_algo_search="9")
