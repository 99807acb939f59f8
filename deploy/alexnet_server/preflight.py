"""Preflight checks: everything that Triton needs from this machine and the model repository, with a remedy for each failure."""

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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from google.protobuf.json_format import MessageToDict

from alexnet_client.cpus import CPUINFO, has_int8_instructions
from alexnet_client.files import reason
from alexnet_client.manifest import versions
from alexnet_server.command import SHARED_MEMORY_BYTES, ServerOptions
from alexnet_server.errors import LaunchError
from alexnet_server.model_repository import (
    find_served_mismatch,
    models,
    needs_int8_instructions,
    on_gpu,
    read_config,
    selected_config,
    served_versions,
)
from alexnet_server.onnxruntime.providers import CPU, ConfigError
from alexnet_server.onnxruntime.settings import read_settings
from alexnet_server.wheel import find_triton, python_version, shared_libpython

MINIMUM_GLIBC = (2, 35)
UNSAFE = r"[^\w./+@%,:=-]"
"""Characters that must not occur in the path of a model: Triton 2.51 passes it to a shell when it starts a Python backend."""
SHARED_MEMORY_MOUNT = Path("/dev/shm")  # noqa: S108  glibc creates shared memory there


@dataclass(frozen=True)
class Check:
    """The result of a check; ``remedy`` is empty if it passed."""

    name: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        return not self.remedy


def require(checks: Iterable[Check]) -> None:
    """Raise ``LaunchError`` with all failed checks and their remedies, if there are any."""
    failed = [f"{check.name}: {check.found}. Remedy: {check.remedy}" for check in checks if not check.ok]
    if failed:
        raise LaunchError("\n".join(failed))


def check_all(options: ServerOptions, *, restart: bool = False) -> Iterator[Check]:
    """Check machine, interpreter, wheel, shared memory, model repository, certificates and ports.

    Before a ``restart`` of Triton, the health port is not checked, because the launcher listens on it.
    """
    yield check_platform()
    yield check_glibc()
    yield check_libpython()
    yield check_wheel()
    yield check_onnxruntime(options.repository, options.config_name)
    yield check_shared_memory(SHARED_MEMORY_MOUNT, models=len(models(options.repository)))
    yield from check_files(options)
    for purpose, port in options.ports.items():
        if not (restart and purpose == "health"):
            yield check_port(options.address, port, purpose)


def check_files(options: ServerOptions) -> Iterator[Check]:
    """Check the model repository and the certificates."""
    repository = check_repository(options.repository)
    yield repository
    if repository.ok:
        yield check_releases(options.repository, options.config_name)
        if options.config_name:
            yield check_config_name(options.repository, options.config_name)
    if options.tls is not None:
        yield check_certificates(options.tls, options.expiries)


def check_platform() -> Check:
    found = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return Check("platform", found, "use Linux on x86-64; the wheel contains Triton only for this platform")
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
            f"install libpython{version}.so.1.0, which Triton's Python backend is linked against: apt-get install "
            f"libpython{version}, or build Python with --enable-shared",
        )
    return Check("shared libpython", str(library))


def check_wheel() -> Check:
    try:
        triton = find_triton()
    except LaunchError as error:
        return Check("Triton", "not found", str(error))
    return Check("Triton", f"nvidia-pytriton {triton.version}")


def check_onnxruntime(repository: Path, config_name: str = "") -> Check:
    """On the CPU, also check the selected engines, as the backend does when it loads a version."""
    name, engines = "ONNX Runtime", []
    try:
        import onnxruntime

        from alexnet_server.onnxruntime.session import check_engine, check_openvino
    except ImportError as error:
        return Check(name, f"cannot be imported ({error})", "`make setup` installs it")
    for model in models(repository):
        path = selected_config(model, config_name)
        config = read_config(path)
        if config.backend != "onnxruntime" or on_gpu(config):
            continue
        try:
            content = MessageToDict(config, preserving_proto_field_name=True)
            settings = read_settings(content, kind="CPU", device_id=0, available=[CPU], cpus=1)
            check_openvino(settings)
            for version in served_versions(model, path):
                check_engine(version, settings)
        except ConfigError as error:
            return Check(
                name, f"{path}: {error}", "change this file, or publish a release on this machine (make export)"
            )
        engines.append(f", {model.name}: {settings.engine}")
    return Check(name, onnxruntime.__version__ + "".join(engines))


