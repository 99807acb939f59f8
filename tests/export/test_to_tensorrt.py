"""TensorRT engines: missing requirements in one line, and the calls of a build, recorded by a fake."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from alexnet_client.errors import BadInput
from alexnet_export import to_tensorrt
from alexnet_export.errors import GateFailed


def test_a_missing_requirement_is_reported_in_one_line(tmp_path, monkeypatch):
    def broken():
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert to_tensorrt.tensorrt_missing() == "TensorRT: no NVIDIA GPU found, or PyTorch was built without CUDA"
    with pytest.raises(BadInput, match="no NVIDIA GPU found"):
        to_tensorrt.build_engine(tmp_path / "model.onnx", tmp_path / "model.plan", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install tensorrt-cu13" in to_tensorrt.tensorrt_missing()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(to_tensorrt, "_tensorrt", broken)
    assert "cannot be imported (libnvinfer.so.11: cannot open" in to_tensorrt.tensorrt_missing()


@pytest.fixture
def tensorrt(monkeypatch):
    """A fake of the module, on a machine that pretends to have a GPU."""
    fake = MagicMock(__version__="11.4.0", NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1))
    builder, parser = fake.Builder.return_value, fake.OnnxParser.return_value
    builder.build_serialized_network.return_value = b"engine"
    builder.create_builder_config.return_value.get_timing_cache.return_value.serialize.return_value = b"timings"
    parser.num_errors, parser.get_error.return_value = 1, "In node 3: unsupported"
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(to_tensorrt, "tensorrt_missing", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    return fake


def build(tmp_path, content=b"a model"):
    (tmp_path / "model.onnx").write_bytes(content)
    to_tensorrt.build_engine(tmp_path / "model.onnx", tmp_path / "model.plan", cache=tmp_path / "cache")


def test_one_strongly_typed_engine_covers_every_batch_size(tensorrt, tmp_path):
    build(tmp_path)
    assert (tmp_path / "model.plan").read_bytes() == b"engine"
    builder = tensorrt.Builder.return_value
    builder.create_network.assert_called_once_with(2)
    profile, config = builder.create_optimization_profile.return_value, builder.create_builder_config.return_value
    profile.set_shape.assert_called_once_with("image", (1, 224, 224, 3), (32, 224, 224, 3), (64, 224, 224, 3))
    config.add_optimization_profile.assert_called_once_with(profile)
    config.set_timing_cache.assert_called_once_with(config.create_timing_cache.return_value, ignore_mismatch=False)


def test_tensorrt_11_needs_no_flag_for_strong_typing(tensorrt, tmp_path):
    tensorrt.NetworkDefinitionCreationFlag = SimpleNamespace()
    build(tmp_path)
    tensorrt.Builder.return_value.create_network.assert_called_once_with(0)


def test_engines_are_cached_by_the_content_of_the_file(tensorrt, tmp_path):
    builder = tensorrt.Builder.return_value
    for content, builds in ((b"a model", 1), (b"a model", 1), (b"another model", 2)):
        build(tmp_path, content)
        assert builder.build_serialized_network.call_count == builds
    builder.create_builder_config.return_value.create_timing_cache.assert_called_with(b"timings")
    names = [path.name for path in (tmp_path / "cache").iterdir()]
    assert len(names) == 3, "two engines, and the timings of their kernels"
    assert all(name.startswith("NVIDIA-H200-sm90-tensorrt11.4.0") for name in names)


@pytest.mark.parametrize(
    ("creates", "method", "message"),
    [
        ("OnnxParser", "parse", r"TensorRT cannot read model\.onnx: In node 3: unsupported"),
        ("Builder", "build_serialized_network", r"TensorRT cannot build an engine from model\.onnx"),
    ],
)
def test_a_failed_build_is_reported_and_leaves_no_files(tensorrt, tmp_path, creates, method, message):
    getattr(getattr(tensorrt, creates).return_value, method).return_value = None
    with pytest.raises(GateFailed, match=message):
        build(tmp_path)
    assert not (tmp_path / "model.plan").exists()
    assert list((tmp_path / "cache").iterdir()) == []
