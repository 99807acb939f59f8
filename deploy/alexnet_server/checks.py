"""Everything that would make Triton fail later, looked at before it is started, each with its remedy."""

from __future__ import annotations

import math
import os
import platform
import re
import socket
import ssl
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from alexnet_server.command import SHARED_MEMORY_BYTES, ServerOptions
from alexnet_server.errors import LaunchError
from alexnet_server.manifest import has_integer_flags, needs_integer_flags, versions, wrong_files
from alexnet_server.wheel import find_triton, python_version, shared_libpython

MINIMUM_GLIBC = (2, 35)
UNFIT = r"[^\w./+@%,:=-]"
"""Not in the path of a model of a Python-based backend: Triton 2.51 hands that through a shell."""
SHARED_MEMORY_MOUNT = Path("/dev/shm")  # noqa: S108  where glibc keeps shared memory


@dataclass(frozen=True)
class Check:
    """One thing looked at; ``remedy`` is empty when all is well."""

    name: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        return not self.remedy


def check_all(options: ServerOptions, *, again: bool = False) -> Iterator[Check]:
    """Look at machine, interpreter, wheel, shared memory, model repository and ports.

    Args:
        options: how to serve.
        again: before a restart; the launcher itself listens on the health port then.
    """
    yield check_platform()
    yield check_glibc()
    yield check_libpython()
    yield check_wheel()
    yield check_onnxruntime()
    yield check_shared_memory(SHARED_MEMORY_MOUNT, models=len(models(options.repository)))
    yield check_repository(options.repository)
    yield check_manifests(options.repository, options.config_name)
    if options.config_name:
        yield check_config_name(options.repository, options.config_name)
    if options.tls is not None:
        yield check_certificates(options.tls, options.expiries)
    for purpose, port in options.ports.items():
        if not (again and purpose == "health"):
            yield check_port(options.address, port, purpose)


def check_platform() -> Check:
    found = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return Check("platform", found, "the wheel carries Triton for Linux on x86-64 only; use such a machine")
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        return Check("platform", found, "use Python 3.11 or 3.12")
    return Check("platform", found)


def check_glibc() -> Check:
    name, version = platform.libc_ver()
    found = f"{name} {version}"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name != "glibc" or numbers < MINIMUM_GLIBC:
        return Check("C library", found, "Triton 2.51 needs glibc 2.35 or later: Debian 12, Ubuntu 22.04 or newer")
    return Check("C library", found)


def check_libpython() -> Check:
    library = shared_libpython()
    if library is None:
        version = python_version()
        return Check(
            "shared libpython",
            "missing",
            f"Triton's Python backend is linked against libpython{version}.so.1.0: apt-get install libpython{version}, "
            "or build Python with --enable-shared",
        )
    return Check("shared libpython", str(library))


def check_wheel() -> Check:
    try:
        triton = find_triton()
    except LaunchError as error:
        return Check("Triton", "not found", str(error))
    return Check("Triton", f"nvidia-pytriton {triton.version}")


def check_onnxruntime() -> Check:
    try:
        import onnxruntime
    except ImportError as error:
        return Check("ONNX Runtime", "cannot be imported", f"{error}; `make setup` installs it")
    return Check("ONNX Runtime", f"{onnxruntime.__version__}")


def check_shared_memory(mount: Path, *, models: int) -> Check:
    """The Python backend keeps a region for each instance; docker gives a container 64 MB by default."""
    needed = max(1, models) * 2 * SHARED_MEMORY_BYTES
    try:
        free = os.statvfs(mount).f_bavail * os.statvfs(mount).f_frsize
    except OSError as error:
        return Check("shared memory", f"{mount}: {error.strerror}", f"mount a tmpfs at {mount}")
    found = f"{mount}: {free / 2**20:,.0f} MiB free"
    if free < needed:
        return Check(
            "shared memory",
            found,
            f"{needed / 2**20:,.0f} MiB are needed: enlarge it (docker run --shm-size=1g, or mount -o remount,size=1g "
            f"{mount}) or delete what other programs left there",
        )
    return Check("shared memory", found)


