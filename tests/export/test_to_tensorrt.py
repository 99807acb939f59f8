"""TensorRT engines: missing requirements in one line, and the calls of a build, recorded by a fake."""

from __future__ import annotations

import sys
import types

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


class Recorder:
    """Fake of the parts of tensorrt that a build uses; records the calls."""

    def __init__(self, *, parses=True, builds=True, flag=True):
        self.calls, self.parses, self.builds = [], parses, builds
        self.module = types.SimpleNamespace(
            __version__="11.4.0",
            Logger=type("Logger", (), {"WARNING": 2, "__init__": lambda self, level: None}),
            NetworkDefinitionCreationFlag=types.SimpleNamespace(**({"STRONGLY_TYPED": 1} if flag else {})),
            Builder=lambda logger: self,
            OnnxParser=lambda network, logger: self,
        )
        self.num_errors = 1

    def create_network(self, flags):
        self.calls.append(("flags", flags))
        return self

    def parse(self, content):
        return self.parses

    def get_error(self, number):
        return "In node 3: unsupported"

    def create_builder_config(self):
        return self

    def create_optimization_profile(self):
        return self

    def set_shape(self, *arguments):
        self.calls.append(("profile", *arguments))

    def add_optimization_profile(self, profile):
        self.calls.append(("added", profile is self))

    def create_timing_cache(self, content):
        self.calls.append(("timings", content))
        return self

    def set_timing_cache(self, cache, *, ignore_mismatch):
        assert ignore_mismatch is False

    def get_timing_cache(self):
        return self

    def serialize(self):
        return b"timings"

    def build_serialized_network(self, network, config):
        self.calls.append(("build",))
        return b"engine" if self.builds else None


@pytest.fixture
def gpu(monkeypatch):
    """Simulates a GPU and installs a fake of tensorrt."""

    def install(**how):
        recorder = Recorder(**how)
        monkeypatch.setitem(sys.modules, "tensorrt", recorder.module)
        monkeypatch.setattr(to_tensorrt, "tensorrt_missing", lambda: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
        return recorder

    return install


def build(tmp_path, content=b"a model"):
    (tmp_path / "model.onnx").write_bytes(content)
    to_tensorrt.build_engine(tmp_path / "model.onnx", tmp_path / "model.plan", cache=tmp_path / "cache")


@pytest.mark.parametrize(("flag", "flags"), [(True, 2), (False, 0)], ids=["TensorRT 10", "TensorRT 11"])
def test_one_strongly_typed_engine_covers_every_batch_size(gpu, tmp_path, flag, flags):
    recorder = gpu(flag=flag)
    build(tmp_path)
    assert (tmp_path / "model.plan").read_bytes() == b"engine"
    shapes = ("image", (1, 224, 224, 3), (32, 224, 224, 3), (64, 224, 224, 3))
    assert recorder.calls == [
        *(("flags", flags), ("profile", *shapes), ("added", True), ("timings", b""), ("build",)),
    ]


def test_engines_are_cached_by_the_content_of_the_file(gpu, tmp_path):
    recorder = gpu()
    for content, builds in ((b"a model", 1), (b"a model", 1), (b"another model", 2)):
        build(tmp_path, content)
        assert recorder.calls.count(("build",)) == builds
    assert ("timings", b"timings") in recorder.calls, "the timing cache is reused"
    names = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert all(name.startswith("NVIDIA-H200-sm90-tensorrt11.4.0") for name in names)
    assert len(names) == 3


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"parses": False}, r"TensorRT cannot read model\.onnx: In node 3: unsupported"),
        ({"builds": False}, r"TensorRT cannot build an engine from model\.onnx"),
    ],
)
def test_a_failed_build_is_reported_and_leaves_no_files(gpu, tmp_path, how, message):
    gpu(**how)
    with pytest.raises(GateFailed, match=message):
        build(tmp_path)
    assert not (tmp_path / "model.plan").exists()
    assert list((tmp_path / "cache").iterdir()) == []
