"""The Triton inside the nvidia-pytriton wheel, and the backend directory assembled from it and from our backend."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from alexnet_server.errors import LaunchError

BACKENDS = {"onnxruntime": "alexnet_server.onnxruntime.model", "image_decoder": "alexnet_server.decoder.model"}
"""Our Python-based backends, and the module that each is."""
_ENTRY = "from {module} import TritonPythonModel  # noqa: F401  Triton looks for it here\n"


@dataclass(frozen=True)
class Triton:
    """Where the parts of the wheel lie."""

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
        """The Python stub for the running interpreter's version."""
        return self.root / "python_backend_stubs" / python_version() / "triton_python_backend_stub"


def python_version() -> str:
    """Such as "3.11"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def find_triton() -> Triton:
    """Find the wheel without importing it.

    Raises:
        LaunchError: it is not installed, or lacks a part.
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
    """The interpreter's shared library, which the stub is linked against; None if this Python has none."""
    name = f"libpython{python_version()}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64"]
    return next((Path(folder, name) for folder in folders if folder and Path(folder, name).exists()), None)


def cache_directory() -> Path:
    """Where derived files are kept, by the XDG convention."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet-serving"


def assemble_backends(triton: Triton, cache: Path) -> Path:
    """Return a backend directory: ``python/`` copied from the wheel, and those of ours, which lead to this package.

    Made once for each wheel, Python version and set of backends, under a name of its own, and renamed into place whole. Copies, not
    links: Triton refuses a backend whose resolved path lies outside its directory.

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
                if not finished.is_dir():  # else another launcher was faster: its directory is the same
                    raise
    except OSError as error:
        raise LaunchError(
            f"{cache}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to another place"
        ) from None
    return finished
