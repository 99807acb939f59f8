"""From a checkpoint to a release: variants, gates, publication and failures."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from alexnet_client.errors import BadInput
from alexnet_client.golden import GOLDEN, read_golden
from alexnet_client.manifest import find_mismatch, validated_engines
from alexnet_export import pipeline
from alexnet_export.errors import GateFailed
from alexnet_export.gates import compare
from alexnet_export.machine import git_revision
from alexnet_export.pipeline import export_release
from alexnet_export.releases import releases
from alexnet_export.runners import onnx_runner
from alexnet_export.speed import Speed
from alexnet_export.to_onnx import check_file
from alexnet_export.variants import Variant
from alexnet_server.onnxruntime.providers import ConfigError


def fail(*arguments, **options):
    raise GateFailed("accuracy: top-1 +2.00 points")


@pytest.fixture
def int8_fails(monkeypatch):
    """NNCF cannot quantise the network."""
    monkeypatch.setattr(pipeline, "quantize", fail)


def without_openvino():
    raise ConfigError("OpenVINO's plug-in supports only Intel CPUs")


@pytest.mark.slow
def test_every_step_is_reported_and_the_manifest_describes_all_variants_and_gates(exported_int8):
    done, steps, variants = exported_int8
    engines = ["onnxruntime"] if done.without_openvino else ["onnxruntime", "openvino f32"]
    titles = ["fp32, onnxruntime", *(f"int8, {engine}" for engine in engines)]
    last = {step.step: step for step in steps}
    assert all(step.done == step.total for step in last.values())
    assert set(last) == {
        *("Exporting to ONNX", "Running PyTorch", "Quantising", "Measuring the variants", "Publishing"),
        *(f"Validating {title}" for title in titles),
    }
    manifest = done.release.manifest
    assert find_mismatch(done.release.directory) == ""
    assert set(manifest["files"]) == {"model.onnx", GOLDEN}
    rows = manifest["variants"]
    assert [row.title for row in variants] == [f"{row['name']}, {row['engine']}" for row in rows] == titles
    assert [row["engine"] for row in rows if row["published"]] == [manifest["engine"]]
    assert (manifest["precision"], manifest["tensorrt"]) == ("int8", None)
    assert validated_engines(manifest) == engines
    assert manifest["engine_options"].get("INFERENCE_PRECISION_HINT", "") in manifest["engine"]
    assert rows[0]["agreement"] == 1
    for int8 in rows[1:]:
        assert int8["images"] == rows[0]["images"] == 80
        assert 0 < int8["rms_error"] < int8["max_logit_difference"] < 0.1
        assert int8["bytes"] == (done.release.directory / "model.onnx").stat().st_size < 0.27 * rows[0]["bytes"]
        assert int8["images_per_second"] > 0
        assert int8["batch1_ms"] > 0
    quantization = manifest["quantization"]
    assert (quantization["integer_layers"], quantization["layers"], quantization["float_layers"]) == (8, 8, [])
    assert (quantization["activations"], quantization["calibration_images"]) == ("uint8", 32)
    assert 1 <= manifest["machine"]["cpus"] <= len(os.sched_getaffinity(0))
    check_file(done.release.directory / "model.onnx")
    golden = read_golden(done.release.directory)
    for engine in engines:
        run = onnx_runner(done.release.directory / "model.onnx", engine=engine)
        assert golden.mismatch(run(golden.images)[0]) == ""


def variant(name, engine, speed=None, failure=""):
    return Variant(name, engine, Path(f"{name}.onnx"), speed=speed and Speed({1: [1 / speed]}), failure=failure)


def test_the_fastest_variant_that_passed_is_published():
    fp32, bf16 = variant("fp32", "onnxruntime", 5), variant("bf16", "openvino bf16", 7)
    slow, fast = variant("int8", "onnxruntime", 6), variant("int8", "openvino f32", 9)
    failed = variant("int8", "openvino f32", failure="accuracy: top-1 +2.00 points")
    assert pipeline._winner([fp32, bf16, slow, fast], "auto") is fast
    assert pipeline._winner([fp32, bf16, slow, failed], "auto") is bf16
    assert pipeline._winner([fp32, bf16, slow, failed], "int8") is slow
    with pytest.raises(GateFailed, match=r"int8, openvino f32: accuracy: top-1 \+2\.00 points"):
        pipeline._winner([fp32, failed], "int8")


@pytest.mark.slow
@pytest.mark.usefixtures("int8_fails")
def test_auto_publishes_fp32_and_int8_nothing_if_int8_fails(quickly, checkpoint, tiny_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "openvino_engines", without_openvino)
    with pytest.raises(GateFailed, match=r"int8, onnxruntime: accuracy: top-1 \+2\.00 points"):
        quickly(checkpoint, tiny_digits, tmp_path, precision="int8")
    assert list((tmp_path / "alexnet").iterdir()) == []
    done = quickly(checkpoint, tiny_digits, tmp_path)
    assert done.without_openvino == "OpenVINO's plug-in supports only Intel CPUs"
    assert (done.winner.title, done.quantized) == ("fp32, onnxruntime", None)
    gates = {row["name"]: row["gate"] for row in done.release.manifest["variants"]}
    assert gates == {"fp32": "passed", "int8": "accuracy: top-1 +2.00 points"}


@pytest.mark.parametrize(
    ("engines", "reason"),
    [
        (without_openvino, "OpenVINO's plug-in supports only Intel CPUs"),
        (lambda: ["openvino f32"], "it needs a CPU with bfloat16 instructions, and no GPU"),
    ],
)
def test_bf16_is_rejected_with_the_reason_on_a_machine_without_it(
    checkpoint, tiny_digits, tmp_path, monkeypatch, engines, reason
):
    monkeypatch.setattr(pipeline, "openvino_engines", engines)
    with pytest.raises(BadInput, match=f"--precision bf16: not available on this machine: {reason}"):
        export_release(checkpoint, tiny_digits, tmp_path, precision="bf16")


@pytest.mark.slow
@pytest.mark.usefixtures("int8_fails")
def test_an_fp32_file_that_differs_from_pytorch_stops_the_export(
    quickly, checkpoint, tiny_digits, tmp_path, monkeypatch
):
    def differs(reference, answer, labels):
        return replace(compare(reference, answer, labels), max_logit_difference=0.01)

    monkeypatch.setattr("alexnet_export.variants.compare", differs)
    with pytest.raises(GateFailed, match="fp32: parity: a logit differs by"):
        quickly(checkpoint, tiny_digits, tmp_path)
    assert releases(tmp_path) == []


def test_other_classes_are_rejected_before_the_work(checkpoint, tiny_digits, repository):
    other = replace(checkpoint, labels=tuple(f"class {number}" for number in range(10)))
    with pytest.raises(BadInput, match="its 10 classes differ from the 10 of this model"):
        export_release(other, tiny_digits, repository)


@pytest.mark.slow
def test_with_tensorrt_an_engine_is_validated_and_published_too(
    quickly, checkpoint, tiny_digits, tmp_path, monkeypatch
):
    sources = {}

    def build(source, plan, *, cache):
        sources[plan] = source
        plan.write_bytes(b"engine")

    monkeypatch.setattr(pipeline, "tensorrt_missing", lambda: None)
    monkeypatch.setattr(pipeline, "build_engine", build)
    monkeypatch.setattr(pipeline, "Engine", lambda plan: onnx_runner(sources[plan]))
    monkeypatch.setattr("alexnet_export.variants.check_loss", lambda comparison: None)
    done = quickly(checkpoint, tiny_digits, tmp_path, precision="fp32")
    assert (done.release.directory / "model.plan").read_bytes() == b"engine"
    assert find_mismatch(done.release.directory) == ""
    assert set(done.release.manifest["files"]) == {"model.onnx", "model.plan", GOLDEN}
    assert done.release.manifest["tensorrt"]["agreement"] == 1.0
    monkeypatch.setattr("alexnet_export.variants.check_loss", fail)
    with pytest.raises(GateFailed, match=r"model\.plan: accuracy: top-1 \+2\.00 points"):
        quickly(checkpoint, tiny_digits, tmp_path, precision="fp32")
    assert len(releases(tmp_path)) == 1


def test_the_revision_ignores_changes_in_the_model_repository(tmp_path, monkeypatch):
    config, source = tmp_path / "model_repository/config.pbtxt", tmp_path / "export/machine.py"
    for path in (config, source):
        path.parent.mkdir()
        path.write_text("before")
    for command in ("init", "add .", "-c user.name=a -c user.email=a@example.org commit -m message"):
        subprocess.run(["git", "-C", tmp_path, *command.split()], check=True, capture_output=True)
    monkeypatch.setattr("alexnet_export.machine.__file__", str(source))
    clean = git_revision()
    assert re.fullmatch("[0-9a-f]{12}", clean)
    config.write_text("after")
    assert git_revision() == clean
    source.write_text("after")
    assert git_revision() == f"{clean}-dirty"
