"""What would make Triton fail later is found before, with a remedy."""

from __future__ import annotations

import platform
import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alexnet_server import checks
from alexnet_server.__main__ import app
from alexnet_server.command import ServerOptions
from alexnet_server.errors import LaunchError
from alexnet_server.wheel import Triton, assemble_backends, find_triton, python_version


@pytest.fixture
def repository(tmp_path) -> Path:
    (tmp_path / "models/alexnet/1").mkdir(parents=True)
    (tmp_path / "models/alexnet/10").mkdir()
    (tmp_path / "models/alexnet/²").mkdir()
    (tmp_path / "models/alexnet/config.pbtxt").touch()
    return tmp_path / "models"


def test_this_machine_passes_every_check(repository, free_port):
    options = ServerOptions(repository, grpc_port=free_port(), metrics_port=free_port(), http_port=free_port())
    found = list(checks.check_all(options))
    assert len(found) == 12
    assert not [check for check in found if not check.ok]


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "aarch64"), ("Windows", "AMD64")])
def test_another_platform_is_refused(monkeypatch, system, machine):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert "Linux on x86-64 only" in checks.check_platform().remedy


def test_another_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    assert checks.check_platform().remedy == "use Python 3.11 or 3.12"


@pytest.mark.parametrize("found", [("glibc", "2.31"), ("", ""), ("musl", "1.2")])
def test_an_old_or_other_c_library_is_refused(monkeypatch, found):
    monkeypatch.setattr(platform, "libc_ver", lambda: found)
    assert "glibc 2.35 or later" in checks.check_glibc().remedy


def test_a_missing_libpython_names_the_package(monkeypatch):
    monkeypatch.setattr(checks, "shared_libpython", lambda: None)
    assert f"apt-get install libpython{python_version()}" in checks.check_libpython().remedy


def test_a_missing_wheel_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "`make setup` installs it" in checks.check_wheel().remedy


def test_shared_memory_that_is_too_small_says_how_much_is_needed(monkeypatch):
    small = type("Stat", (), {"f_bavail": 1000, "f_frsize": 4096})
    monkeypatch.setattr(checks.os, "statvfs", lambda path: small)
    check = checks.check_shared_memory(Path("/dev/shm"), models=2)
    assert check.found == "/dev/shm: 4 MiB free"
    assert check.remedy.startswith("128 MiB are needed")


def test_shared_memory_that_is_not_mounted_is_named(tmp_path):
    assert "mount a tmpfs" in checks.check_shared_memory(tmp_path / "nowhere", models=1).remedy


def test_the_newest_version_is_named_as_a_number(repository):
    assert checks.check_repository(repository).found == "alexnet version 10"


def test_a_repository_without_a_release_says_how_to_publish_one(repository):
    (repository / "other").mkdir()
    (repository / "other/config.pbtxt").touch()
    check = checks.check_repository(repository)
    assert "no published version of other" in check.found
    assert "make export" in check.remedy
    assert not checks.check_repository(repository / "nowhere").ok
    assert not checks.check_repository(repository / "alexnet").ok


def test_a_named_configuration_must_exist(repository):
    assert not checks.check_config_name(repository, "gpu").ok
    (repository / "alexnet/configs").mkdir()
    (repository / "alexnet/configs/gpu.pbtxt").touch()
    assert checks.check_config_name(repository, "gpu").ok
    assert not checks.check_config_name(repository, "../configs/gpu").ok


def test_a_taken_port_names_the_program_that_holds_it():
    with socket.create_server(("127.0.0.1", 0)) as server:
        check = checks.check_port("127.0.0.1", server.getsockname()[1], "gRPC")
    assert "taken by py" in check.found
    assert f"(pid {checks.os.getpid()})" in check.found
    assert "--grpc-port" in check.remedy


def test_the_backend_directory_is_assembled_once_and_whole(tmp_path):
    first = assemble_backends(find_triton(), tmp_path / "cache")
    assert {str(path.relative_to(first)) for path in first.rglob("*") if path.is_file()} == {
        "python/libtriton_python.so",
        "python/triton_python_backend_utils.py",
        "python/triton_python_backend_stub",
        "onnxruntime/model.py",
        "image_decoder/model.py",
    }
    assert checks.os.access(first / "python/triton_python_backend_stub", checks.os.X_OK)
    stamp = first.stat().st_mtime_ns
    assert assemble_backends(find_triton(), tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == stamp
    assert list((tmp_path / "cache").iterdir()) == [first]


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="set XDG_CACHE_HOME"):
        assemble_backends(find_triton(), tmp_path / "file")


def test_an_incomplete_wheel_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(Triton, "stub", property(lambda self: tmp_path / "stub"))
    with pytest.raises(LaunchError, match="missing from nvidia-pytriton"):
        find_triton()


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_doctor_lists_the_checks_and_tells_by_its_exit_code(repository, free_port):
    ports = ("--grpc-port", free_port(), "--metrics-port", free_port())
    good = run("doctor", "-r", repository, *ports)
    assert good.exit_code == 0, good.output
    assert "libpython" in good.output
    bad = run("doctor", "-r", repository / "nowhere", *ports)
    assert bad.exit_code == 1
    assert "missing" in bad.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("serve", "-r", "nowhere"), "model repository: nowhere: missing. name the model repository"),
        (("serve", "--address", "0.0.0.0"), "fit for loopback only"),
        (("serve", "-r", "nowhere", "--", "true"), "nowhere: missing"),
        (("serve", "model_repository"), "model_repository: no such program"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(arguments, says):
    result = run(*arguments)
    assert result.exit_code == 1
    assert says in result.stderr
    assert "Traceback" not in result.output
