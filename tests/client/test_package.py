"""The wheel as it ships: light and typed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "client"
HEAVY = {"torch", "onnx", "onnxruntime", "tensorrt", "pytriton", "matplotlib", "sklearn", "opentelemetry"}
PROGRAM = "import sys, alexnet_client.__main__, alexnet_client.metrics; print(*sys.modules)"


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_the_typed_wheel_in_an_empty_environment_installs_no_heavy_package_and_can_be_imported(tmp_path):
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, CLIENT)
    wheel = next(tmp_path.glob("*.whl"))
    assert "alexnet_client/py.typed" in zipfile.ZipFile(wheel).namelist()
    run(sys.executable, "-m", "venv", tmp_path / "empty")
    python = tmp_path / "empty/bin/python"
    run(python, "-m", "pip", "install", "-q", "--constraint", CLIENT.parent / "constraints.txt", wheel)
    run(python, "-I", "-c", PROGRAM)
    assert not HEAVY & {line.partition("==")[0] for line in run(python, "-m", "pip", "freeze").splitlines()}


def test_importing_the_package_imports_no_optional_package_and_no_fake_server():
    names = run(sys.executable, "-c", PROGRAM).split()
    assert not HEAVY & {name.partition(".")[0] for name in names}
    assert "alexnet_client.fake" not in names


def test_client_and_server_never_import_the_export_package():
    sources = [*CLIENT.rglob("*.py"), *(CLIENT.parent / "deploy").rglob("*.py")]
    assert len(sources) > 10
    assert not [path for path in sources if "alexnet_export" in path.read_text()]
