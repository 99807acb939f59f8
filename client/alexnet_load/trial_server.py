"""Start a server for a trial: the launcher ``alexnet-server serve`` on free ports."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from alexnet_client.errors import BadInput, Unavailable

STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class TrialServer:
    """A running launcher: address, process ID, and seconds from its start until all models are ready."""

    target: str
    pid: int
    ready_s: float


@contextmanager
def serving(repository: Path, *options: str, log: Path) -> Iterator[TrialServer]:
    """Serve a repository while the block runs, with further options of ``alexnet-server serve``; Triton logs to ``log``.

    Raises:
        BadInput: the launcher is not installed.
        Unavailable: the server did not start; the text contains its error output.
    """
    if find_spec("alexnet_server") is None:
        raise BadInput("alexnet-server is not installed, but this command starts servers; run: pip install ./deploy")
    grpc_port, metrics_port = free_ports(2)
    command = [
        *(sys.executable, "-m", "alexnet_server", "serve", "--repository", str(repository), "--log", str(log)),
        *("--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port)),
        *("--health-port", "0", "--probe-interval", "0", *options),
    ]
    started_s = time.perf_counter()
    # In a process group of its own, so that Ctrl-C reaches only this program, which then stops the server.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            if "Serving" not in process.stdout.readline():
                raise Unavailable(f"the server did not start: {process.stderr.read().strip() or f'see {log}'}")
            yield TrialServer(f"127.0.0.1:{grpc_port}", process.pid, time.perf_counter() - started_s)
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()  # Triton exits when its launcher does


def free_ports(count: int) -> list[int]:
    """Return different free TCP ports of 127.0.0.1."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
