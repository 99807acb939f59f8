"""The GPU check: correct roofline bounds, independent checks, and skipped rows without a GPU."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from alexnet_export.__main__ import app
from alexnet_export.gpu_check import checks, run
from alexnet_export.gpu_check.roofline import Peaks, layers_of, least_seconds
from alexnet_export.gpu_check.rows import Row, Skip, run_checks
from alexnet_export.model import UNIFORM, AlexNet

H200 = Peaks({"fp16": 790e12, "fp32": 395e12, "int8": 1580e12}, memory=4.3e12, link=50e9)


@pytest.fixture(scope="module")
def layers():
    return layers_of(AlexNet(1000).eval())


def test_the_work_equals_that_of_the_published_network(layers):
    assert [layer.name for layer in layers] == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert sum(layer.multiply_adds for layer in layers) == 714_188_480
    assert [round(2 * layer.activations / 1000) for layer in layers[:4]] == [688, 373, 195, 216], "kB in half precision"


@pytest.mark.parametrize(
    ("batch", "microseconds"),
    # By hand from the peaks above, layer by layer: weights of fc6 to fc8 at batch 1, arithmetic at batch 256.
    [(1, 29.2), (256, 1.808 * 256), (64, 1e6 * 64 / 477e3), (8, 1e6 * 8 / 197e3)],
)
def test_the_lower_bound_of_the_time_of_a_batch(layers, batch, microseconds):
    assert 1e6 * least_seconds(layers, batch, "fp16", H200) == pytest.approx(microseconds, rel=0.01)


def test_the_link_limits_large_batches_from_the_host(layers):
    rate = 256 / least_seconds(layers, 256, "fp16", H200, from_host=True)
    assert rate == pytest.approx(50e9 / 150_528, rel=1e-6)
    assert least_seconds(layers, 1, "fp16", H200, from_host=True) == least_seconds(layers, 1, "fp16", H200)


def passing(context):
    yield Row("first", "passed", "", 80.0, "images/s", 100.0)


def skipping(context):
    raise Skip("no TensorRT")
    yield


def failing(context):
    yield Row("before", "passed")
    raise RuntimeError("CUDA error: out of memory\nmore lines")


def impossible(context):
    yield Row("too fast", "passed", "", 130.0, "images/s", 100.0)


def test_a_failed_or_skipped_check_does_not_affect_the_others():
    seen = []
    all_checks = {"a": passing, "b": skipping, "c": failing, "d": impossible, "e": passing}
    found = run_checks(None, all_checks, on_row=seen.append)
    assert [row.check for row in found] == ["first", "b", "before", "c", "too fast", "first"]
    assert [row.status for row in found] == ["passed", "skipped", "passed", "failed", "failed", "passed"]
    assert found == seen
    assert found[0].fraction == 0.8
    assert found[3].reason == "RuntimeError: CUDA error: out of memory"
    assert "1.30 of the bound: the bound or the measurement is wrong" in found[4].reason


def test_without_a_gpu_every_check_is_skipped_and_the_command_succeeds(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(app, ["gpu-check", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert {(row["check"], row["status"], row["reason"]) for row in rows} == {
        (name, "skipped", "PyTorch finds no NVIDIA GPU") for name in checks.CHECKS
    }
    assert json.loads((tmp_path / "out/gpu-check.json").read_text())["rows"] == rows
    assert "skipped" in (tmp_path / "out/gpu-check.md").read_text()


@pytest.mark.slow
def test_the_files_of_all_precisions_are_created_for_the_gpu(checkpoint, tmp_path):
    paths = run.create_files(checkpoint, tmp_path, print)
    assert set(paths) == {"fp32", "fp16", "int8"}
    initializers = {each.name: each.data_type for each in onnx.load(paths["int8"]).graph.initializer}
    zero_points = {kind for name, kind in initializers.items() if name.endswith("zero_point")}
    assert zero_points == {onnx.TensorProto.INT8}, "TensorRT requires symmetric int8"
    assert paths["fp16"].stat().st_size < 0.51 * paths["fp32"].stat().st_size


def test_without_onnx_or_cuda_checks_are_skipped_with_the_remedy(monkeypatch, checkpoint, tmp_path):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(Skip, match="install onnxruntime-gpu instead"):
        checks._onnxruntime()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    lines = []
    assert run.create_files(checkpoint, tmp_path, lines.append) == {}
    assert lines == ["no ONNX files are created: onnxscript not installed"]
    machine = checks.Machine(checkpoint, {}, np.empty(0, np.uint8), tmp_path, H200, [])
    with pytest.raises(Skip, match="no fp16 file: install onnx"):
        machine.file("fp16")


def test_a_run_writes_json_and_a_table(tmp_path, monkeypatch, small):
    network = run.Checkpoint(AlexNet(10, widths=small).state_dict(), tuple("abcdefghij"), UNIFORM, widths=small)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    monkeypatch.setattr(run, "measure_peaks", lambda: H200)
    monkeypatch.setattr(run, "create_files", lambda *arguments: {})
    monkeypatch.setattr(run, "random_checkpoint", lambda: network)
    monkeypatch.setattr(run, "CHECKS", {"a": passing, "b": skipping})
    lines = []
    rows = run.gpu_check(tmp_path, on_line=lines.append)
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert report["device"].startswith("NVIDIA Test, PyTorch")
    assert report["peaks"]["memory"] == H200.memory
    assert [row["roofline_fraction"] for row in report["rows"]] == [row.fraction for row in rows] == [0.8, None]
    table = (tmp_path / "gpu-check.md").read_text().splitlines()
    assert "| first | 80 images/s | 100 | 80% | passed |" in table
    assert "| b |  |  |  | skipped: no TensorRT |" in table
    assert lines[0] == "passed  first: 80 images/s (80% of the roofline)"