def check_shared_memory(mount: Path, *, models: int) -> Check:
    """The Python backend creates a region for each instance; Docker gives a container 64 MB by default."""
    needed = max(1, models) * 2 * SHARED_MEMORY_BYTES
    try:
        free = os.statvfs(mount).f_bavail * os.statvfs(mount).f_frsize
    except OSError as error:
        return Check("shared memory", f"{mount}: {reason(error)}", f"mount a tmpfs at {mount}")
    found = f"{mount}: {free / 2**20:,.0f} MiB free"
    if free < needed:
        return Check(
            "shared memory",
            found,
            f"provide {needed / 2**20:,.0f} MiB: enlarge it (docker run --shm-size=1g, or mount -o remount,size=1g {mount}) "
            "or delete unused files in it",
        )
    return Check("shared memory", found)


def check_repository(repository: Path) -> Check:
    """Every model needs a configuration and a version."""
    name = "model repository"
    if not repository.is_dir():
        return Check(name, f"{repository}: no such directory", "choose another directory with --repository")
    if re.search(UNSAFE, str(repository.resolve())):
        return Check(
            name,
            f"{repository.resolve()}: spaces or other special characters in its path",
            "move it: Triton 2.51 passes the path of a model with a Python-based backend to a shell",
        )
    found = models(repository)
    if not found:
        return Check(name, f"{repository}: contains no model", "it must contain <model>/config.pbtxt")
    unpublished = [model.name for model in found if not versions(model)]
    if unpublished:
        return Check(
            name, f"{repository}: no published version of {', '.join(unpublished)}", "`make export` publishes a version"
        )
    return Check(name, ", ".join(f"{model.name} version {versions(model)[-1].name}" for model in found))


def check_releases(repository: Path, config_name: str = "", *, cpuinfo: Path = CPUINFO) -> Check:
    """Files must match their manifests, and int8 weights must not overflow on this CPU."""
    unsuitable = []
    for model in models(repository):
        config = selected_config(model, config_name)
        try:
            mismatch = find_served_mismatch(model, config)
        except OSError as error:
            return Check("releases", f"{error.filename}: {reason(error)}", "make the file readable for this user")
        if mismatch:
            return Check("releases", mismatch, "publish again (make export) or roll back (alexnet-export rollback)")
        if needs_int8_instructions(model, config):
            unsuitable.append(model.name)
    if unsuitable and not has_int8_instructions(cpuinfo):
        return Check(
            "releases",
            f"{', '.join(unsuitable)}: products of int8 weights overflow on this CPU, which has no VNNI or AMX",
            "export on a machine with the same kind of CPU (make export)",
        )
    return Check("releases", "all files match their manifests")


def check_config_name(repository: Path, name: str) -> Check:
    """Triton uses config.pbtxt without a message if the named configuration is missing."""
    found = [model.name for model in models(repository) if (model / "configs" / f"{name}.pbtxt").is_file()]
    if not found or "/" in name:
        return Check("configuration", f"no model has configs/{name}.pbtxt", "choose another one with --config-name")
    return Check("configuration", f"configs/{name}.pbtxt of {', '.join(found)}")


def check_certificates(directory: Path, expiries: Mapping[str, float]) -> Check:
    """Triton only reports that it cannot start its gRPC service, not which file is invalid."""
    name = "certificates"
    remedy = (
        "--tls needs a directory with ca.crt, tls.crt and tls.key (PEM); other users must not be able to read tls.key"
    )
    ca, certificate, key = (directory / each for each in ("ca.crt", "tls.crt", "tls.key"))
    for path in (ca, certificate, key):
        try:
            path.read_bytes()
        except OSError as error:
            return Check(name, f"{path}: {reason(error)}", remedy)
    if key.stat().st_mode & stat.S_IROTH:
        return Check(name, f"{key}: every user of this machine can read it", remedy)
    path = ca
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(ca)
        path = certificate
        context.load_cert_chain(certfile=certificate, keyfile=key)
    except ssl.SSLError as error:
        return Check(name, f"{path}: {error.reason or error}", remedy)
    first = min(expiries.values(), default=math.inf)
    if first < time.time():
        return Check(name, f"{directory}: expired on {_date(first)}", "renew the certificate")
    return Check(name, f"{directory}: " + ", ".join(f"{each} until {_date(at)}" for each, at in expiries.items()))


def _date(at_s: float) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d}"


def check_port(address: str, port: int, purpose: str) -> Check:
    name = f"port {port} ({purpose})"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            owner = port_owner(port)
            return Check(
                name,
                f"in use by {owner}" if owner else f"cannot be bound ({reason(error)})",
                "stop that program or choose another port (--grpc-port, --metrics-port, --http-port, --health-port)",
            )
    return Check(name, "free")


def port_owner(port: int) -> str:
    """The program that listens on a TCP port, such as "tritonserver (pid 42)"; empty if the kernel does not show it."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port:
            if connection.pid is None:
                return "a program of another user"
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.Error:
                return f"pid {connection.pid}"
    return ""
