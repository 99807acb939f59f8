"""``alexnet-client`` on the command line: tables, JSON lines, exit codes, no tracebacks."""

from __future__ import annotations

import json
import os

import grpc
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from alexnet_client.__main__ import app


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def last_json(result) -> dict:
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.fixture
def picture(tmp_path, image):
    """Writes an image of a class."""

    def write(name: str, kind: int):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(kind)).resize((256, 256)).save(path)
        return path

    return write


@pytest.fixture
def target(threaded_server):
    return threaded_server.target


@pytest.mark.parametrize("command", [(), ("classify",), ("evaluate",), ("health",), ("metadata",), ("compare",)])
def test_each_help_page_lists_the_exit_codes(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Exit codes: 0 success, 1 a check or the run failed, 2" in " ".join(result.stdout.split())


def test_classify_prints_the_most_probable_classes_and_a_json_line_also_for_odd_file_names(target, picture, tmp_path):
    odd = picture("plain.png", 2).rename(tmp_path / os.fsdecode(b"bad\xff.png"))
    result = run("classify", picture("[bold]x.png", 1), odd, "-t", target, "--top", 2)
    assert result.exit_code == 0, result.output
    for text in ("dog", "[bold]x.png", "bad?.png"):
        assert text in result.stdout
    images = last_json(result)["images"]
    assert [each["top"][0]["label"] for each in images] == ["dog", "bird: small"]
    assert len(images[0]["top"]) == 2


def test_classify_reports_an_unreadable_image_and_classifies_the_others(target, picture, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    result = run("classify", tmp_path / "broken.jpg", picture("a.png", 1), "-t", target, "--json")
    assert result.exit_code == 1
    assert "broken.jpg: not a JPEG, PNG or WebP image" in result.stderr
    assert json.loads(result.stdout)["images"][0]["top"][0]["label"] == "dog"


def test_evaluate_prints_the_accuracy_and_draws_a_contact_sheet(target, picture, tmp_path):
    for number in range(3):
        picture(f"photos/dog/{number}.png", 1)
    picture("photos/cat/wrong.png", 2)
    (tmp_path / "photos/cat/broken.png").write_bytes(b"no image")
    result = run("evaluate", tmp_path / "photos", "-t", target, "--sheet", tmp_path / "sheets/sheet.png")
    assert result.exit_code == 0, result.stderr
    summary = last_json(result)
    assert summary == summary | {"accuracy": 0.75, "images": 4, "unreadable": 1, "triton_version": "9.9.9"}
    assert 0 < summary["p50_ms"] <= summary["p99_ms"]
    assert "3 of 4 images correct" in result.stdout
    assert "broken.png" in result.stderr
    sheet = np.asarray(Image.open(tmp_path / "sheets/sheet.png").convert("RGB"))
    assert (sheet == (0xC6, 0x28, 0x28)).all(2).any(), "the error has a red frame"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "."), "the model has no class photos"),
        (("evaluate", "photos"), "the model has no class horse"),
        (("evaluate", "photos", "--sheet", "."), "is a directory; choose another path"),
        (("metadata", "--model", "other"), "unknown model: 'other'"),
        (("metadata", "--tls", "nowhere"), "ca.crt: no such file"),
        (("metadata", "--timeout", "0"), "timeout_s must be positive"),
        (("health", "--target", "host"), "not an address of the form host:port"),
    ],
)
def test_user_errors_have_exit_code_2_and_no_traceback(target, picture, tmp_path, monkeypatch, arguments, message):
    picture("photos/horse/1.png", 1)
    monkeypatch.chdir(tmp_path)
    result = run(arguments[0], "--target", target, *arguments[1:])
    assert result.exit_code == 2
    assert message in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_health_has_exit_code_1_if_the_model_is_not_ready_or_no_server_responds(target, free_port):
    for arguments, exit_code in ((("-t", target), 0), (("-t", target, "-m", "other"), 1)):
        result = run("health", *arguments)
        assert (result.exit_code, last_json(result)["ready"]) == (exit_code, not exit_code)
    result = run("health", "-t", f"127.0.0.1:{free_port()}")
    assert result.exit_code == 1
    assert "no server responds" in result.stderr


def test_metadata_prints_the_labels(target):
    found = json.loads(run("metadata", "-t", target, "--json").stdout)
    assert found["labels"] == ["cat", "dog", "bird: small"]
    assert "cat, dog, bird: small" in run("metadata", "-t", target).stdout


def test_a_server_fault_has_exit_code_1_and_a_one_line_message(threaded_server, target, picture):
    threaded_server.fail = (grpc.StatusCode.INTERNAL, "out of memory")
    result = run("classify", picture("a.png", 1), "-t", target)
    assert result.exit_code == 1
    assert result.stderr.strip() == f"alexnet-client: {target}: out of memory"
