"""``alexnet-export`` on the terminal: a JSON line last, one clear line for a mistake, never a traceback."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from alexnet_client import images
from alexnet_export import checkpoint as checkpoints
from alexnet_export.__main__ import app
from alexnet_export.errors import GateFailed
from alexnet_export.publish import releases


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    checkpoints.save(checkpoint, directory)
    return directory


def test_export_publishes_the_next_version_and_says_where(saved, tmp_path):
    result = run("export", "--checkpoint", saved, "--repository", tmp_path)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout.strip().splitlines()[-1])
    assert report["version"] == 1
    assert report["images"] >= 500
    assert (tmp_path / "alexnet/1/model.onnx").exists()


def test_torchvision_weights_are_exported_with_their_thousand_classes(tmp_path):
    torch.manual_seed(1)
    from alexnet_export.model import AlexNet

    torch.save(AlexNet(1000).state_dict(), tmp_path / "weights.pth")
    result = run("export", "--weights", tmp_path / "weights.pth", "--repository", tmp_path / "repository")
    assert result.exit_code == 0, result.stderr
    manifest = releases(tmp_path / "repository")[0].manifest
    assert len(manifest["labels"]) == 1000
    assert manifest["normalization"]["mean"][0] == pytest.approx(0.485 * 255)
    assert "dims: [ 1000 ]" in (tmp_path / "repository/alexnet/config.pbtxt").read_text()
    assert (tmp_path / "repository/alexnet/labels.txt").read_text().startswith("tench\n")


def test_a_failed_gate_publishes_nothing_and_exits_1(saved, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise GateFailed("parity: a logit differs by 3.0e-02")

    monkeypatch.setattr("alexnet_export.pipeline.verify", fail)
    result = run("export", "--checkpoint", saved, "--repository", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.strip() == "alexnet-export: parity: a logit differs by 3.0e-02; nothing was published"
    assert releases(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("export",), "give either --checkpoint DIRECTORY or --weights FILE"),
        (("export", "--checkpoint", "nowhere"), "nowhere: no checkpoint there; `make train` makes one"),
        (("export", "--weights", "nowhere.pth"), "nowhere.pth: no such file"),
        (("train", "-o", "{tmp}/ck", "--data", "folder", "--data-dir", "nowhere"), "nowhere: no such directory"),
        (("train", "-o", "{tmp}/ck", "--optimizer", "lion"), "--optimizer lion: unknown"),
        (("train", "-o", "{tmp}/ck", "--batch-size", "0"), "--batch-size must be positive"),
        (("train", "-o", "/proc/ck", "--steps", "1"), "/proc/ck: cannot be written"),
        (("samples", "-o", "{tmp}/s", "--data", "imagenet"), "choose digits or folder"),
        (("samples", "-o", "/etc/hostname"), "holds other files than sample images"),
        (("export", "--checkpoint", "/etc/hostname"), "not a checkpoint card"),
        (("export", "--weights", ""), "give either --checkpoint DIRECTORY or --weights FILE"),
        (("train", "-o", "{tmp}/ck", "--epochs", "nan"), "--epochs must be a number"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path, arguments, says):
    result = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output


def test_samples_give_the_test_canvases_back_after_decoding(tmp_path, digits):
    assert run("samples", "-o", tmp_path / "samples", "--count", 20).exit_code == 0
    files = sorted((tmp_path / "samples").rglob("*.png"))
    assert len(files) == 20
    for path in files:
        canvas, label = digits.test.sample(int(path.stem.split("-")[1]), 0)
        assert path.parent.name == digits.labels[label]
        assert np.array_equal(images.load_pixels(path), canvas)


def test_samples_never_delete_what_is_not_theirs(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    result = run("samples", "-o", tmp_path)
    assert result.exit_code == 2
    assert "holds other files" in result.stderr
    assert (tmp_path / "mine.txt").exists()
    photo = tmp_path / "photos/seven/holiday.png"
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(photo)
    assert run("samples", "-o", tmp_path / "photos").exit_code == 2
    assert photo.exists(), "a directory whose names are the classes may hold somebody's photos"
    assert run("samples", "-o", tmp_path / "samples", "--count", 2).exit_code == 0
    assert run("samples", "-o", tmp_path / "samples", "--count", 3).exit_code == 0
    assert len(list((tmp_path / "samples").rglob("*.png"))) == 3
    Image.open(next((tmp_path / "samples").rglob("*.png"))).verify()
