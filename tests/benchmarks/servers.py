"""Servers for the benchmarks: the real launcher with a temporary model repository, and the fake server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from alexnet_load.trial_server import serving

KEEP_FREED_MEMORY = "glibc.malloc.mmap_threshold=67108864:glibc.malloc.trim_threshold=268435456"
"""Without it, the fake server allocates new pages for each 4.8 MB message: 3,000-4,400 instead of 7,000-8,400 images/s."""


@dataclass(frozen=True)
class RunningServer:
    """A ready server; ``ready_s`` is the time from its start until all models answered, seconds."""

    target: str
    process: psutil.Process
    ready_s: float

    @property
    def metrics_port(self) -> int:
        """Port of Triton's metrics."""
        command = self.process.cmdline()
        return int(command[command.index("--metrics-port") + 1])

    def triton(self) -> psutil.Process:
        """The tritonserver process."""
        return next(each for each in self.process.children() if each.name() == "tritonserver")

    def memory(self) -> int:
        """Memory of Triton and its backend processes without the launcher, bytes (PSS: shared pages count once)."""
        return sum(each.memory_full_info().pss for each in self.process.children(recursive=True))


@contextmanager
def running(repository: Path, *options: str) -> Iterator[RunningServer]:
    """Serve a repository while the block runs."""
    with TemporaryDirectory(prefix="alexnet-bench-") as scratch:
        log = Path(scratch, "triton.log")
        with serving(repository, *options, log=log) as server:
            yield RunningServer(server.target, psutil.Process(server.pid), server.ready_s)


@contextmanager
def fake_server() -> Iterator[str]:
    """Run a fake server in its own process and yield its target."""
    command = [sys.executable, "-m", "alexnet_client.fake", "--port", "0"]
    environment = {**os.environ, "GLIBC_TUNABLES": KEEP_FREED_MEMORY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["target"]
        finally:
            process.terminate()
