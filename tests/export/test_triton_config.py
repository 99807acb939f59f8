"""Triton configurations: the committed files equal the generated ones, and protobuf parses them."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2

from alexnet_export.digits import LABELS
from alexnet_export.triton_config import (
    CPU_ENGINES,
    CUDA,
    VERSION,
    bounded_config,
    cpu_config,
    decode_config,
    encoded_config,
    engine_config,
    gpu_config,
    render_configs,
    render_encoded_configs,
    tensorrt_config,
)
from alexnet_server.onnxruntime.settings import read_settings

MODEL = Path("model_repository/alexnet")


def test_the_committed_configurations_equal_the_generated_ones(repository):
    texts = render_configs("alexnet", classes=len(LABELS))
    assert texts == {path: (MODEL / path).read_text() for path in texts}
    assert {path.name for path in (MODEL / "configs").iterdir()} == {"bounded.pbtxt", "gpu.pbtxt", "tensorrt.pbtxt"}
    assert (MODEL / "labels.txt").read_text().split() == list(LABELS)
    for name, text in render_encoded_configs("alexnet", classes=len(LABELS)).items():
        assert text == (MODEL.parent / name / "config.pbtxt").read_text()
        assert text == (repository / name / "config.pbtxt").read_text(), "a release includes these models"
        assert (repository / name / VERSION).is_dir()


@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_the_text_parses_to_the_same_message(engine):
    texts = render_configs("mine", classes=9, engine=engine) | render_encoded_configs("mine", classes=9)
    assert {path: text_format.Parse(text, model_config_pb2.ModelConfig()) for path, text in texts.items()} == {
        "config.pbtxt": cpu_config("mine", classes=9, engine=engine),
        "configs/bounded.pbtxt": bounded_config("mine", classes=9, engine=engine),
        "configs/gpu.pbtxt": gpu_config("mine", classes=9),
        "configs/tensorrt.pbtxt": tensorrt_config("mine", classes=9),
        "mine_decode": decode_config("mine"),
        "mine_encoded": encoded_config("mine", classes=9),
    }


def test_zero_values_are_written_explicitly():
    for text in render_configs("alexnet", classes=10).values():
        assert "max_queue_delay_microseconds: 0" in text
        assert ("timeout_action: REJECT" in text) == ("default_queue_policy {" in text)


@pytest.mark.parametrize("engine", [*CPU_ENGINES, CUDA])
def test_the_settings_of_the_server_name_the_same_engine(engine):
    config, kind = (
        MessageToDict(engine_config(engine), preserving_proto_field_name=True),
        "GPU" if engine == CUDA else "CPU",
    )
    settings = read_settings(config, kind=kind, device_id=0, available=["CUDAExecutionProvider"], cpus=2)
    assert (settings.engine, settings.ignored) == (engine, ())


def test_the_python_backend_supports_the_gpu_configuration():
    config = MessageToDict(gpu_config("alexnet", classes=10), preserving_proto_field_name=True)
    for each in config["parameters"].values():
        assert set(each) == {"string_value"}
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    settings = read_settings(config, kind="GPU", device_id=0, available=providers, cpus=2)
    assert [name for name, _ in settings.providers] == providers[:2], "no fallback to the CPU"
    assert dict(settings.providers)["CUDAExecutionProvider"]["cudnn_conv_algo_search"] == "HEURISTIC"
    assert not settings.ignored
