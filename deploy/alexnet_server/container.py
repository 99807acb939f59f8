"""Commands for containers, whose runtime starts, probes and stops the server: deliver models, run Triton, probe it.

``exec`` uses NVIDIA's installation in /opt/tritonserver if it exists, otherwise the wheel.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Never

import typer

from alexnet_client.certificates import dns_names
from alexnet_client.connection import Connection
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, Overloaded
from alexnet_client.files import reason
from alexnet_client.manifest import find_mismatch, versions
from alexnet_client.terminal import console
from alexnet_client.transport import Transport
from alexnet_server.cli import ConfigName, GrpcPort, MetricsPort, TlsDirectory, errors_logged, existing
from alexnet_server.command import ServerOptions, arguments
from alexnet_server.errors import LaunchError
from alexnet_server.liveness import compare_golden, probe_model
from alexnet_server.model_repository import is_published, models
from alexnet_server.preflight import check_files, require
from alexnet_server.triton_process import wheel_command

INSTALLED = Path("/opt/tritonserver")
FIXED_RELEASE = (26, 6)
"""NVIDIA's first release without vulnerabilities known in August 2026."""
DELIVERED, INCOMING = ".delivered", ".incoming"
"""In the destination of ``deliver``: marks a directory that ``deliver`` created; files that are not verified yet."""
DANGEROUS = frozenset({"AIP_MODE", "TRITONSERVER_DELAY_SCHEDULER", "TRITON_BATCH_STRATEGY_PATH"})
"""Environment variables that open another endpoint, delay the scheduler, or load code."""


def exec_(
    repository: Annotated[Path, typer.Option("--repository", "-r", help="model repository")] = Path("/models"),
    address: Annotated[str, typer.Option(help="IPv4 address to listen on")] = "127.0.0.1",
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    config_name: ConfigName = "",
    exit_timeout: Annotated[
        int, typer.Option(min=1, help="drain timeout: seconds that requests in flight may take during a shutdown")
    ] = 30,
    tls: TlsDirectory = None,
) -> None:
    """Verify the model repository and replace this process by tritonserver. For containers."""
    with errors_logged():
        options = ServerOptions(
            existing(repository),
            address=address,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            health_port=None,
            accept_vulnerabilities=is_fixed(os.environ.get("NVIDIA_TRITON_SERVER_VERSION", "")),
            config_name=config_name,
            tls=tls,
            exit_timeout_s=exit_timeout,
        )
        require(check_files(options))
        _exec_triton(options)


def deliver(
    source: Annotated[Path, typer.Argument(help="model repository")],
    destination: Annotated[Path, typer.Argument(help="empty directory")],
) -> None:
    """Copy a model repository and verify all files of all releases against their manifests. For init containers."""
    with errors_logged():
        for line in _deliver(existing(source), destination):
            console.print(line, soft_wrap=True)


def probe(
    target: Annotated[str, typer.Option("--target", "-t", help="host:port of the gRPC endpoint")] = "127.0.0.1:8001",
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="model to probe, alexnet by default; can be repeated")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds for all models together")] = 5.0,
    golden: Annotated[
        Path | None,
        typer.Option(help="model repository: also compare answers with the golden answers of its releases"),
    ] = None,
    tls: TlsDirectory = None,
) -> None:
    """Send a blank image to each model; exit with 1 if a model does not answer. For startup and liveness probes.

    Unlike Triton's health endpoint, this detects a backend process that ended. An overloaded server counts as alive.
    """
    names = model or ["alexnet"]

    async def run(published: Mapping[str, Path]) -> None:
        name = next(iter(dns_names(tls / "tls.crt")), "") if tls else ""
        transport = Transport(target, Connection.secured(tls, name))
        try:
            deadline = Deadline.after(timeout)
            for each in names:
                with suppress(Overloaded):
                    await probe_model(transport, each, deadline)
                    if each in published:
                        await compare_golden(transport, published[each], deadline)
        finally:
            await transport.close()

    with errors_logged():
        directories = {each: existing(golden) / each for each in names} if golden else {}
        published = {each: directory for each, directory in directories.items() if is_published(directory)}
        if golden and not published:
            raise BadInput(f"--golden {golden}: contains no release of {', '.join(names)}")
        asyncio.run(run(published))


def is_fixed(release: str) -> bool:
    """Whether a release of NVIDIA's container, such as "26.06", has no known vulnerabilities."""
    year, _, month = release.partition(".")
    return year.isdecimal() and month.isdecimal() and (int(year), int(month)) >= FIXED_RELEASE


def _exec_triton(options: ServerOptions) -> Never:
    """The administration key is random and not stored: no client can make administrative calls."""
    key, prefix = secrets.token_urlsafe(32), f"alexnet_{os.getpid()}_"
    binary = INSTALLED / "bin/tritonserver"
    if binary.exists():
        command = arguments(options, binary, INSTALLED / "backends", admin_key=key, shm_prefix=prefix)
        variables = {name: value for name, value in os.environ.items() if name not in DANGEROUS} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",  # the Python of the backends
            "PYTHONDONTWRITEBYTECODE": "1",
            "ORT_DISABLE_TELEMETRY": "1",
        }
    else:
        command, variables = wheel_command(options, admin_key=key, shm_prefix=prefix)
    sys.stdout.flush()
    os.execve(command[0], command, variables)  # noqa: S606  the purpose of this command


def _deliver(source: Path, destination: Path) -> list[str]:
    """Idempotent: the runtime repeats an init container that was interrupted, or after a node restarts."""
    marker, incoming = destination / DELIVERED, destination / INCOMING
    try:
        destination.mkdir(parents=True, exist_ok=True)
        previous = [path for path in destination.iterdir() if path not in (marker, incoming)]
        if previous and not marker.exists():
            raise BadInput(f"{destination}: not empty; choose an empty directory")
        marker.touch()
        for path in (incoming, *previous):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(source, incoming, ignore=shutil.ignore_patterns(".*"))
        lines = _verify(incoming)
        for path in incoming.iterdir():
            path.rename(destination / path.name)
        incoming.rmdir()
    except OSError as error:
        raise LaunchError(f"{error.filename or destination}: {reason(error)}") from None
    return lines


def _verify(repository: Path) -> list[str]:
    """Return one line for each version. All versions of a published model must have a manifest."""
    lines = []
    for model in models(repository):
        for version in versions(model) if is_published(model) else ():
            if mismatch := find_mismatch(version):
                raise LaunchError(f"{mismatch}; deliver a repository that passes `alexnet-server doctor`")
            lines.append(f"{model.name} version {version.name}: all files match the manifest")
    if not lines:
        raise LaunchError("the repository contains no published release; `make export` publishes one")
    return lines
