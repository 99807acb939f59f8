"""The model report: correct measurements, and a self-contained page at any width and with any class names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from alexnet_export import checkpoint as checkpoints
from alexnet_export.__main__ import app
from alexnet_export.model import UNIFORM, AlexNet
from alexnet_export.publish import publish
from alexnet_export.report.evaluation import evaluate_logits, top_confusions
from alexnet_export.report.invariance import KINDS, _inverse, curves, warp
from alexnet_export.report.layers import describe_layers, run_network
from alexnet_export.report.write import write_report

ODD_LABELS = ("<b>bold</b>", "a & b", '"quoted"', *(f"class {number}" for number in range(7)))
FEW = {"minimum_images": 32, "maximum_images": 32, "curve_images": 2}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    directory = tmp_path_factory.mktemp("published")
    (directory / "model.onnx").write_bytes(b"not read")
    row = {
        "name": "int8", "bytes": 57_200_000, "images": 1080, "labelled": 1080, "top1": 0.9713,
        "loss_points": {"estimate": 0.09, "low": -0.16, "high": 0.35}, "agreement": 0.9991,
        "max_logit_difference": 5.1e-3, "batch1_ms": 2.5, "images_per_second": 851.0, "best_batch": 64,
        "gate": "passed", "published": True,
    }  # fmt: skip
    failed = {**row, "name": "fp16", "loss_points": None, "batch1_ms": None, "images_per_second": None, "top1": None}
    failed |= {"gate": "accuracy: top-1 +2.00 points", "published": False, "max_logit_difference": None}
    row |= {"engine": "openvino f32", "rms_error": 8.4e-4}  # older releases have neither
    manifest = {"precision": "int8", "variants": [row, failed]}
    return publish(directory / "repository", {"model.onnx": directory / "model.onnx"}, ODD_LABELS, manifest)


@pytest.fixture(scope="module")
def written(checkpoint, digits, release, tmp_path_factory):
    """A complete report, with class names that contain markup."""
    directory = tmp_path_factory.mktemp("report")
    records = [{"event": "StepDone", "step": step, "loss": 2.0 / step} for step in range(1, 30)]
    records += [{"event": "Evaluated", "step": 29, "loss": 0.3, "accuracy": 0.9}]
    (directory / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    odd, counted = replace(checkpoint, labels=ODD_LABELS), []
    how = {"history": directory / "history.jsonl", "release": release, "on_progress": lambda *now: counted.append(now)}
    summary = write_report(odd, replace(digits, labels=ODD_LABELS), directory / "out", **how, **FEW)
    assert counted[-1][0] == counted[-1][1] == len(counted)
    return summary


@pytest.fixture(scope="module")
def page(written):
    return written.page.read_text()


def test_sizes_and_costs_equal_those_of_the_published_network():
    layers = {layer.name: layer for layer in describe_layers(AlexNet(1000).eval())}
    assert sum(layer.parameters for layer in layers.values()) == 61_100_840
    assert sum(layer.multiply_adds for layer in layers.values()) == 714_188_480
    assert layers["conv1"].multiply_adds == 70_276_800
    assert layers["fc6"].parameters == 37_752_832
    sizes = [layers[name].size for name in ("conv1", "pool1", "conv2", "pool2", "conv5", "pool5", "fc8")]
    assert sizes == [(64, 55, 55), (64, 27, 27), (192, 27, 27), (192, 13, 13), (256, 13, 13), (256, 6, 6), (1000,)]


def test_a_channel_that_is_always_zero_is_counted_as_dead(small):
    torch.manual_seed(0)
    network = AlexNet(10, widths=small).eval()
    with torch.no_grad():
        network.features[0].bias[3] = -1e6
        network.classifier[1].bias[:7] = -1e6
    dead = {each.name: each for each in run_network(network, UNIFORM, np.full((2, 224, 224, 3), 90, np.uint8)).dead}
    assert (dead["conv1"].units, dead["conv1"].channels) == (small.channels[0] * 55 * 55, small.channels[0])
    assert dead["conv1"].dead_channels >= 1
    assert dead["conv1"].dead >= 55 * 55
    assert dead["fc6"].dead == dead["fc6"].dead_channels >= 7


def test_without_a_transformation_nothing_changes_and_similarity_decreases_with_its_size(checkpoint, digits):
    pixels = np.stack([digits.test.sample(index, 0)[0] for index in range(2)])
    found = {curve.kind: curve for curve in curves(checkpoint.network(), UNIFORM, pixels)}
    assert list(found) == list(KINDS)
    for kind, curve in found.items():
        still = curve.sizes.index(1 if kind == "scale" else 0)
        values = (curve.same_class[still], curve.logits[still], curve.equivariance[still], curve.invariance[still])
        assert values == pytest.approx((1, 1, 1, 1), abs=1e-4)
        assert curve.logits[0] < curve.logits[still]
        assert curve.invariance[-1] < curve.invariance[still]
    # A shift by 32 pixels shifts the conv5 map by two positions.
    shift = found["shift"]
    place = shift.sizes.index(32)
    assert shift.equivariance[place] > 0.9
    assert shift.equivariance[place] > shift.invariance[place]


def test_images_are_shifted_scaled_and_rotated_in_the_documented_direction():
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 2] = 1
    assert warp(image, _inverse(0, 1, 2 / 8))[0, 0, 3, 4] == pytest.approx(1), "two pixels to the right"
    large = warp(image, _inverse(0, 2, 0))[0, 0]
    assert large.argmax().item() in {2 * 8 + 0, 2 * 8 + 1, 3 * 8 + 0, 3 * 8 + 1}, "twice as far from the centre"
    turned = warp(image, _inverse(np.pi / 2, 1, 0))[0, 0]
    assert turned.max().item() == pytest.approx(1, abs=1e-5)
    assert turned[3, 2] < 0.5


def test_accuracy_confusion_and_calibration_are_computed_from_the_logits():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.05, 0.9, 0.05]], np.float32))
    found = evaluate_logits(logits, np.array([0, 1, 1, 2]), ("a", "b", "c"))
    assert found.accuracy == 0.5
    assert found.confusion == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert found.per_class == [1.0, 0.5, 0.0]
    assert [(m.index, m.truth, m.predicted) for m in found.mistakes] == [(3, "c", "b"), (2, "b", "a")]
    assert found.mistakes[0].probability == pytest.approx(0.9)
    assert found.calibration_error == pytest.approx((0.3 + 0.2 + 0.6 + 0.9) / 4, abs=1e-6)
    assert top_confusions(found, ("a", "b", "c")) == [("b", "a", 1), ("c", "b", 1)]


@pytest.mark.slow
def test_the_page_is_self_contained_and_class_names_are_escaped(page):
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["'](?!data:|#)""", page)
    assert "url(" not in page.replace("url(#", "")
    for forbidden in ("<script", "@import", "<b>bold</b>"):
        assert forbidden not in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page


