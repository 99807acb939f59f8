"""The distribution as it ships: light, typed, whole."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

CLIENT = Path(__file__).parents[2] / "client"


def test_the_wheel_imports_without_the_heavy_packages(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, CLIENT]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "alexnet_client/py.typed" in names
    program = (
        "import sys; import alexnet_client.__main__ as m; assert '.whl' in m.__file__, m.__file__;"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tensorrt', 'pytriton', 'matplotlib', 'sklearn'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": str(wheel)})


def test_client_and_server_never_import_the_export_package():
    sources = [*CLIENT.rglob("*.py"), *(CLIENT.parent / "deploy").rglob("*.py")]
    assert len(sources) > 10
    assert not [path for path in sources if "alexnet_export" in path.read_text()]
