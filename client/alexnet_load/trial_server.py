"""Servers to try settings on: a model of a repository under another configuration, served by the launcher on ports of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from alexnet_client.errors import BadInput, Unavailable

Config: TypeAlias = model_config_pb2.ModelConfig
Change = Callable[[Config], None]
END_S = 60.0


@dataclass(frozen=True)
class TrialServer:
    """A serving launcher: where, its process, its log, and seconds from its start to the first answers of all models."""

    target: str
    pid: int
    log: Path
    ready_s: float


def read_config(repository: Path, model: str) -> Config:
    """A model's ``config.pbtxt``.

    Raises:
        BadInput: there is none, or it is damaged.
    """
    path = repository / model / "config.pbtxt"
    try:
        return text_format.Parse(path.read_text(), Config())
    except OSError as error:
        raise BadInput(f"{path}: {(error.strerror or str(error)).lower()}; name a Triton model repository") from None
    except text_format.ParseError as error:
        raise BadInput(f"{path}: {error}") from None


def changed(repository: Path, into: Path, change: Change, *, model: str = "alexnet", alone: bool = False) -> Path:
    """A copy of a repository, or of one model of it ``alone``, with another configuration of that model.

    Its weights are linked where the file system allows it.

    Raises:
        BadInput: there is no such model.
    """
    config = read_config(repository, model)
    change(config)
    part = model if alone else ""
    shutil.copytree(repository / part, into / part, copy_function=_link, ignore=shutil.ignore_patterns(".*"))
    path = into / model / "config.pbtxt"
    path.unlink()  # it is a link
    path.write_text(text_format.MessageToString(config))
    return into


@contextmanager
def serving(repository: Path, *options: str, log: Path) -> Iterator[TrialServer]:
    """Serve a repository while the block runs.

    Args:
        repository: what to serve.
        options: further ones of ``alexnet-server serve``.
        log: file for Triton's lines.

    Raises:
        BadInput: the launcher is not installed here.
        Unavailable: the server did not start; its words are in the text.
    """
    if find_spec("alexnet_server") is None:
        raise BadInput("trying settings starts servers, and alexnet-server is not installed here: pip install ./deploy")
    grpc_port, metrics_port = free_ports(2)
    command = [
        *(sys.executable, "-m", "alexnet_server", "serve", "--repository", str(repository), "--log", str(log)),
        *("--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port)),
        *("--health-port", "0", "--probe-interval", "0", *options),
    ]
    began_s = time.perf_counter()
    # A group of its own: Ctrl-C is for this program, which then ends the server.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            if "Serving" not in process.stdout.readline():
                raise Unavailable(f"the server did not start: {process.stderr.read().strip() or f'see {log}'}")
            yield TrialServer(f"127.0.0.1:{grpc_port}", process.pid, log, time.perf_counter() - began_s)
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()  # Triton dies with its launcher


def _link(source: str, target: str) -> None:
    """A link where the file system allows one; else a copy."""
    try:
        os.link(os.path.realpath(source), target)  # a link to a relative link would lead nowhere
    except OSError:
        shutil.copy2(source, target)


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that nobody listens on, each another."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
