"""From a checkpoint to a release: what is made, what is judged, what is published and what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alexnet_export import work
from alexnet_client.errors import BadInput
from alexnet_export.errors import GateFailed
from alexnet_export.gates import compare
from alexnet_export.pipeline import export_release
from alexnet_export.releases import check_files, releases
from alexnet_export.to_onnx import check_file


@pytest.fixture(autouse=True)
def quick(quickly):
    """No time spent on what other tests look at."""
    with quickly():
        yield


def test_the_manifest_tells_all_that_was_made_and_judged(exported_int8):
    done, _, variants = exported_int8
    manifest = check_files(done.release)
    assert manifest["precision"] == "int8"
    assert [(row["name"], row["published"]) for row in manifest["variants"]] == [("fp32", False), ("int8", True)]
    fp32, int8 = manifest["variants"]
    assert fp32["max_logit_difference"] < 1e-4
    assert fp32["agreement"] == 1
    assert fp32["images"] == int8["images"] == 80
    assert 0 < int8["max_logit_difference"] < 0.1
    assert int8["bytes"] < 0.26 * fp32["bytes"]
    assert int8["images_per_second"] > 0
    assert int8["batch1_ms"] > 0
    assert [row.name for row in variants] == ["fp32", "int8"]
    assert manifest["quantization"]["integer_layers"] == manifest["quantization"]["layers"] == 8
    assert len(manifest["quantization"]["sensitivity"]) == 8
    assert {row["name"] for row in manifest["rewrites"]} == {
        "no identity pool",
        "folded normalisation",
        "pixels into conv1",
        "wide conv1",
    }
    assert all(row["batch32_ratio"] > 0 for row in manifest["rewrites"])
    assert manifest["machine"]["processors"] == len(os.sched_getaffinity(0))
    assert done.release.directory.joinpath("model.onnx").stat().st_size == int8["bytes"]


def test_the_published_file_keeps_the_exporters_promises(exported_int8):
    check_file(exported_int8[0].release.directory / "model.onnx")  # raises where one is broken, as test_to_onnx proves


def test_every_step_is_reported_to_its_end(exported_int8):
    last = {step.step: step for step in exported_int8[1]}
    assert all(step.done == step.total for step in last.values())
    assert {"Exporting to ONNX", "Asking PyTorch", "Choosing how to quantise", "Judging int8", "Publishing"} <= set(
        last
    )


def refuse(*arguments, **options):
    raise GateFailed("accuracy: top-1 +2.00 points")


def test_an_int8_file_that_fails_its_gate_is_not_published_and_the_reason_is_kept(
    checkpoint, tiny_digits, tmp_path, monkeypatch
):
    monkeypatch.setattr(work.int8, "choose", refuse)
    monkeypatch.setattr(work.Work, "worth", lambda self: [])
    found = []
    with pytest.raises(GateFailed, match=r"int8: accuracy: top-1 \+2\.00 points"):
        export_release(checkpoint, tiny_digits, tmp_path, precision="int8", on_variants=found.extend)
    assert [(each.name, each.failure) for each in found] == [("fp32", ""), ("int8", "accuracy: top-1 +2.00 points")]
    assert releases(tmp_path) == []
    assert not list((tmp_path / "alexnet").iterdir())


def test_auto_publishes_the_fastest_that_passed(checkpoint, tiny_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(work.int8, "choose", refuse)
    monkeypatch.setattr(work.Work, "worth", lambda self: [])
    done = export_release(checkpoint, tiny_digits, tmp_path)
    assert done.winner.name == "fp32"
    verdicts = {row["name"]: row["verdict"] for row in done.release.manifest["variants"]}
    assert verdicts == {"fp32": "passed", "int8": "accuracy: top-1 +2.00 points"}


def test_an_export_that_does_not_equal_pytorch_publishes_nothing_whatever_was_asked(
    checkpoint, tiny_digits, tmp_path, monkeypatch
):
    def judged(reference, answer, labels):
        return replace(compare(reference, answer, labels), max_logit_difference=0.01)

    monkeypatch.setattr("alexnet_export.variants.compare", judged)
    monkeypatch.setattr(work.int8, "choose", refuse)
    monkeypatch.setattr(work.Work, "worth", lambda self: [])
    with pytest.raises(GateFailed, match="fp32: parity: a logit differs by"):
        export_release(checkpoint, tiny_digits, tmp_path)
    assert releases(tmp_path) == []


@pytest.mark.parametrize(("precision", "says"), [("int4", "--precision int4: unknown; choose one of auto, fp32")])
def test_an_unknown_precision_is_named(checkpoint, tiny_digits, tmp_path, precision, says):
    with pytest.raises(BadInput, match=says):
        export_release(checkpoint, tiny_digits, tmp_path, precision=precision)


def test_a_repository_that_cannot_be_written_is_told_before_the_work(checkpoint, tiny_digits):
    with pytest.raises(BadInput, match=r"/proc/repository.*cannot be written"):
        export_release(checkpoint, tiny_digits, Path("/proc/repository"))


def test_releases_of_other_classes_are_told_before_the_work(checkpoint, tiny_digits, repository):
    other = replace(checkpoint, labels=tuple(f"class {number}" for number in range(10)))
    with pytest.raises(BadInput, match="has 10 classes that are not these 10; publish into another repository"):
        export_release(other, tiny_digits, repository)


def test_too_few_test_images_to_prove_the_accuracy_fall_back_to_fp32(checkpoint, tiny_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(work.Work, "worth", lambda self: [])
    monkeypatch.setattr("alexnet_export.int8._holds", lambda comparison: True)
    monkeypatch.setattr("alexnet_export.int8._harm", lambda *arguments: [])
    done = export_release(checkpoint, tiny_digits, tmp_path)
    assert done.winner.name == "fp32"
    assert "80 images cannot prove a loss of at most 0.5 points" in done.variants[1].failure
    assert np.isfinite(done.variants[0].speed.images_per_second)


def test_where_there_is_tensorrt_its_engine_is_judged_and_published_beside_the_file(
    checkpoint, tiny_digits, tmp_path, monkeypatch
):
    from alexnet_export.runners import onnx_runner

    sources = {}

    def build(source, plan, *, cache):
        sources[plan] = source
        plan.write_bytes(b"engine")

    monkeypatch.setattr(work, "tensorrt_missing", lambda: None)
    monkeypatch.setattr(work, "build_engine", build)
    monkeypatch.setattr(work, "Engine", lambda plan: onnx_runner(sources[plan]))
    monkeypatch.setattr("alexnet_export.variants.check_loss", lambda comparison: None)
    done = export_release(checkpoint, tiny_digits, tmp_path, precision="fp32")
    assert (done.release.directory / "model.plan").read_bytes() == b"engine"
    manifest = check_files(done.release)
    assert set(manifest["files"]) == {"model.onnx", "model.plan"}
    assert manifest["engine"]["agreement"] == 1.0
    monkeypatch.setattr("alexnet_export.variants.check_loss", refuse)
    with pytest.raises(GateFailed, match=r"model\.plan: accuracy: top-1 \+2\.00 points"):
        export_release(checkpoint, tiny_digits, tmp_path, precision="fp32")
    assert len(releases(tmp_path)) == 1
