"""A version whose files are not those of its manifest is not served."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from alexnet_server import checks, manifest
from alexnet_server.__main__ import app


@pytest.fixture
def copy(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "models")
    return tmp_path / "models"


def edit(version, change):
    content = json.loads((version / "manifest.json").read_text())
    change(content)
    (version / "manifest.json").write_text(json.dumps(content))


def alter(path):
    with path.open("r+b") as file:
        file.write(b"!")


HARM = {
    "altered": (lambda v: alter(v / "model.onnx"), "is not the file that was published"),
    "truncated": (lambda v: (v / "model.onnx").write_bytes(b""), "is not the file that was published"),
    "missing": (lambda v: (v / "model.onnx").unlink(), "model.onnx is missing, manifest.json lists it"),
    "extra": (lambda v: (v / "model.plan").touch(), "model.plan is not listed in manifest.json"),
    "no JSON": (lambda v: (v / "manifest.json").write_text("{"), "manifest.json is missing or damaged"),
    "no object": (lambda v: (v / "manifest.json").write_text("3"), "manifest.json is missing or damaged"),
    "other version": (lambda v: edit(v, lambda m: m.update(version=7)), "was edited by hand, or is of another version"),
    "other model": (lambda v: edit(v, lambda m: m.update(model="resnet")), "is of another version or model"),
    "no files": (lambda v: edit(v, lambda m: m.update(files={})), "was edited by hand"),
    "no hash": (
        lambda v: edit(v, lambda m: m["files"].update({"model.onnx": 1})),
        "is not the file that was published",
    ),
}


def test_a_release_as_it_was_published_passes(copy):
    assert checks.check_manifests(copy).ok


@pytest.mark.parametrize("harm", HARM)
def test_a_changed_release_is_found_and_the_way_out_is_said(copy, harm):
    act, says = HARM[harm]
    act(copy / "alexnet/1")
    check = checks.check_manifests(copy)
    assert says in check.found
    assert check.remedy == "publish again (make export), or go back: alexnet-export rollback"


def test_the_server_refuses_to_start_on_it(copy, free_port):
    alter(copy / "alexnet/1/model.onnx")
    ports = ("--grpc-port", str(free_port()), "--metrics-port", str(free_port()))
    result = CliRunner().invoke(app, ["serve", "-r", str(copy), *ports])
    assert result.exit_code == 1
    assert "is not the file that was published" in result.stderr
    assert "alexnet-export rollback" in result.stderr


def test_a_release_that_is_not_served_does_not_matter(copy):
    shutil.copytree(copy / "alexnet/1", copy / "alexnet/2")
    edit(copy / "alexnet/2", lambda content: content.update(version=2))
    (copy / "alexnet/1/model.onnx").write_bytes(b"old and broken")
    assert checks.check_manifests(copy).ok


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", ["10"]),
        ("version_policy { latest { num_versions: 2 } }", ["2", "10"]),
        ("version_policy { specific { versions: [ 1, 2 ] } }", ["1", "2"]),
        ("version_policy { all { } }", ["1", "2", "10"]),
        ("a_field_of_tomorrow: 1", ["10"]),
        ("not a configuration {", ["10"]),
    ],
)
def test_the_versions_looked_at_are_those_of_the_policy(tmp_path, policy, expected):
    for name in ("1", "2", "10", ".rolled-back-11", "configs"):
        (tmp_path / name).mkdir()
    (tmp_path / "config.pbtxt").write_text(policy)
    assert [version.name for version in manifest.served(tmp_path, tmp_path / "config.pbtxt")] == expected


def test_the_configuration_that_is_chosen_decides(copy):
    shutil.copytree(copy / "alexnet/1", copy / "alexnet/2")
    (copy / "alexnet/configs/old.pbtxt").write_text("version_policy { specific { versions: [ 1 ] } }")
    assert not checks.check_manifests(copy).ok, "the copy says of itself that it is version 1"
    assert checks.check_manifests(copy, "old").ok


def test_a_model_that_somebody_else_made_is_none_of_our_business(tmp_path):
    (tmp_path / "theirs/1").mkdir(parents=True)
    (tmp_path / "theirs/1/model.onnx").touch()
    (tmp_path / "theirs/config.pbtxt").touch()
    assert checks.check_manifests(tmp_path).ok


@pytest.mark.parametrize(
    ("reduced", "flags", "ok"), [(False, "avx2", False), (True, "avx2", True), (False, "avx2 avx_vnni", True)]
)
def test_weights_of_full_range_need_a_cpu_that_does_not_overflow(copy, tmp_path, monkeypatch, reduced, flags, ok):
    edit(copy / "alexnet/1", lambda content: content.update(quantization={"reduce_range": reduced}))
    (tmp_path / "cpuinfo").write_text(f"model name\t: x\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(checks, "has_integer_flags", lambda: manifest.has_integer_flags(tmp_path / "cpuinfo"))
    check = checks.check_manifests(copy)
    assert check.ok == ok
    assert ok or "make export" in check.remedy


def test_a_gpu_does_not_need_the_cpus_instructions(copy, monkeypatch):
    edit(copy / "alexnet/1", lambda content: content.update(quantization={"reduce_range": False}))
    monkeypatch.setattr(checks, "has_integer_flags", lambda: False)
    assert not checks.check_manifests(copy).ok
    assert checks.check_manifests(copy, "gpu").ok
