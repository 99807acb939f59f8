"""Servers to measure: a repository served by the real launcher on ports of its own, and what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar, cast

import psutil

from alexnet_export.publish import publish
from alexnet_load.trial_server import serving

Item = TypeVar("Item")


@dataclass(frozen=True)
class Running:
    """A serving launcher; ``ready_s``: seconds from its start to the first answers of all models."""

    target: str
    process: psutil.Process
    ready_s: float

    @property
    def metrics_port(self) -> int:
        """Where Triton shows its metrics."""
        command = self.process.cmdline()
        return int(command[command.index("--metrics-port") + 1])

    def memory(self) -> int:
        """Bytes of Triton and its backend processes, without the launcher; what they share counts once (PSS)."""
        return sum(each.memory_full_info().pss for each in self.process.children(recursive=True))


@contextmanager
def running(repository: Path, *options: str) -> Iterator[Running]:
    """Serve a repository while the block runs."""
    with TemporaryDirectory(prefix="alexnet-bench-") as scratch:
        log = Path(scratch, "triton.log")
        with serving(repository, *options, log=log) as server:
            yield Running(server.target, psutil.Process(server.pid), server.ready_s)


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
