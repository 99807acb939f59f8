"""TensorRT: what is missing is said in one line; what would be asked of it is checked against a stand-in."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from alexnet_client.errors import BadInput
from alexnet_export import to_tensorrt
from alexnet_export.errors import GateFailed


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    if torch.cuda.is_available():
        pytest.xfail("there is a GPU here")
    assert to_tensorrt.tensorrt_missing() == "TensorRT: no NVIDIA GPU here (or this PyTorch has no CUDA)"
    with pytest.raises(BadInput, match="no NVIDIA GPU here"):
        to_tensorrt.build_engine(tmp_path / "model.onnx", tmp_path / "model.plan", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_gpu_without_tensorrt_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install tensorrt-cu13" in to_tensorrt.tensorrt_missing()


def test_a_wheel_without_its_libraries_is_told_as_what_it_is(monkeypatch):
    def broken():
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(to_tensorrt, "_tensorrt", broken)
    assert to_tensorrt.tensorrt_missing() == (
        "TensorRT: cannot be imported (libnvinfer.so.11: cannot open shared object file)"
    )


class Recorder:
    """Stands in for the parts of tensorrt that a build uses, by their documented names, and notes what it is asked."""

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
    """Pretends that there is a GPU, and installs a stand-in for tensorrt."""

    def install(**how):
        recorder = Recorder(**how)
        monkeypatch.setitem(sys.modules, "tensorrt", recorder.module)
        monkeypatch.setattr(to_tensorrt, "tensorrt_missing", lambda: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
        return recorder

    return install


@pytest.fixture
def source(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"a model")
    return tmp_path / "model.onnx"


def test_one_strongly_typed_engine_covers_every_batch_size(gpu, source, tmp_path):
    recorder = gpu()
    info = to_tensorrt.build_engine(source, tmp_path / "model.plan", cache=tmp_path / "cache")
    assert (info.gpu, info.tensorrt, info.cached) == ("NVIDIA H200", "11.4.0", False)
    assert (tmp_path / "model.plan").read_bytes() == b"engine"
    assert ("flags", 2) in recorder.calls
    shapes = ("image", (1, 224, 224, 3), (32, 224, 224, 3), (64, 224, 224, 3))
    assert recorder.calls[1:] == [("profile", *shapes), ("added", True), ("timings", b""), ("build",)]


def test_where_strong_typing_is_all_there_is_no_flag_is_asked_for(gpu, source, tmp_path):
    recorder = gpu(flag=False)
    to_tensorrt.build_engine(source, tmp_path / "model.plan", cache=tmp_path / "cache")
    assert ("flags", 0) in recorder.calls


def test_the_second_build_is_a_copy_and_another_file_is_another_engine(gpu, source, tmp_path):
    recorder = gpu()
    for expected in (False, True):
        info = to_tensorrt.build_engine(source, tmp_path / "model.plan", cache=tmp_path / "cache")
        assert info.cached is expected
    source.write_bytes(b"another model")
    assert not to_tensorrt.build_engine(source, tmp_path / "model.plan", cache=tmp_path / "cache").cached
    assert recorder.calls.count(("build",)) == 2
    assert ("timings", b"timings") in recorder.calls, "what was timed before is used again"
    names = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert all(name.startswith("NVIDIA-H200-sm90-tensorrt11.4.0") for name in names)
    assert len(names) == 3


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"parses": False}, r"TensorRT cannot read model\.onnx: In node 3: unsupported"),
        ({"builds": False}, r"TensorRT could not build an engine of model\.onnx"),
    ],
)
def test_what_tensorrt_refuses_is_told_and_leaves_nothing(gpu, source, tmp_path, how, says):
    gpu(**how)
    with pytest.raises(GateFailed, match=says):
        to_tensorrt.build_engine(source, tmp_path / "model.plan", cache=tmp_path / "cache")
    assert not (tmp_path / "model.plan").exists()
    assert list((tmp_path / "cache").iterdir()) == []
