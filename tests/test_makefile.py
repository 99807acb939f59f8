"""The user's interface: targets that explain themselves, rebuild only what is stale, and refuse clearly."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clone(tmp_path):
    """The files of the repository in an empty directory, without .venv and without anything built."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file() and (not name.startswith("tests/") or name.endswith(".txt")):
            (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "clone" / name)
    return tmp_path / "clone"


def make(directory, *arguments, path=""):
    """Run make there; ``path`` is searched for programs first."""
    variables = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
    for inherited in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        variables.pop(inherited, None)
    return subprocess.run(
        ["make", *arguments], cwd=directory, capture_output=True, text=True, env=variables, check=False
    )


def program(directory: Path, name: str, text: str) -> str:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{text}\n")
    (directory / name).chmod(0o755)
    return str(directory)


def built(clone: Path) -> dict[str, Path]:
    """Pretend that everything has been built, in the order in which make would."""
    files = {
        "installed": clone / ".venv/installed-cpu",
        "samples": clone / "build/digits/samples",
        "checkpoint": clone / "build/digits/checkpoint/checkpoint.json",
        "release": clone / "model_repository/alexnet/2/manifest.json",
    }
    now = time.time()
    for age, path in zip((-40, -30, -20, -10), files.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (now + 100 + age, now + 100 + age))
    return files


def test_help_is_the_default_and_lists_every_target(clone):
    helped = make(clone)
    assert helped.returncode == 0
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    for target in set(phony) - {"force"}:
        assert re.search(rf"^  make {target} +\w", helped.stdout, re.MULTILINE), target


def test_another_python_is_refused_in_one_line_that_says_which_is_needed(clone, tmp_path):
    python = Path(program(tmp_path / "bin", "python9", 'test "$1" = -V && echo "Python 3.13.0"; exit 1')) / "python9"
    refused = make(clone, "setup", f"PYTHON={python}")
    assert refused.returncode != 0
    assert "is Python 3.13.0; this needs Python 3.11 or 3.12" in refused.stderr
    assert not (clone / ".venv").exists()


def test_a_mac_is_refused_in_one_line(clone, tmp_path):
    refused = make(clone, "setup", path=program(tmp_path / "bin", "uname", "echo Darwin arm64"))
    assert refused.returncode != 0
    assert (
        "this needs Linux on x86-64 (Triton's wheel is built for nothing else); this is Darwin arm64" in refused.stderr
    )


def test_an_unknown_accelerator_is_refused(clone):
    assert "ACCELERATOR=tpu is unknown; it is cpu or gpu" in make(clone, "setup", "ACCELERATOR=tpu").stderr


def test_a_second_demo_builds_nothing_again(clone):
    built(clone)
    planned = make(clone, "-n", "demo", "ACCELERATOR=cpu").stdout
    assert "alexnet-server serve" in planned
    assert "alexnet-export" not in planned
    assert "pip install" not in planned


@pytest.mark.parametrize(
    ("touched", "rebuilt", "spared"),
    [
        ("export/alexnet_export/train.py", {"train", "export"}, {"samples"}),
        ("export/alexnet_export/gates.py", {"export"}, {"train", "samples"}),
        ("export/alexnet_export/samples.py", {"samples"}, {"train", "export"}),
        ("README.md", set(), {"train", "export", "samples"}),
    ],
)
def test_only_what_a_change_concerns_is_built_again(clone, touched, rebuilt, spared):
    built(clone)
    os.utime(clone / touched, (time.time() + 200,) * 2)
    planned = make(clone, "-n", "demo", "ACCELERATOR=cpu").stdout
    for command in rebuilt:
        assert f"alexnet-export {command}" in planned
    for command in spared:
        assert f"alexnet-export {command}" not in planned


def test_a_repository_without_a_release_gets_one(clone):
    files = built(clone)
    shutil.rmtree(files["release"].parent)
    planned = make(clone, "-n", "serve", "ACCELERATOR=cpu").stdout
    assert "alexnet-export export" in planned
    assert "alexnet-export train" not in planned


def test_a_release_that_was_rolled_back_does_not_come_again_by_serving(clone):
    files = built(clone)
    (files["release"].parent.parent / "1").mkdir()
    (files["release"].parent.parent / "1/manifest.json").touch()
    os.utime(files["release"].parent.parent / "1/manifest.json", (0, 0))
    shutil.rmtree(files["release"].parent)
    planned = make(clone, "-n", "serve", "ACCELERATOR=cpu").stdout
    assert "alexnet-server serve" in planned
    assert "alexnet-export" not in planned


def test_a_path_with_a_space_is_refused_before_make_misreads_it(clone):
    assert "cannot work with spaces" in make(clone, "-n", "train", "DATA_DIR=my photos").stderr


def test_other_data_is_never_taken_for_the_digits(clone, tmp_path):
    built(clone)
    (tmp_path / "photos/train/cat").mkdir(parents=True)
    planned = make(
        clone, "-n", "export", "ACCELERATOR=cpu", "DATA=folder", f"DATA_DIR={tmp_path}/photos", "REPOSITORY=build/mine"
    ).stdout
    assert re.search(rf"train --output build/photos-\d+/checkpoint --data folder --data-dir {tmp_path}/photos", planned)
    assert "--repository build/mine" in planned


def test_given_weights_are_exported_without_training(clone):
    built(clone)
    planned = make(clone, "-n", "export", "ACCELERATOR=cpu", "WEIGHTS=imagenet", "REPOSITORY=build/imagenet").stdout
    assert "alexnet-export export --weights imagenet --precision auto --repository build/imagenet" in " ".join(
        planned.replace("\\", "").split()
    )
    assert "alexnet-export train" not in planned


def test_classify_without_an_image_says_how(clone):
    built(clone)
    refused = make(clone, "classify", "ACCELERATOR=cpu")
    assert refused.returncode != 0
    assert "name an image: make classify IMAGE=photo.jpg" in refused.stderr


def test_the_versions_are_pinned_exactly_and_name_no_place():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 80
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line) for line in lines)
