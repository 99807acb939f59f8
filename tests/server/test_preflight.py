"""The preflight checks find what would make Triton fail, and print a remedy."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
from typer.testing import CliRunner

from alexnet_server import preflight
from alexnet_server.__main__ import app
from alexnet_server.command import ServerOptions
from alexnet_server.errors import LaunchError
from alexnet_server.wheel import Triton, assemble_backends, find_triton


@pytest.fixture
def repository(tmp_path) -> Path:
    for version in ("1", "10", "²"):
        (tmp_path / "models/alexnet" / version).mkdir(parents=True)
    (tmp_path / "models/alexnet/config.pbtxt").touch()
    return tmp_path / "models"


def test_this_machine_passes_all_checks(repository, free_port):
    options = ServerOptions(repository, grpc_port=free_port(), metrics_port=free_port(), health_port=free_port())
    found = list(preflight.check_all(options))
    assert not [check for check in found if not check.ok]
    without = list(preflight.check_all(options, restart=True))
    assert len(without) == len(found) - 1, "the launcher itself uses the health port"


@pytest.mark.parametrize(
    ("module", "name", "value", "check", "remedy"),
    [
        (platform, "system", lambda: "Darwin", preflight.check_platform, "use Linux on x86-64"),
        (platform, "machine", lambda: "aarch64", preflight.check_platform, "use Linux on x86-64"),
        (sys, "version_info", (3, 13, 0), preflight.check_platform, "use Python 3.11 or 3.12"),
        (platform, "libc_ver", lambda: ("glibc", "2.31"), preflight.check_glibc, "glibc 2.35 or later"),
        (platform, "libc_ver", lambda: ("musl", "1.2"), preflight.check_glibc, "glibc 2.35 or later"),
        (platform, "libc_ver", lambda: ("", ""), preflight.check_glibc, "glibc 2.35 or later"),
        (preflight, "shared_libpython", lambda: None, preflight.check_libpython, "apt-get install libpython"),
        (importlib.util, "find_spec", lambda name: None, preflight.check_wheel, "`make setup` installs it"),
    ],
)
def test_an_unsupported_or_incomplete_machine_has_a_remedy(monkeypatch, module, name, value, check, remedy):
    monkeypatch.setattr(module, name, value)
    assert remedy in check().remedy


def test_too_little_shared_memory_is_rejected_with_the_required_size(monkeypatch, tmp_path):
    assert "mount a tmpfs" in preflight.check_shared_memory(tmp_path / "nowhere", models=1).remedy
    monkeypatch.setattr(preflight.os, "statvfs", lambda path: SimpleNamespace(f_bavail=1000, f_frsize=4096))
    check = preflight.check_shared_memory(Path("/dev/shm"), models=2)
    assert check.found == "/dev/shm: 4 MiB free"
    assert check.remedy.startswith("provide 128 MiB")


def test_a_repository_needs_models_and_versions(repository):
    assert preflight.check_repository(repository).found == "alexnet version 10"
    assert "no such directory" in preflight.check_repository(repository / "nowhere").found
    assert "contains no model" in preflight.check_repository(repository / "alexnet").found
    (repository / "other").mkdir()
    (repository / "other/config.pbtxt").touch()
    check = preflight.check_repository(repository)
    assert "no published version of other" in check.found
    assert "make export" in check.remedy


def test_an_engine_that_is_missing_or_was_not_validated_is_reported_before_the_start(repository, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    config = repository / "alexnet/config.pbtxt"
    on_openvino = """backend: "onnxruntime" instance_group { kind: KIND_CPU }
optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }"""
    variant = {"name": "int8", "engine": "openvino f32", "gate": "passed"}
    (repository / "alexnet/10/manifest.json").write_text(json.dumps({"precision": "int8", "variants": [variant]}))
    for text, found in [
        (on_openvino, "config.pbtxt: OpenVINO's plug-in supports only Intel CPUs"),
        ('backend: "onnxruntime"', "version 10 (int8) was validated with 'openvino f32'"),
        (on_openvino.replace("CPU }", "GPU }"), onnxruntime.__version__),
    ]:
        config.write_text(text)
        check = preflight.check_onnxruntime(repository)
        assert found in check.found
        assert check.ok == (found == onnxruntime.__version__)
    config.write_text('backend: "onnxruntime" version_policy { specific { versions: [1] } }')
    assert preflight.check_onnxruntime(repository).found == f"{onnxruntime.__version__}, alexnet: onnxruntime"


def test_a_named_configuration_must_exist(repository):
    assert not preflight.check_config_name(repository, "gpu").ok
    (repository / "alexnet/configs").mkdir()
    (repository / "alexnet/configs/gpu.pbtxt").touch()
    assert preflight.check_config_name(repository, "gpu").ok
    assert not preflight.check_config_name(repository, "../configs/gpu").ok


def test_a_port_in_use_is_reported_with_its_program():
    with socket.create_server(("127.0.0.1", 0)) as server:
        check = preflight.check_port("127.0.0.1", server.getsockname()[1], "gRPC")
    assert "in use by py" in check.found
    assert f"(pid {os.getpid()})" in check.found
    assert "--grpc-port" in check.remedy


def test_the_backend_directory_is_complete_and_created_once(tmp_path):
    first = assemble_backends(find_triton(), tmp_path / "cache")
    assert {str(path.relative_to(first)) for path in first.rglob("*") if path.is_file()} == {
        "python/libtriton_python.so",
        "python/triton_python_backend_utils.py",
        "python/triton_python_backend_stub",
        "onnxruntime/model.py",
        "image_decoder/model.py",
    }
    assert os.access(first / "python/triton_python_backend_stub", os.X_OK)
    (first / "unchanged").touch()
    assert assemble_backends(find_triton(), tmp_path / "cache") == first
    assert (first / "unchanged").exists()
    assert list((tmp_path / "cache").iterdir()) == [first]


def test_an_incomplete_wheel_and_a_cache_that_cannot_be_written_are_reported(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="set XDG_CACHE_HOME"):
        assemble_backends(find_triton(), tmp_path / "file")
    monkeypatch.setattr(Triton, "stub", property(lambda self: tmp_path / "stub"))
    with pytest.raises(LaunchError, match="missing from nvidia-pytriton"):
        find_triton()


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_doctor_prints_all_checks_and_fails_if_one_fails(repository, free_port):
    ports = ("--grpc-port", free_port(), "--metrics-port", free_port(), "--health-port", 0)
    passed = run("doctor", "-r", repository, *ports)
    assert passed.exit_code == 0, passed.output
    assert "libpython" in passed.output
    failed = run("doctor", "-r", repository / "nowhere", *ports)
    assert failed.exit_code == 1
    assert "no such directory" in failed.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("serve", "-r", "nowhere"), 2, "nowhere: no such model repository"),
        (("serve", "-r", "tests"), 1, "model repository: tests: contains no model. Remedy: it must contain"),
        (("serve", "--address", "0.0.0.0"), 2, "loopback only"),
        (("serve", "model_repository"), 2, "model_repository: command not found; Triton was not started"),
        (("serve", "--grpc-port", "0"), 2, "--grpc-port"),
        (("deliver", "nowhere", "anywhere"), 2, "nowhere: no such model repository"),
        (("probe", "--target", "127.0.0.1:9"), 1, "127.0.0.1:9"),
    ],
)
def test_errors_have_the_documented_exit_code_and_no_traceback(arguments, code, message):
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["serve", "doctor", "exec", "deliver", "probe", "monitor"])
def test_every_help_page_documents_the_exit_codes(command):
    assert "Exit codes: 0 success" in run(command, "--help").output
