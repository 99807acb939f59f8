"""``alexnet-client`` on the terminal: tables for people, one JSON line last for machines, no tracebacks."""

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
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def last_json(result) -> dict:
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.fixture
def picture(tmp_path):
    """Writes a picture whose class the scripted server knows by its colour."""

    def write(name: str, kind: int):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((256, 256, 3), kind, np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def target(scripted_elsewhere):
    return scripted_elsewhere[1]


def test_classify_prints_the_labels_and_a_json_line(target, picture):
    result = run("classify", picture("a.png", 1), picture("b.png", 2), "-t", target, "--top", 2)
    assert result.exit_code == 0
    assert "dog" in result.stdout
    answers = last_json(result)["answers"]
    assert [answer["top"][0]["label"] for answer in answers] == ["dog", "bird: small"]
    assert len(answers[0]["top"]) == 2


def test_odd_file_names_are_shown_and_harm_nothing(target, picture, tmp_path):
    odd = tmp_path / os.fsdecode(b"bad\xff.png")
    picture("plain.png", 1).rename(odd)
    result = run("classify", picture("[bold]x.png", 1), odd, "-t", target)
    assert result.exit_code == 0, result.output
    assert "[bold]x.png" in result.stdout
    assert "bad?.png" in result.stdout
    assert len(last_json(result)["answers"]) == 2


def test_classify_answers_the_good_images_and_names_the_broken_one(target, picture, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    result = run("classify", tmp_path / "broken.jpg", picture("a.png", 1), "-t", target, "--json")
    assert result.exit_code == 1
    assert "broken.jpg: not a JPEG, PNG or WebP image" in result.stderr
    assert last_json(result)["answers"][0]["top"][0]["label"] == "dog"
    assert len(result.stdout.strip().splitlines()) == 1


def test_evaluate_counts_what_was_right_and_draws_it(target, picture, tmp_path):
    for number in range(3):
        picture(f"photos/dog/{number}.png", 1)
    picture("photos/cat/wrong.png", 2)
    (tmp_path / "photos/cat/broken.png").write_bytes(b"no image")
    result = run("evaluate", tmp_path / "photos", "-t", target, "--sheet", tmp_path / "sheet.png")
    assert result.exit_code == 0, result.stderr
    summary = last_json(result)
    assert (summary["accuracy"], summary["images"], summary["unreadable"]) == (0.75, 4, 1)
    assert summary["triton_version"] == "9.9.9"
    assert 0 < summary["p50_ms"] <= summary["p99_ms"]
    assert "broken.png" in result.stderr
    elsewhere = run("evaluate", tmp_path / "photos", "-t", target, "--sheet", tmp_path)
    assert "the picture cannot be written there" in elsewhere.stderr
    assert last_json(elsewhere)["images"] == 4
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert (sheet == (0xC6, 0x28, 0x28)).all(2).any(), "the mistake is framed in red"


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_evaluate_refuses_a_folder_without_images(target, tmp_path, folder):
    result = run("evaluate", tmp_path / folder, "-t", target)
    assert result.exit_code == 1
    assert "no images there" in result.stderr


def test_evaluate_refuses_a_class_the_model_does_not_know(target, picture, tmp_path):
    picture("photos/horse/1.png", 1)
    result = run("evaluate", tmp_path / "photos", "-t", target)
    assert result.exit_code == 1
    assert "the model knows no class horse" in result.stderr


def test_health_tells_ready_by_its_exit_code(target, free_port):
    assert run("health", "-t", target).exit_code == 0
    assert run("health", "-t", target, "-m", "nobody").exit_code == 1
    dead = run("health", "-t", f"127.0.0.1:{free_port()}")
    assert dead.exit_code == 1
    assert "no server answers there" in dead.stderr


@pytest.mark.parametrize("command", ["health", "metadata"])
def test_with_json_there_is_one_line_and_it_is_json(target, command):
    result = run(command, "-t", target, "--json")
    assert len(result.stdout.splitlines()) == 1
    assert json.loads(result.stdout)["model"] == "alexnet"


def test_metadata_names_the_labels(target):
    assert last_json(run("metadata", "-t", target))["labels"] == ["cat", "dog", "bird: small"]


def test_a_server_error_is_one_line_and_no_traceback(scripted_elsewhere, picture):
    server, target = scripted_elsewhere
    server.fail = (grpc.StatusCode.INTERNAL, "out of cheese")
    result = run("classify", picture("a.png", 1), "-t", target)
    assert result.exit_code == 1
    assert result.stderr.strip() == f"alexnet-client: {target}: out of cheese"