def check_repository(repository: Path) -> Check:
    """Every model needs a configuration and a version; a model repository without models is of no use."""
    if not repository.is_dir():
        return Check("model repository", f"{repository}: missing", "name the model repository with --repository")
    if re.search(UNFIT, str(repository.resolve())):
        return Check(
            "model repository",
            f"{repository.resolve()}: spaces or other special characters in its path",
            "Triton 2.51 hands the path of a Python-based backend's model through a shell; use a plain one",
        )
    found = models(repository)
    if not found:
        return Check("model repository", f"{repository}: no model in it", "it should hold <model>/config.pbtxt")
    unpublished = [model.name for model in found if not versions(model)]
    if unpublished:
        return Check(
            "model repository",
            f"{repository}: no published version of {', '.join(unpublished)}",
            "`make export` publishes one",
        )
    return Check("model repository", ", ".join(f"{model.name} version {versions(model)[-1].name}" for model in found))


def check_manifests(repository: Path, config_name: str = "") -> Check:
    """A release whose files are not those that passed the gates is not served."""
    unfit = []
    for model in models(repository):
        named = model / "configs" / f"{config_name}.pbtxt"
        config = named if config_name and named.is_file() else model / "config.pbtxt"
        wrong = wrong_files(model, config)
        if wrong:
            return Check("releases", wrong, "publish again (make export), or go back: alexnet-export rollback")
        if needs_integer_flags(model, config):
            unfit.append(model.name)
    if unfit and not has_integer_flags():
        return Check(
            "releases",
            f"{', '.join(unfit)}: int8 weights of full range, which this CPU's instructions overflow",
            "export on a machine like this one: make export",
        )
    return Check("releases", "their files are those of their manifests")


def check_config_name(repository: Path, name: str) -> Check:
    """Triton takes config.pbtxt in silence where a named configuration is missing."""
    having = [model.name for model in models(repository) if (model / "configs" / f"{name}.pbtxt").is_file()]
    if not having or "/" in name:
        return Check("configuration", f"no model has configs/{name}.pbtxt", "name one that exists with --config-name")
    return Check("configuration", f"configs/{name}.pbtxt of {', '.join(having)}")


def check_certificates(directory: Path, expiries: Mapping[str, float]) -> Check:
    """Triton would say of a wrong file that it cannot start its gRPC service, and no more."""
    name, remedy = (
        "certificates",
        "--tls names a directory with ca.crt, tls.crt and tls.key (PEM), whose key only its owner reads",
    )
    paths = [directory / each for each in ("ca.crt", "tls.crt", "tls.key")]
    for path in paths:
        try:
            path.read_bytes()
        except OSError as error:
            return Check(name, f"{path}: {(error.strerror or str(error)).lower()}", remedy)
    if paths[-1].stat().st_mode & stat.S_IROTH:
        return Check(name, f"{paths[-1]}: every user of this machine can read it", remedy)
    try:
        context, reading = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), paths[0]
        context.load_verify_locations(reading)
        reading = paths[1]
        context.load_cert_chain(certfile=reading, keyfile=paths[2])
    except ssl.SSLError as error:
        return Check(name, f"{reading}: {error.reason or error}", remedy)
    first = min(expiries.values(), default=math.inf)
    if first < time.time():
        return Check(
            name, f"{directory}: expired {datetime.fromtimestamp(first, UTC):%Y-%m-%d}", "renew it, and start again"
        )
    return Check(
        name,
        f"{directory}: "
        + ", ".join(f"{each} until {datetime.fromtimestamp(at, UTC):%Y-%m-%d}" for each, at in expiries.items()),
    )


def check_port(address: str, port: int, purpose: str) -> Check:
    name = f"port {port} ({purpose})"
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            owner = port_owner(port)
            return Check(
                name,
                f"taken by {owner}" if owner else f"cannot be bound ({error.strerror})",
                "stop that program or choose another port (--grpc-port, --metrics-port, --http-port, --health-port)",
            )
    return Check(name, "free")


def port_owner(port: int) -> str:
    """Who listens on a TCP port, such as "tritonserver (pid 42)"; empty if the system does not let us see it."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port:
            if connection.pid is None:
                return "a program of another user"
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.Error:
                return f"pid {connection.pid}"
    return ""


def models(repository: Path) -> list[Path]:
    """The directories of a repository's models."""
    return sorted(path.parent for path in repository.glob("*/config.pbtxt"))
