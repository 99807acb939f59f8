"""``alexnet-export`` on the terminal: a JSON line at the end, one line for a mistake, documented exit codes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from alexnet_client import images
from alexnet_export import checkpoint as checkpoints
from alexnet_export.__main__ import app
from alexnet_export.errors import GateFailed
from alexnet_export.model import AlexNet
from alexnet_export.pipeline import ExportOptions, export_release
from alexnet_export.publish import publish
from alexnet_export.releases import releases
from alexnet_export.verify import verify_release


@pytest.fixture(autouse=True)
def quick(quickly, monkeypatch):
    """The commands use few images and short measurements."""
    options = ExportOptions(rounds=2, batch_sizes=(1, 2), repeats_of_one=2, minimum_images=80, maximum_images=80)
    monkeypatch.setattr("alexnet_export.pipeline.ExportOptions", lambda rounds: options)
    monkeypatch.setattr("alexnet_export.pipeline.export_release", quickly)
    few = partial(verify_release, minimum_images=80, maximum_images=80)
    monkeypatch.setattr("alexnet_export.verify.verify_release", few)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def last_line(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    checkpoints.save(checkpoint, directory)
    return directory


@pytest.mark.parametrize("command", [(), *((each.name or each.callback.__name__,) for each in app.registered_commands)])
def test_every_help_page_shows_the_exit_codes(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Exit codes: 0 success, 1 a check or the run failed, 2 usage or user error" in result.stdout


def test_export_publishes_the_next_version_and_prints_its_path(saved, tmp_path):
    result = run("export", "--checkpoint", saved, "--repository", tmp_path, "--precision", "fp32")
    report = last_line(result)
    assert (report["version"], report["precision"], report["engine"]) == (1, "fp32", "onnxruntime")
    assert report["variants"][0]["gate"] == "passed"
    assert (tmp_path / "alexnet/1/model.onnx").exists()
    assert f"Published {tmp_path}/alexnet/1 (fp32, onnxruntime)" in result.stdout.splitlines()


@pytest.mark.slow
def test_torchvision_weights_are_exported_with_their_thousand_classes(tmp_path, monkeypatch):
    # Not ``quickly``, which uses the file of the small network.
    monkeypatch.setattr("alexnet_export.pipeline.export_release", export_release)
    torch.manual_seed(1)
    torch.save(AlexNet(1000).state_dict(), tmp_path / "weights.pth")
    repository = tmp_path / "repository"
    result = run("export", "--weights", tmp_path / "weights.pth", "--repository", repository, "--precision", "fp32")
    assert result.exit_code == 0, result.stderr
    manifest = releases(repository)[0].manifest
    assert len(manifest["labels"]) == 1000
    assert manifest["normalization"]["mean"][0] == pytest.approx(0.485 * 255)
    assert "dims: [1000]" in (repository / "alexnet/config.pbtxt").read_text()
    assert (repository / "alexnet/labels.txt").read_text().startswith("tench\n")


def test_a_failed_gate_publishes_nothing_and_exits_with_1(saved, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise GateFailed("parity: a logit differs by 3.0e-02")

    monkeypatch.setattr("alexnet_export.variants.check_parity", fail)
    result = run("export", "--checkpoint", saved, "--repository", tmp_path, "--precision", "fp32")
    assert result.exit_code == 1
    assert result.stderr.strip() == "alexnet-export: fp32: parity: a logit differs by 3.0e-02; nothing was published"
    assert "parity: a logit differs" in result.stdout, "the table shows it too"
    assert releases(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("export", "give either --checkpoint DIRECTORY or --weights FILE"),
        ("export --checkpoint a --weights b", "give either --checkpoint DIRECTORY or --weights FILE"),
        ("export --checkpoint nowhere", "nowhere: no checkpoint found; create one with `make train`"),
        ("export --weights nowhere.pth", "nowhere.pth: no such file"),
        ("export --checkpoint {saved} --precision int4", "--precision int4: unknown; choose one of auto, "),
        ("export --checkpoint {saved} --repository /proc/models", "cannot be written"),
        ("train -o {tmp}/ck --data folder --data-dir nowhere", "nowhere: no such directory"),
        ("train -o {tmp}/ck --batch-size 0", "--batch-size must be positive"),
        ("train -o {tmp}/ck --epochs nan", "--epochs must be a number"),
        ("train -o /proc/ck --steps 1", "/proc/ck: cannot be written"),
        ("verify --checkpoint {saved} --repository {tmp}", "no release of alexnet; publish one with `make export`"),
        ("verify --checkpoint {saved} --served nowhere --repository {repository}", "nowhere: not an address"),
        ("rollback --repository {tmp}", "no such model; set the model repository with --repository"),
        ("check nowhere", "nowhere: contains no <model>/config.pbtxt"),
        ("check --target 23.01", "--target 23.01: unknown; choose"),
        ("prune --repository {tmp} --keep 0", "--keep must be positive, got 0"),
        ("samples -o {tmp}/s --data imagenet", "choose digits or folder"),
        ("samples -o {tmp}/s --data folder", "--data folder requires --data-dir"),
        ("samples -o /etc/hostname", "contains files that are not sample images"),
    ],
)
def test_a_mistake_of_the_user_is_one_line_and_exits_with_2(tmp_path, saved, repository, arguments, message):
    result = run(*arguments.format(tmp=tmp_path, saved=saved, repository=repository).split())
    (line,) = result.stderr.strip().splitlines()
    assert result.exit_code == 2
    assert message in line


def test_an_unreachable_server_is_one_line_and_exits_with_1(saved, repository):
    result = run("verify", "--checkpoint", saved, "--served", "127.0.0.1:9", "--repository", repository)
    (line,) = result.stderr.strip().splitlines()
    assert result.exit_code == 1
    assert "127.0.0.1:9" in line


def test_decoded_samples_equal_the_test_canvases(tmp_path, digits):
    assert run("samples", "-o", tmp_path / "samples", "--count", 20).exit_code == 0
    files = sorted((tmp_path / "samples").rglob("*.png"))
    assert len(files) == 20
    for path in files:
        canvas, label = digits.test.sample(int(path.stem.split("-")[1]), 0)
        assert path.parent.name == digits.labels[label]
        assert np.array_equal(images.load_pixels(path), canvas)


def test_samples_replace_only_samples(tmp_path):
    photo = tmp_path / "photos/seven/holiday.png"  # a name of a class, but not of a sample
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(photo)
    assert run("samples", "-o", tmp_path / "photos").exit_code == 2
    assert photo.exists()
    for count in (2, 3):
        assert run("samples", "-o", tmp_path / "samples", "--count", count).exit_code == 0
    assert len(list((tmp_path / "samples").rglob("*.png"))) == 3


@pytest.fixture
def three(tmp_path):
    (tmp_path / "some.onnx").write_bytes(b"not read")
    for precision in ("fp32", "int8", "int8"):
        row = {"name": precision, "published": True, "top1": 0.9712, "images_per_second": 851.4}
        manifest = {"precision": precision, "created": "2026-01-02T03:04:05+00:00", "variants": [row]}
        publish(tmp_path / "repository", {"model.onnx": tmp_path / "some.onnx"}, ("a", "b"), manifest)
    return tmp_path / "repository"


def listed(repository):
    return last_line(run("list", "--repository", repository))["releases"]


def test_list_shows_state_precision_accuracy_and_throughput(three):
    (three / "alexnet/1/manifest.json").write_text("{")
    rows = listed(three)
    states = [(row["version"], row["state"]) for row in rows]
    assert states == [(1, "older, manifest damaged"), (2, "older"), (3, "newest")]
    assert (rows[2]["precision"], rows[2]["top1"], rows[2]["images_per_second"]) == ("int8", 0.9712, 851)
    assert listed(three / "nowhere") == []


def test_rollback_and_prune_print_the_affected_versions(three):
    assert last_line(run("rollback", "--repository", three)) == {"withdrawn": [3], "newest": 2}
    assert [row["state"] for row in listed(three)] == ["older", "newest", "rolled back"]
    assert last_line(run("rollback", "--repository", three, "--to", 1)) == {"withdrawn": [2], "newest": 1}
    assert last_line(run("prune", "--repository", three, "--keep", 1)) == {"deleted": [2, 3]}
    assert [row["version"] for row in listed(three)] == [1]


def test_verify_runs_the_gate_of_a_published_release_again(saved, repository):
    found = last_line(run("verify", "--checkpoint", saved, "--repository", repository))
    assert (found["version"], found["name"], found["agreement"], found["images"]) == (1, "fp32", 1.0, 80)


def test_verify_rejects_another_checkpoint_and_a_changed_file(saved, repository, checkpoint, tmp_path):
    other, copy = tmp_path / "other", tmp_path / "copy"
    state = {**checkpoint.state_dict, "classifier.6.bias": torch.ones(10)}
    checkpoints.save(replace(checkpoint, state_dict=state), other)
    shutil.copytree(repository, copy)
    with (copy / "alexnet/1/model.onnx").open("r+b") as file:
        file.write(b"!")
    for source, models, message in (
        (other, repository, "was created from another checkpoint; pass that one with --checkpoint"),
        (saved, copy, "model.onnx: its SHA-256 differs from the one in manifest.json; publish again"),
    ):
        rejected = run("verify", "--checkpoint", source, "--repository", models)
        assert rejected.exit_code == 2
        assert message in rejected.stderr
