"""``alexnet-export`` on the terminal: a JSON line last, one clear line for a mistake, never a traceback."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from alexnet_client import images
from alexnet_export import checkpoint as checkpoints
from alexnet_export.__main__ import app
from alexnet_export.errors import GateFailed
from alexnet_export.publish import publish
from alexnet_export.releases import releases


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No time spent on measuring, and no more images than it takes."""
    monkeypatch.setattr("alexnet_export.work.ROUNDS", 2)
    monkeypatch.setattr("alexnet_export.work.BATCH_SIZES", (1, 2))
    monkeypatch.setattr("alexnet_export.speed.REPEATS_OF_ONE", 2)
    monkeypatch.setattr("alexnet_export.image_sets.MINIMUM_IMAGES", 80)  # of all of them `make demo` has its own test
    monkeypatch.setattr("alexnet_export.image_sets.MAXIMUM_IMAGES", 80)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    checkpoints.save(checkpoint, directory)
    return directory


def test_export_publishes_the_next_version_and_says_where(saved, tmp_path, quickly):
    with quickly():
        result = run("export", "--checkpoint", saved, "--repository", tmp_path, "--precision", "fp32")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout.strip().splitlines()[-1])
    assert (report["version"], report["precision"]) == (1, "fp32")
    assert report["variants"][0]["images"] == 80
    assert (tmp_path / "alexnet/1/model.onnx").exists()
    assert f"Published {tmp_path}/alexnet/1 (fp32)" in result.stdout.splitlines()
    assert "max |Δlogit|" in result.stdout


def test_torchvision_weights_are_exported_with_their_thousand_classes(tmp_path):
    torch.manual_seed(1)
    from alexnet_export.model import AlexNet

    torch.save(AlexNet(1000).state_dict(), tmp_path / "weights.pth")
    result = run(
        *("export", "--weights", tmp_path / "weights.pth", "--repository", tmp_path / "repository"),
        *("--precision", "fp32"),
    )
    assert result.exit_code == 0, result.stderr
    manifest = releases(tmp_path / "repository")[0].manifest
    assert len(manifest["labels"]) == 1000
    assert manifest["normalization"]["mean"][0] == pytest.approx(0.485 * 255)
    assert "dims: [1000]" in (tmp_path / "repository/alexnet/config.pbtxt").read_text()
    assert (tmp_path / "repository/alexnet/labels.txt").read_text().startswith("tench\n")


def test_a_failed_gate_publishes_nothing_and_exits_1(saved, tmp_path, monkeypatch, quickly):
    def fail(*args, **kwargs):
        raise GateFailed("parity: a logit differs by 3.0e-02")

    monkeypatch.setattr("alexnet_export.variants.check_parity", fail)
    with quickly():
        result = run("export", "--checkpoint", saved, "--repository", tmp_path, "--precision", "fp32")
    assert result.exit_code == 1
    assert result.stderr.strip() == "alexnet-export: fp32: parity: a logit differs by 3.0e-02; nothing was published"
    assert "parity: a logit differs" in result.stdout, "in the table too"
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
        (
            ("export", "--checkpoint", "{saved}", "--precision", "int4"),
            "--precision int4: unknown; choose one of auto, ",
        ),
        (
            ("export", "--checkpoint", "{saved}", "--repository", "/proc/models"),
            "/proc/models/alexnet: cannot be written",
        ),
        (
            ("verify", "--checkpoint", "{saved}", "--repository", "{tmp}"),
            "no release of alexnet; `make export` publishes",
        ),
        (("verify", "--checkpoint", "{saved}", "--served", "127.0.0.1:9"), "127.0.0.1:9: no server answers there"),
        (("verify", "--checkpoint", "{saved}", "--served", "nowhere"), "nowhere: not an address of the form host:port"),
        (("rollback", "--repository", "{tmp}"), "no such model; name the model repository with --repository"),
        (("prune", "--repository", "{tmp}", "--keep", "0"), "--keep must be positive, got 0"),
        (("samples", "-o", "{tmp}/s", "--data", "imagenet"), "choose digits or folder"),
        (("samples", "-o", "/etc/hostname"), "holds other files than sample images"),
        (("export", "--checkpoint", "/etc/hostname"), "not a checkpoint card"),
        (("export", "--weights", ""), "give either --checkpoint DIRECTORY or --weights FILE"),
        (("train", "-o", "{tmp}/ck", "--epochs", "nan"), "--epochs must be a number"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path, saved, repository, arguments, says):
    if "--served" in arguments:
        arguments = (*arguments, "--repository", str(repository))
    result = run(*(argument.format(tmp=tmp_path, saved=saved) for argument in arguments))
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


@pytest.fixture
def three(tmp_path):
    (tmp_path / "some.onnx").write_bytes(b"not looked at")
    for precision in ("fp32", "int8", "int8"):
        row = {"name": precision, "published": True, "top1": 0.9712, "images_per_second": 851.4}
        manifest = {"precision": precision, "created": "2026-01-02T03:04:05+00:00", "variants": [row]}
        publish(tmp_path / "repository", {"model.onnx": tmp_path / "some.onnx"}, ("a", "b"), manifest)
    return tmp_path / "repository"


def last_line(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_list_tells_what_each_version_is(three):
    (three / "alexnet/1/manifest.json").write_text("{")
    rows = last_line(run("list", "--repository", three))
    assert [(row["version"], row["state"]) for row in rows] == [
        (1, "older, manifest damaged"),
        (2, "older"),
        (3, "newest"),
    ]
    assert (rows[2]["precision"], rows[2]["top1"], rows[2]["images_per_second"]) == ("int8", 0.9712, 851)
    assert last_line(run("list", "--repository", three / "nowhere")) == []


def test_rollback_and_prune_say_what_they_did(three):
    assert last_line(run("rollback", "--repository", three)) == {"withdrawn": [3], "newest": 2}
    assert [row["state"] for row in last_line(run("list", "--repository", three))] == ["older", "newest", "rolled back"]
    assert last_line(run("rollback", "--repository", three, "--to", 1)) == {"withdrawn": [2], "newest": 1}
    assert last_line(run("prune", "--repository", three, "--keep", 1)) == {"deleted": [2, 3]}
    assert [row["version"] for row in last_line(run("list", "--repository", three))] == [1]


def test_verify_judges_a_published_release_again(saved, repository, tmp_path):
    found = last_line(run("verify", "--checkpoint", saved, "--repository", repository))
    assert (found["version"], found["name"], found["agreement"]) == (1, "fp32", 1.0)


def test_verify_refuses_a_release_that_was_changed_or_is_of_another_checkpoint(saved, repository, checkpoint, tmp_path):
    other = tmp_path / "other"
    state = {**checkpoint.state_dict, "classifier.6.bias": torch.ones(10)}
    checkpoints.save(replace(checkpoint, state_dict=state), other)
    refused = run("verify", "--checkpoint", other, "--repository", repository)
    assert refused.exit_code == 2
    assert "was made of another checkpoint; name that one with --checkpoint" in refused.stderr
    shutil.copytree(repository, tmp_path / "copy")
    with (tmp_path / "copy/alexnet/1/model.onnx").open("r+b") as file:
        file.write(b"!")
    refused = run("verify", "--checkpoint", saved, "--repository", tmp_path / "copy")
    assert refused.exit_code == 2
    assert "model.onnx: its SHA-256 is not the one in manifest.json; publish again, or go back with" in refused.stderr
