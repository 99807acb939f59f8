"""The wheel as it ships: light and typed."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "client"
ROOT = CLIENT.parent
HEAVY = {"torch", "onnx", "onnxruntime", "tensorrt", "pytriton", "matplotlib", "sklearn", "opentelemetry"}
PROGRAM = """
import json, sys
import alexnet_client
import alexnet_client.__main__, alexnet_client.metrics
print(json.dumps({"file": alexnet_client.__file__, "modules": list(sys.modules)}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    into = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", into, CLIENT]
    subprocess.run(build, check=True, capture_output=True)
    return next(into.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_is_marked_as_typed(wheel):
    assert "alexnet_client/py.typed" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment_installs_and_imports_no_heavy_package(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "empty"], check=True)
    python = tmp_path / "empty/bin/python"
    install = [python, "-m", "pip", "install", "-q", "--constraint", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True, capture_output=True)
    run = json.loads(subprocess.run([python, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout)
    assert str(tmp_path) in run["file"]
    assert not HEAVY & {name.partition(".")[0] for name in run["modules"]}
    installed = subprocess.run([python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    assert not HEAVY & {line.partition("==")[0] for line in installed.splitlines()}


def test_importing_the_package_imports_no_optional_package_and_no_fake_server():
    names = json.loads(subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True).stdout)[
        "modules"
    ]
    assert not HEAVY & {name.partition(".")[0] for name in names}
    assert "alexnet_client.fake" not in names


def test_client_and_server_never_import_the_export_package():
    sources = [*CLIENT.rglob("*.py"), *(CLIENT.parent / "deploy").rglob("*.py")]
    assert len(sources) > 10
    assert not [path for path in sources if "alexnet_export" in path.read_text()]
