"""config.pbtxt: what is committed is what would be written, and Triton's protobuf reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from alexnet_export.config import render_config
from alexnet_export.digits import LABELS

MODEL = Path("model_repository/alexnet")


@pytest.fixture(scope="module")
def config():
    return text_format.Parse(render_config("alexnet", classes=10), model_config_pb2.ModelConfig())


def test_the_committed_configuration_is_the_one_written_for_the_digits():
    assert (MODEL / "config.pbtxt").read_text() == render_config("alexnet", classes=len(LABELS))
    assert (MODEL / "labels.txt").read_text().split() == list(LABELS)


def test_the_tensors_are_the_model_contract(config):
    assert [(each.name, each.data_type, list(each.dims)) for each in config.input] == [
        ("image", model_config_pb2.TYPE_UINT8, [224, 224, 3])
    ]
    assert [(each.name, each.data_type, list(each.dims)) for each in config.output] == [
        ("logits", model_config_pb2.TYPE_FP32, [10]),
        ("probabilities", model_config_pb2.TYPE_FP32, [10]),
    ]


def test_nothing_that_matters_is_left_to_a_default(config):
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == 64
    assert config.version_policy.latest.num_versions == 1
    assert [(group.kind, group.count) for group in config.instance_group] == [
        (model_config_pb2.ModelInstanceGroup.KIND_CPU, 1)
    ]
    policy = config.dynamic_batching.default_queue_policy
    assert policy.max_queue_size > 0
    assert policy.default_timeout_microseconds > 0
    assert policy.allow_timeout_override
    assert {sample.batch_size for sample in config.model_warmup} == {1, 64}


def test_labels_are_beside_the_output_that_is_classified(config):
    assert {each.name: each.label_filename for each in config.output} == {"logits": "", "probabilities": "labels.txt"}
