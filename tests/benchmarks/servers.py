"""Servers to measure: a repository with one setting changed, served by the real launcher on ports of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import psutil
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from alexnet_export.publish import publish

Item = TypeVar("Item")
Change = Callable[[model_config_pb2.ModelConfig], None]


@dataclass(frozen=True)
class Running:
    """A serving launcher; ``ready_s``: seconds from its start to the first answers of all models."""

    target: str
    process: psutil.Process
    ready_s: float

    def memory(self) -> int:
        """Bytes of Triton and its backend processes, without the launcher; what they share counts once (PSS)."""
        return sum(each.memory_full_info().pss for each in self.process.children(recursive=True))


def changed(repository: Path, into: Path, change: Change, *, model: str = "alexnet") -> Path:
    """A copy of a repository with another configuration of one model; the weights are linked."""
    shutil.copytree(repository, into, copy_function=os.link, ignore=shutil.ignore_patterns(".*"))
    path = into / model / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    change(config)
    path.unlink()  # it is a link
    path.write_text(text_format.MessageToString(config))
    return into


@contextmanager
def running(repository: Path, *options: str) -> Iterator[Running]:
    """Serve a repository while the block runs."""
    ports = [_free_port() for _ in range(2)]
    command = [
        *(sys.executable, "-m", "alexnet_server", "serve", "--repository", str(repository), "--health-port", "0"),
        *(
            "--grpc-port",
            str(ports[0]),
            "--metrics-port",
            str(ports[1]),
            "--log",
            str(Path(tempfile.gettempdir(), f"alexnet-bench-{ports[0]}.log")),
        ),
        *("--probe-interval", "0", *options),
    ]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            if "Serving" not in process.stdout.readline():
                raise RuntimeError(process.stderr.read())
            yield Running(f"127.0.0.1:{ports[0]}", psutil.Process(process.pid), time.perf_counter() - began)
        finally:
            process.terminate()
            process.wait(60)


def published(directory: Path, precision: str, model: bytes, labels: Sequence[str]) -> Path:
    """A repository below a directory, with one release of a file's content."""
    directory.mkdir(exist_ok=True)
    (directory / "model.onnx").write_bytes(model)
    facts = {"precision": precision, "max_batch_size": 64}
    publish(directory / "repository", {"model.onnx": directory / "model.onnx"}, labels, facts)
    return directory / "repository"


_LOOP = asyncio.new_event_loop()


def as_found(items: AsyncIterator[Item]) -> Iterator[Item]:
    """What an asynchronous iterator yields, when it does."""
    end = object()
    while (item := _LOOP.run_until_complete(anext(items, end))) is not end:
        yield cast("Item", item)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