@pytest.mark.slow
def test_the_page_shows_the_data(written, page):
    data = json.loads(written.data.read_text())
    assert data["evaluation"]["accuracy"] == written.accuracy
    assert f"<strong>{100 * data['evaluation']['accuracy']:.1f} %</strong>" in page
    assert f"{data['parameters']:,}".replace(",", "\u202f") in page
    assert data["release"]["version"] == 1
    assert "+0.09 (-0.16 to +0.35)" in page
    assert "accuracy: top-1 +2.00 points" in page
    assert "int8, openvino f32" in page
    assert "8.4e-04" in page
    assert "fp16, onnxruntime" in page
    assert len(data["evaluation"]["mistakes"]) == page.count(", predicted <b")


@pytest.mark.slow
def test_missing_parts_are_explained(checkpoint, digits, tmp_path):
    page = write_report(replace(checkpoint, labels=ODD_LABELS), digits, tmp_path, **FEW).page.read_text()
    assert "The classes of the images differ from those of the network" in page
    assert "No training history is available for these weights." in page
    assert "No release of this checkpoint was found." in page
    assert "<h2>Mistakes</h2>" not in page


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_is_not_wider_than_the_window(written, tmp_path, width):
    probe = tmp_path / "probe.html"
    inner = written.page.read_text().replace(
        "</body>",
        "<script>onload = () => parent.postMessage("
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth], '*')</script></body>",
    )
    (tmp_path / "page.html").write_text(inner)
    probe.write_text(
        f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe><p id="found"></p>'
        "<script>onmessage = event => document.getElementById('found').textContent = event.data.join(' ')</script>"
    )
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        f"--user-data-dir={tmp_path / 'profile'}",
        *("--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom", probe.as_uri()),
    ]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    scrolled, shown = map(int, re.search(r'id="found">(\d+) (\d+)<', dumped).groups())
    assert shown == width
    assert scrolled <= shown


@pytest.mark.slow
def test_the_command_prints_the_path_of_the_page(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("alexnet_export.report.write.write_report", partial(write_report, **FEW))
    checkpoints.save(checkpoint, tmp_path / "checkpoint")
    arguments = ("report", "--checkpoint", tmp_path / "checkpoint", "--repository", tmp_path, "-o", tmp_path / "report")
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["page"] == str(tmp_path / "report/index.html")
    layers = describe_layers(checkpoint.network())
    expected = [sum(getattr(each, cost) for each in layers) for cost in ("parameters", "multiply_adds")]
    assert [found["parameters"], found["multiply_adds"]] == expected
