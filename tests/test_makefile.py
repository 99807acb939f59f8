"""The Makefile: help, error messages, and which steps a change repeats."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RELEASE = "model_repository/alexnet/2/manifest.json"
BUILT = (".venv/installed-cpu", "build/digits/samples", "build/digits/checkpoint/checkpoint.json", RELEASE)
"""In the order in which make creates them."""


@pytest.fixture
def clone(tmp_path):
    """The files of the repository in an empty directory, without .venv and build results."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and (not name.startswith("tests/") or name.endswith(".txt")):
            (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "clone" / name)
    return tmp_path / "clone"


@pytest.fixture
def built(clone):
    """A clone with empty files for all build results."""
    for age_s, name in zip((40, 30, 20, 10), BUILT, strict=True):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
        os.utime(clone / name, (time.time() + 100 - age_s,) * 2)
    return clone


def make(directory, *arguments, path=""):
    """Output of make; ``path`` is searched for programs first."""
    variables = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    variables["PATH"] = f"{path}:{os.environ['PATH']}"
    command = ["make", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, env=variables, check=False)


def planned(directory, *arguments):
    """The commands that make would run, without line breaks."""
    text = make(directory, "-n", "ACCELERATOR=cpu", *arguments).stdout
    return " ".join(text.replace("\\", "").split())


def test_help_is_the_default_and_lists_every_target(clone):
    helped = make(clone)
    assert helped.returncode == 0
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    for target in set(phony) - {"force"}:
        assert re.search(rf"^  make {target} +\w", helped.stdout, re.MULTILINE), target


@pytest.mark.parametrize(
    ("program", "script", "message"),
    [
        (
            "python9",
            'test "$1" = -V && echo "Python 3.13.0"; exit 1',
            "is Python 3.13.0; Python 3.11 or 3.12 is required",
        ),
        ("uname", "echo Darwin arm64", "this project needs Linux on x86-64"),
    ],
)
def test_another_python_or_platform_is_rejected_before_the_installation(clone, tmp_path, program, script, message):
    (tmp_path / program).write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / program).chmod(0o755)
    options = [f"PYTHON={tmp_path}/python9"] if program == "python9" else []
    rejected = make(clone, "setup", *options, path=tmp_path)
    assert rejected.returncode != 0
    assert message in rejected.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("setup", "ACCELERATOR=tpu"), "ACCELERATOR=tpu is unknown; use cpu or gpu"),
        (("-n", "train", "DATA_DIR=my photos"), "cannot work with spaces"),
        (("classify", "ACCELERATOR=cpu"), "IMAGE is missing: make classify IMAGE=photo.jpg"),
    ],
)
def test_invalid_arguments_are_rejected_with_a_remedy(built, arguments, message):
    rejected = make(built, *arguments)
    assert rejected.returncode != 0
    assert message in rejected.stderr


@pytest.mark.parametrize(
    ("changed", "repeated"),
    [
        ("export/alexnet_export/train.py", {"train", "export"}),
        ("export/alexnet_export/gates.py", {"export"}),
        ("export/alexnet_export/samples.py", {"samples"}),
        ("README.md", set()),
    ],
)
def test_a_change_repeats_only_the_steps_that_depend_on_it(built, changed, repeated):
    os.utime(built / changed, (time.time() + 200,) * 2)
    commands = planned(built, "demo")
    assert set(re.findall(r"alexnet-export (train|export|samples)", commands)) == repeated
    assert "alexnet-server serve" in commands
    assert "pip install" not in commands


def test_serve_publishes_a_release_if_there_is_none(built):
    shutil.rmtree((built / RELEASE).parent)
    assert set(re.findall(r"alexnet-export (\w+)", planned(built, "serve"))) == {"export"}


def test_serve_does_not_publish_a_release_again_that_was_rolled_back(built):
    previous = (built / RELEASE).parent.rename(built / "model_repository/alexnet/1")
    os.utime(previous / "manifest.json", (0, 0))
    commands = planned(built, "serve")
    assert "alexnet-server serve" in commands
    assert "alexnet-export" not in commands


def test_own_images_have_their_own_checkpoint(built, tmp_path):
    (tmp_path / "photos/train/cat").mkdir(parents=True)
    commands = planned(built, "export", "DATA=folder", f"DATA_DIR={tmp_path}/photos", "REPOSITORY=build/mine")
    assert re.search(
        rf"train --output build/photos-\d+/checkpoint --data folder --data-dir {tmp_path}/photos", commands
    )
    assert "--repository build/mine" in commands


def test_given_weights_are_exported_without_training(built):
    commands = planned(built, "export", "WEIGHTS=imagenet", "REPOSITORY=build/imagenet")
    assert "alexnet-export export --weights imagenet --precision auto --repository build/imagenet" in commands
    assert "alexnet-export train" not in commands


def test_the_constraints_pin_exact_versions():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 80
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line) for line in lines)
