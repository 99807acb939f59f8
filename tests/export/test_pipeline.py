"""From a checkpoint to a release: variants, gates, publication and failures."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from alexnet_client.errors import BadInput
from alexnet_client.manifest import find_mismatch
from alexnet_export import pipeline
from alexnet_export.errors import GateFailed
from alexnet_export.gates import compare
from alexnet_export.pipeline import export_release
from alexnet_export.releases import releases
from alexnet_export.runners import onnx_runner
from alexnet_export.to_onnx import check_file


def fail(*arguments, **options):
    raise GateFailed("accuracy: top-1 +2.00 points")


@pytest.fixture
def int8_fails(monkeypatch):
    """No way of quantising passes."""
    monkeypatch.setattr("alexnet_export.int8.choose", fail)


@pytest.mark.slow
def test_every_step_is_reported_and_the_manifest_describes_all_variants_and_gates(exported_int8):
    done, steps, variants = exported_int8
    last = {step.step: step for step in steps}
    assert all(step.done == step.total for step in last.values())
    assert set(last) == {
        *("Exporting to ONNX", "Running PyTorch", "Validating fp32", "Validating int8", "Choosing the quantisation"),
        *("Measuring the variants", "Publishing"),
    }
    manifest = done.release.manifest
    assert find_mismatch(done.release.directory) == ""
    assert manifest["precision"] == "int8"
    assert [(row["name"], row["published"]) for row in manifest["variants"]] == [("fp32", False), ("int8", True)]
    assert [row.name for row in variants] == ["fp32", "int8"]
    fp32, int8 = manifest["variants"]
    assert fp32["agreement"] == 1
    assert fp32["images"] == int8["images"] == 80
    assert 0 < int8["max_logit_difference"] < 0.1
    assert int8["bytes"] < 0.26 * fp32["bytes"]
    assert int8["bytes"] == (done.release.directory / "model.onnx").stat().st_size
    assert int8["images_per_second"] > 0
    assert int8["batch1_ms"] > 0
    assert manifest["quantization"]["integer_layers"] == manifest["quantization"]["layers"] == 8
    assert len(manifest["quantization"]["sensitivity"]) == 8
    assert 1 <= manifest["machine"]["cpus"] <= len(os.sched_getaffinity(0))
    check_file(done.release.directory / "model.onnx")


@pytest.mark.slow
@pytest.mark.usefixtures("int8_fails")
def test_auto_publishes_the_fastest_variant_that_passed_and_int8_nothing(quickly, checkpoint, tiny_digits, tmp_path):
    with pytest.raises(GateFailed, match=r"int8: accuracy: top-1 \+2\.00 points"):
        quickly(checkpoint, tiny_digits, tmp_path, precision="int8")
    assert list((tmp_path / "alexnet").iterdir()) == []
    done = quickly(checkpoint, tiny_digits, tmp_path)
    assert done.winner.name == "fp32"
    gates = {row["name"]: row["gate"] for row in done.release.manifest["variants"]}
    assert gates == {"fp32": "passed", "int8": "accuracy: top-1 +2.00 points"}


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
    assert set(done.release.manifest["files"]) == {"model.onnx", "model.plan"}
    assert done.release.manifest["engine"]["agreement"] == 1.0
    monkeypatch.setattr("alexnet_export.variants.check_loss", fail)
    with pytest.raises(GateFailed, match=r"model\.plan: accuracy: top-1 \+2\.00 points"):
        quickly(checkpoint, tiny_digits, tmp_path, precision="fp32")
    assert len(releases(tmp_path)) == 1
