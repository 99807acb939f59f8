"""The GPU check: bounds that are right, checks that do not stop each other, and one clear line without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from typer.testing import CliRunner

from alexnet_client.errors import BadInput
from alexnet_export.__main__ import app
from alexnet_export.gpu_check import checks, run
from alexnet_export.gpu_check.roofline import Peaks, layers_of, least_seconds
from alexnet_export.gpu_check.rows import Row, Skip, as_markdown, run_checks
from alexnet_export.model import UNIFORM, AlexNet

H200 = Peaks({"fp16": 790e12, "fp32": 395e12, "int8": 1580e12}, memory=4.3e12, link=50e9)


@pytest.fixture
def layers(whole_network):
    return layers_of(1000)


def test_the_work_is_that_of_the_published_network(layers):
    assert [layer.name for layer in layers] == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert sum(layer.multiply_adds for layer in layers) == 714_188_480
    assert [round(2 * layer.activations / 1000) for layer in layers[:4]] == [688, 373, 195, 216], "kB in half precision"


@pytest.mark.parametrize(
    ("batch", "precision", "microseconds"),
    # Worked by hand from the peaks above, layer by layer: the weights of fc6 to fc8 at batch 1, arithmetic at batch 256.
    [(1, "fp16", 29.2), (256, "fp16", 1.808 * 256), (64, "fp16", 1e6 * 64 / 477e3), (8, "fp16", 1e6 * 8 / 197e3)],
)
def test_the_least_time_of_a_batch(layers, batch, precision, microseconds):
    assert 1e6 * least_seconds(layers, batch, precision, H200) == pytest.approx(microseconds, rel=0.01)


def test_from_the_host_the_link_is_the_bound_of_large_batches(layers):
    rate = 256 / least_seconds(layers, 256, "fp16", H200, from_host=True)
    assert rate == pytest.approx(50e9 / 150_528, rel=1e-6)
    assert least_seconds(layers, 1, "fp16", H200, from_host=True) == least_seconds(layers, 1, "fp16", H200)


def passing(context):
    yield Row("first", "passed", "", 80.0, "images/s", 100.0)


def lacking(context):
    raise Skip("no TensorRT")
    yield


def breaking(context):
    yield Row("before", "passed")
    raise RuntimeError("CUDA error: out of memory\nmore lines")


def impossible(context):
    yield Row("too fast", "passed", "", 130.0, "images/s", 100.0)


def test_each_check_stands_alone():
    seen = []
    found = run_checks(
        None, {"a": passing, "b": lacking, "c": breaking, "d": impossible, "e": passing}, on_row=seen.append
    )
    assert [(row.check, row.status) for row in found] == [
        ("first", "passed"),
        ("b", "skipped"),
        ("before", "passed"),
        ("c", "failed"),
        ("too fast", "failed"),
        ("first", "passed"),
    ]
    assert found == seen
    assert found[0].fraction == 0.8
    assert found[3].reason == "RuntimeError: CUDA error: out of memory"
    assert "1.30 of the bound: the bound or the measurement is wrong" in found[4].reason


def test_the_table_holds_every_row():
    text = as_markdown(run_checks(None, {"a": passing, "b": lacking}), "NVIDIA H200")
    assert "| first | 80 images/s | 100 | 80% | passed |" in text
    assert "| b |  |  |  | skipped: no TensorRT |" in text


def test_without_a_gpu_it_is_one_line_and_nothing_is_written(tmp_path):
    assert not torch.cuda.is_available(), "this test is for machines without one"
    result = CliRunner().invoke(app, ["gpu-check", "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "alexnet-export: gpu-check needs an NVIDIA GPU, and PyTorch finds none here; run it on a machine that has one"
    ]
    assert not (tmp_path / "out").exists()


def test_it_runs_without_typer_and_rich_from_the_source_tree(tmp_path):
    root = Path(__file__).parents[2]
    path = os.pathsep.join(str(root / part) for part in ("export", "client", "deploy"))
    blocker = "import sys; sys.modules.update(dict.fromkeys(('typer', 'rich', 'jinja2', 'matplotlib', 'sklearn')));"
    program = f"{blocker} import runpy; sys.argv = ['x', '--output', {str(tmp_path)!r}]; runpy.run_module('alexnet_export.gpu_check', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 2, done.stderr
    assert "gpu-check needs an NVIDIA GPU" in done.stderr


def test_the_files_of_all_precisions_are_made_for_the_gpu(checkpoint, tmp_path):
    paths = run.make_files(checkpoint, tmp_path, print)
    assert set(paths) == {"fp32", "fp16", "int8"}
    int8 = onnx.load(paths["int8"]).graph
    zero_points = [
        each for each in int8.initializer if each.name.endswith("zero_point") and each.name != "pixel_zero_point"
    ]
    assert zero_points
    assert all(each.data_type == onnx.TensorProto.INT8 for each in zero_points), "symmetric, as TensorRT wants it"
    assert paths["fp16"].stat().st_size < 0.51 * paths["fp32"].stat().st_size


def test_where_onnx_is_missing_the_files_are_asked_for(monkeypatch, checkpoint, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    said = []
    assert run.make_files(checkpoint, tmp_path, said.append) == {}
    assert said == ["no ONNX files are made here: onnxscript not installed"]
    machine = checks.Machine(checkpoint, {}, None, tmp_path, H200, layers_of(1000))
    with pytest.raises(Skip, match="no fp16 file: give --onnx-fp16 FILE"):
        machine.file("fp16")


def test_onnx_runtime_without_cuda_is_skipped_with_the_remedy():
    with pytest.raises(Skip, match="install onnxruntime-gpu in its place"):
        checks._onnxruntime()


def test_a_whole_run_writes_json_and_table(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Pretended")
    monkeypatch.setattr(run, "measure_peaks", lambda: H200)
    monkeypatch.setattr(run, "make_files", lambda *arguments: {})
    monkeypatch.setattr(
        run, "random_checkpoint", lambda: run.Checkpoint(AlexNet(10).state_dict(), tuple("abcdefghij"), UNIFORM)
    )
    monkeypatch.setattr(run, "CHECKS", {"a": passing, "b": lacking})
    monkeypatch.setattr(run, "IMAGES", 2)
    said = []
    rows = run.gpu_check(tmp_path, say=said.append)
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert report["device"].startswith("NVIDIA Pretended, PyTorch")
    assert [row["roofline_fraction"] for row in report["rows"]] == [row.fraction for row in rows] == [0.8, None]
    assert "80%" in (tmp_path / "gpu-check.md").read_text()
    assert said[0] == "passed  first: 80 images/s (80% of the roofline)"


def test_a_file_made_elsewhere_is_looked_at_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "fp16.onnx").write_text("not a model")
    with pytest.raises(BadInput, match=r"fp16\.onnx: not a valid ONNX file"):
        run.gpu_check(tmp_path / "out", files={"fp16": tmp_path / "fp16.onnx"})
    assert not (tmp_path / "out").exists()
