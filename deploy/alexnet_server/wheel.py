"""Triton in the nvidia-pytriton wheel, and the backend directory: backends of the wheel and of this package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from alexnet_client.files import reason
from alexnet_server.errors import LaunchError

BACKENDS = {"onnxruntime": "alexnet_server.onnxruntime.model", "image_decoder": "alexnet_server.decoder.model"}
"""Python-based backends of this package, and their modules."""
_ENTRY = "from {module} import TritonPythonModel  # noqa: F401  Triton loads the class from this file\n"


@dataclass(frozen=True)
class Triton:
    """Locations of the parts of the wheel."""

    root: Path  # <site-packages>/pytriton/tritonserver
    version: str  # of the wheel

    @property
    def binary(self) -> Path:
        return self.root / "bin" / "tritonserver"

    @property
    def libraries(self) -> Path:
        return self.root.parent.parent / "nvidia_pytriton.libs"

    @property
    def stub(self) -> Path:
        """The Python stub for the version of the running interpreter."""
        return self.root / "python_backend_stubs" / python_version() / "triton_python_backend_stub"


def python_version() -> str:
    """Major and minor version of the running interpreter, such as "3.11"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def find_triton() -> Triton:
    """Find the wheel without importing it.

    Raises:
        LaunchError: the wheel is not installed, or incomplete.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise LaunchError("the package nvidia-pytriton is not installed; `make setup` installs it")
    triton = Triton(Path(spec.origin).parent / "tritonserver", importlib.metadata.version("nvidia-pytriton"))
    for part in (triton.binary, triton.libraries, triton.stub):
        if not part.exists():
            raise LaunchError(f"{part}: missing from nvidia-pytriton {triton.version}; install the package again")
    return triton


def shared_libpython() -> Path | None:
    """The shared library of the running interpreter, which the stub is linked against; None if there is none."""
    name = f"libpython{python_version()}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64"]
    return next((Path(folder, name) for folder in folders if folder and Path(folder, name).exists()), None)


def assemble_backends(triton: Triton, cache: Path) -> Path:
    """Return the backend directory: a copy of the wheel's Python backend, and the backends of this package.

    The directory is created once for each wheel, Python version and set of backends, and renamed into place when it is
    complete. Files are copied, not linked, because Triton rejects a backend whose resolved path is outside the directory.

    Raises:
        LaunchError: the cache cannot be written.
    """
    finished = cache / "-".join(["backends", triton.version, f"python{python_version()}", *sorted(BACKENDS)])
    if finished.is_dir():
        return finished
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".backends-", dir=cache) as scratch:
            staged = Path(scratch) / "backends"
            shutil.copytree(
                triton.root / "backends" / "python", staged / "python", ignore=shutil.ignore_patterns("__pycache__")
            )
            shutil.copy(triton.stub, staged / "python" / "triton_python_backend_stub")
            for name, module in BACKENDS.items():
                (staged / name).mkdir()
                (staged / name / "model.py").write_text(_ENTRY.format(module=module))
            try:
                staged.rename(finished)
            except OSError:
                if not finished.is_dir():  # another launcher may have created the same directory at the same time
                    raise
    except OSError as error:
        raise LaunchError(
            f"{cache}: cannot be written ({reason(error)}); set XDG_CACHE_HOME to another directory"
        ) from None
    return finished
