"""Commands for a container, whose runtime starts, watches and ends it: deliver the models, become Triton, prove life.

In NVIDIA's image Triton lies in /opt/tritonserver; where there is none, the wheel's is taken.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Never

import typer

from alexnet_client.certificates import dns_names
from alexnet_client.connection import Connection
from alexnet_client.deadline import Deadline
from alexnet_client.errors import ClientError, Overloaded
from alexnet_client.transport import Transport
from alexnet_server.checks import (
    Check,
    check_certificates,
    check_config_name,
    check_manifests,
    check_repository,
    models,
)
from alexnet_server.command import ServerOptions, arguments, environment
from alexnet_server.errors import LaunchError
from alexnet_server.manifest import published, versions, wrong_version
from alexnet_server.ready import probe as ask
from alexnet_server.terminal import ConfigName, GrpcPort, MetricsPort, TlsDirectory, console, fail
from alexnet_server.wheel import assemble_backends, cache_directory, find_triton, shared_libpython

INSTALLED = Path("/opt/tritonserver")
FIXED_RELEASE = (26, 6)
"""NVIDIA's first release without vulnerabilities known in August 2026."""
DELIVERED, INCOMING = ".delivered", ".incoming"
"""In a destination: what is here came from here; what is not verified yet."""
DANGEROUS = frozenset({"AIP_MODE", "TRITONSERVER_DELAY_SCHEDULER", "TRITON_BATCH_STRATEGY_PATH"})
"""Variables that open another endpoint, hold the batcher up, or load code."""


def exec_(
    repository: Annotated[Path, typer.Option("--repository", "-r", help="the model repository")] = Path("/models"),
    address: Annotated[str, typer.Option(help="to listen on")] = "127.0.0.1",
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    config_name: ConfigName = "",
    exit_timeout: Annotated[int, typer.Option(min=1, help="seconds requests may take once it is told to end")] = 30,
    tls: TlsDirectory = None,
) -> None:
    """Verify the model repository, and become Triton: the process of a container."""
    try:
        options = ServerOptions(
            repository,
            address=address,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            health_port=None,
            accept_vulnerabilities=fixed(os.environ.get("NVIDIA_TRITON_SERVER_VERSION", "")),
            config_name=config_name,
            tls=tls,
            exit_timeout_s=exit_timeout,
        )
        failed = [each for each in _checks(options) if not each.ok]
        if failed:
            raise LaunchError("\n".join(f"{each.name}: {each.found}. {each.remedy}" for each in failed))
        _become_triton(options)
    except LaunchError as error:
        fail(error)


def deliver(
    source: Annotated[Path, typer.Argument(help="a model repository")],
    destination: Annotated[Path, typer.Argument(help="an empty directory")],
) -> None:
    """Copy a model repository, and verify every file of every release against its manifest; exits 1 if one is not it."""
    try:
        for found in _delivered(source, destination):
            console.print(found, soft_wrap=True)
    except LaunchError as error:
        fail(error)


def probe(
    target: Annotated[str, typer.Option("--target", "-t", help="host:port of the gRPC endpoint")] = "127.0.0.1:8001",
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="a model to ask; several times for several")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds for all of it")] = 5.0,
    tls: TlsDirectory = None,
) -> None:
    """Have each model answer a blank image; exits 1 if one does not. A dead backend behind an open port is found out.

    A server that refuses because it has too much to do is alive.
    """

    async def run() -> None:
        name = next(iter(dns_names(tls / "tls.crt")), "") if tls else ""
        transport = Transport(target, Connection.secured(tls, name))
        try:
            deadline = Deadline.after(timeout)
            for each in model or ["alexnet"]:
                with suppress(Overloaded):
                    await ask(transport, each, deadline)
        finally:
            await transport.close()

    try:
        asyncio.run(run())
    except ClientError as error:
        fail(error)


def fixed(release: str) -> bool:
    """Whether a release of NVIDIA's, such as "26.06", may be reached from a network."""
    year, _, month = release.partition(".")
    return year.isdecimal() and month.isdecimal() and (int(year), int(month)) >= FIXED_RELEASE


def _checks(options: ServerOptions) -> list[Check]:
    found = [check_repository(options.repository)]
    if found[0].ok:
        found.append(check_manifests(options.repository, options.config_name))
        if options.config_name:
            found.append(check_config_name(options.repository, options.config_name))
    if options.tls is not None:
        found.append(check_certificates(options.tls, options.expiries))
    return found


def _become_triton(options: ServerOptions) -> Never:
    """Nobody gets the administration key: who runs a container has other ways."""
    key, prefix = secrets.token_urlsafe(32), f"alexnet_{os.getpid()}_"
    if (INSTALLED / "bin/tritonserver").exists():
        binary, backends = INSTALLED / "bin/tritonserver", INSTALLED / "backends"
        variables = {name: value for name, value in os.environ.items() if name not in DANGEROUS} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",  # the Python of the backends
            "PYTHONDONTWRITEBYTECODE": "1",
            "ORT_DISABLE_TELEMETRY": "1",
        }
    else:
        triton, libpython = find_triton(), shared_libpython()
        if libpython is None:
            raise LaunchError(
                "this Python has no shared library, which Triton's backends need; see alexnet-server doctor"
            )
        binary, backends = triton.binary, assemble_backends(triton, cache_directory())
        variables = environment(triton, libpython=libpython, interpreter=Path(sys.executable), inherited=os.environ)
    command = arguments(options, binary, backends, admin_key=key, shm_prefix=prefix)
    sys.stdout.flush()
    os.execve(binary, command, variables)  # noqa: S606  that is what it is for


def _delivered(source: Path, destination: Path) -> list[str]:
    """May be done again: a container's runtime does so when a node comes back, or when it was killed half-way."""
    if not source.is_dir():
        raise LaunchError(f"{source}: no such model repository")
    marker, incoming = destination / DELIVERED, destination / INCOMING
    try:
        destination.mkdir(parents=True, exist_ok=True)
        there = [path for path in destination.iterdir() if path not in (marker, incoming)]
        if there and not marker.exists():
            raise LaunchError(f"{destination}: is not empty; deliver into an empty directory")
        marker.touch()
        for path in (incoming, *there):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(source, incoming, ignore=shutil.ignore_patterns(".*"))
        found = _verified(incoming)
        for path in incoming.iterdir():
            path.rename(destination / path.name)
        incoming.rmdir()
    except OSError as error:
        raise LaunchError(f"{error.filename or destination}: {(error.strerror or str(error)).lower()}") from None
    return found


def _verified(repository: Path) -> list[str]:
    """A line for each version; a model that this project published has no versions but published ones."""
    found = []
    for model in models(repository):
        for version in versions(model) if published(model) else ():
            if wrong := wrong_version(version):
                raise LaunchError(f"{wrong}; deliver a repository that `alexnet-server doctor` finds right")
            found.append(f"{model.name} version {version.name}: every file is what was published")
    if not found:
        raise LaunchError("no published release in it; `make export` publishes one")
    return found
