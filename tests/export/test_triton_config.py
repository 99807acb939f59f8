"""Triton configurations: the committed files equal the generated ones, and protobuf parses them."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from alexnet_export.digits import LABELS
from alexnet_export.triton_config import (
    VERSION,
    bounded_config,
    cpu_config,
    decode_config,
    encoded_config,
    gpu_config,
    render_config,
    render_configs,
    render_encoded_configs,
    tensorrt_config,
)

MODEL = Path("model_repository/alexnet")


@pytest.fixture(scope="module")
def config():
    return text_format.Parse(render_config("alexnet", classes=10), model_config_pb2.ModelConfig())


def test_the_committed_configurations_equal_the_generated_ones():
    texts = render_configs("alexnet", classes=len(LABELS))
    assert texts == {path: (MODEL / path).read_text() for path in texts}
    assert {path.name for path in (MODEL / "configs").iterdir()} == {"bounded.pbtxt", "gpu.pbtxt", "tensorrt.pbtxt"}
    assert (MODEL / "labels.txt").read_text().split() == list(LABELS)


def test_the_tensors_follow_the_model_contract(config):
    assert [(each.name, each.data_type, list(each.dims)) for each in config.input] == [
        ("image", model_config_pb2.TYPE_UINT8, [224, 224, 3])
    ]
    assert [(each.name, each.data_type, list(each.dims)) for each in config.output] == [
        ("logits", model_config_pb2.TYPE_FP32, [10]),
        ("probabilities", model_config_pb2.TYPE_FP32, [10]),
    ]


def test_important_fields_are_explicit(config):
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == 64
    assert config.version_policy.latest.num_versions == 1
    assert [(group.kind, group.count) for group in config.instance_group] == [
        (model_config_pb2.ModelInstanceGroup.KIND_CPU, 1)
    ]
    assert config.HasField("dynamic_batching")
    assert config.parameters["session.intra_op.allow_spinning"].string_value == "0"
    assert config.parameters["enable_mem_pattern"].string_value == "0"
    assert {sample.batch_size for sample in config.model_warmup} == {1, 64}


@pytest.mark.parametrize("make", [cpu_config, bounded_config, gpu_config, tensorrt_config])
def test_a_queue_policy_has_two_instances(make):
    config = make("alexnet", classes=10)
    policy = config.dynamic_batching.default_queue_policy
    if make is cpu_config:
        assert policy == model_config_pb2.ModelQueuePolicy()
        assert config.instance_group[0].count == 1
    else:
        assert policy.max_queue_size > 0
        assert policy.default_timeout_microseconds > 0
        assert policy.allow_timeout_override
        assert config.instance_group[0].count == 2


def test_the_committed_configurations_for_image_files_equal_the_generated_ones():
    texts = render_encoded_configs("alexnet", classes=len(LABELS))
    assert texts == {name: (MODEL.parent / name / "config.pbtxt").read_text() for name in texts}
    for name, message in {
        "alexnet_decode": decode_config("alexnet"),
        "alexnet_encoded": encoded_config("alexnet", classes=10),
    }.items():
        assert text_format.Parse(texts[name], model_config_pb2.ModelConfig()) == message


def test_a_release_includes_the_models_for_image_files(repository):
    for name in render_encoded_configs("alexnet", classes=len(LABELS)):
        assert (repository / name / VERSION).is_dir()
        assert (repository / name / "config.pbtxt").read_text() == (MODEL.parent / name / "config.pbtxt").read_text()


def test_the_probabilities_have_labels(config):
    assert {each.name: each.label_filename for each in config.output} == {"logits": "", "probabilities": "labels.txt"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("config.pbtxt", cpu_config),
        ("configs/bounded.pbtxt", bounded_config),
        ("configs/gpu.pbtxt", gpu_config),
        ("configs/tensorrt.pbtxt", tensorrt_config),
    ],
)
def test_the_text_parses_to_the_same_message(path, message):
    text = render_configs("mine", classes=1000)[path]
    expected = message("mine", classes=1000)
    assert text_format.Parse(text, model_config_pb2.ModelConfig()) == expected


def test_zero_values_are_written_explicitly():
    for text in render_configs("alexnet", classes=10).values():
        assert "max_queue_delay_microseconds: 0" in text
        assert ("timeout_action: REJECT" in text) == ("default_queue_policy {" in text)


def test_on_the_gpu_one_profile_covers_every_batch_size_and_backend_keys_are_top_level():
    config = gpu_config("alexnet", classes=10)
    tensorrt, cuda = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (tensorrt.name, cuda.name) == ("tensorrt", "cuda")
    assert tensorrt.parameters["trt_profile_min_shapes"] == "image:1x224x224x3"
    assert tensorrt.parameters["trt_profile_max_shapes"] == "image:64x224x224x3"
    assert "precision_mode" not in tensorrt.parameters
    assert set(config.parameters) == {
        "cudnn_conv_algo_search",
        "arena_extend_strategy",
        "gpu_mem_limit",
        "do_copy_in_default_stream",
    }


def test_engines_are_not_cached_because_they_could_answer_for_a_newer_release():
    tensorrt, _ = gpu_config("alexnet", classes=10).optimization.execution_accelerators.gpu_execution_accelerator
    assert tensorrt.parameters["trt_engine_cache_enable"] == "0"
    assert tensorrt.parameters["trt_timing_cache_enable"] == "1"


def test_every_batch_size_with_a_cuda_graph_has_a_warm_up():
    config = tensorrt_config("alexnet", classes=10)
    assert config.optimization.cuda.graphs
    sizes = {1, *config.dynamic_batching.preferred_batch_size, config.max_batch_size}
    assert {sample.batch_size for sample in config.model_warmup} == sizes


def test_the_python_backend_supports_the_gpu_configuration():
    from google.protobuf.json_format import MessageToDict

    from alexnet_server.onnxruntime.settings import read_settings

    config = MessageToDict(gpu_config("alexnet", classes=10), preserving_proto_field_name=True)
    for each in config["parameters"].values():
        assert set(each) == {"string_value"}
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    settings = read_settings(config, kind="GPU", device_id=0, available=providers, cpus=2)
    assert [name for name, _ in settings.providers] == providers[:2], "no fallback to the CPU"
    assert dict(settings.providers)["CUDAExecutionProvider"]["cudnn_conv_algo_search"] == "HEURISTIC"
    assert not settings.ignored
