"""Releases whose files differ from their manifests, or that this CPU cannot run, are not served."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from alexnet_server import model_repository
from alexnet_server.__main__ import app
from alexnet_server.model_repository import served_versions
from alexnet_server.preflight import check_releases


@pytest.fixture
def copy(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "models")
    return tmp_path / "models"


def edit(version, change):
    content = json.loads((version / "manifest.json").read_text())
    change(content)
    (version / "manifest.json").write_text(json.dumps(content))


def damage(path):
    with path.open("r+b") as file:
        file.write(b"!")


def test_a_damaged_release_fails_with_a_remedy_and_is_not_served(copy, free_port):
    assert check_releases(copy).ok
    damage(copy / "alexnet/1/model.onnx")
    check = check_releases(copy)
    assert "model.onnx: its SHA-256 differs" in check.found
    assert check.remedy == "publish again (make export) or roll back (alexnet-export rollback)"
    ports = ("--grpc-port", str(free_port()), "--metrics-port", str(free_port()), "--health-port", "0")
    result = CliRunner().invoke(app, ["serve", "-r", str(copy), *ports])
    assert result.exit_code == 1
    assert check.found in result.stderr
    assert check.remedy in result.stderr


def test_a_file_that_cannot_be_read_fails_without_a_traceback(copy, monkeypatch):
    def deny(version):
        raise PermissionError(13, "Permission denied", version / "model.onnx")

    monkeypatch.setattr(model_repository, "find_mismatch", deny)
    assert check_releases(copy).found.endswith("alexnet/1/model.onnx: permission denied")


def test_only_versions_that_the_selected_configuration_serves_are_checked(copy):
    shutil.copytree(copy / "alexnet/1", copy / "alexnet/2")
    edit(copy / "alexnet/2", lambda content: content.update(version=2))
    damage(copy / "alexnet/1/model.onnx")
    (copy / "alexnet/configs/old.pbtxt").write_text("version_policy { specific { versions: [ 1 ] } }")
    assert check_releases(copy).ok
    assert not check_releases(copy, "old").ok


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", ["10"]),
        ("version_policy { latest { num_versions: 2 } }", ["2", "10"]),
        ("version_policy { specific { versions: [ 1, 2 ] } }", ["1", "2"]),
        ("version_policy { all { } }", ["1", "2", "10"]),
        ("a_field_of_a_later_release: 1", ["10"]),
        ("not a configuration {", ["10"]),
    ],
)
def test_the_served_versions_follow_the_version_policy(tmp_path, policy, expected):
    for name in ("1", "2", "10", ".rolled-back-11", "configs"):
        (tmp_path / name).mkdir()
    (tmp_path / "config.pbtxt").write_text(policy)
    assert [version.name for version in served_versions(tmp_path, tmp_path / "config.pbtxt")] == expected


def test_a_model_without_any_manifest_is_not_checked(tmp_path):
    (tmp_path / "theirs/1").mkdir(parents=True)
    (tmp_path / "theirs/1/model.onnx").touch()
    (tmp_path / "theirs/config.pbtxt").touch()
    assert check_releases(tmp_path).ok


@pytest.mark.parametrize(
    ("reduced", "flags", "config_name", "ok"),
    [(False, "avx2", "", False), (True, "avx2", "", True), (False, "avx_vnni", "", True), (False, "avx2", "gpu", True)],
    ids=["overflow", "7 bits", "VNNI", "GPU"],
)
def test_int8_weights_of_8_bits_need_a_cpu_or_gpu_on_which_products_do_not_overflow(
    copy, tmp_path, reduced, flags, config_name, ok
):
    edit(copy / "alexnet/1", lambda content: content.update(quantization={"reduce_range": reduced}))
    (tmp_path / "cpuinfo").write_text(f"model name\t: x\nflags\t\t: fpu {flags}\n")
    check = check_releases(copy, config_name, cpuinfo=tmp_path / "cpuinfo")
    assert check.ok == ok
    assert ok or "make export" in check.remedy
