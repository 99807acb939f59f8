"""The real tritonserver: one for the whole run, others for tests that stop or break theirs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from alexnet_export.publish import publish

START_S = 60


@dataclass
class Launched:
    """A launcher started by a test."""

    process: subprocess.Popen[str]
    target: str
    metrics_port: int
    health_port: int
    log: Path

    def triton(self) -> psutil.Process:
        """The tritonserver process below the launcher."""
        return next(each for each in psutil.Process(self.process.pid).children() if each.name() == "tritonserver")

    def stubs(self) -> list[psutil.Process]:
        """The backend processes below Triton."""
        return [each for each in self.triton().children(recursive=True) if "triton_python_backend_stub" in each.name()]

    def stub(self, model: str) -> psutil.Process:
        """The backend process of a model."""
        return next(each for each in self.stubs() if f"/{model}/" in each.cmdline()[1])

    def health(self, path: str = "/ready") -> tuple[int, dict[str, Any]]:
        """Status and body of the launcher's own health endpoint."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}{path}", timeout=5) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def metric(self, name: str, model: str = "") -> float:
        """Sum of a metric over its labels, or over those of one model, from the real metrics endpoint."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as response:
            text = response.read().decode()
        labels = rf'[^}}]*model="{model}"[^}}]*' if model else "[^}]*"
        return sum(float(value) for value in re.findall(rf"^{name}{{{labels}}} (\S+)$", text, re.MULTILINE))

    def wait_until_serving(self) -> None:
        line = self.process.stdout.readline()
        if "Serving alexnet" not in line:
            said = self.log.read_text()[-3000:] if self.log.exists() else "Triton was not started"
            raise AssertionError(f"{line}{self.process.stderr.read()}\n{said}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            for stub in self.stubs():
                stub.send_signal(signal.SIGUSR1)
            time.sleep(1)
            said = self.log.read_text()[-6000:] if self.log.exists() else "it has another log"
            raise AssertionError(f"it does not end:\n{said}") from None

    def end(self) -> None:
        """A second Ctrl-C ends it without Triton's orderly stop, which takes three seconds: tests of that call ``stop``."""
        for _ in range(2):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.2)  # two signals at once would be one
        self.process.wait(30)


@contextmanager
def launched(repository: Path, directory: Path, ports: Callable[[], int], *options: str) -> Iterator[Launched]:
    grpc_port, metrics_port, health_port = ports(), ports(), ports()
    log = directory / f"triton-{time.monotonic_ns()}.log"
    command = [
        *(sys.executable, "-m", "alexnet_server", "serve", "--repository", repository, "--log", log),
        *("--grpc-port", grpc_port, "--metrics-port", metrics_port, "--health-port", health_port, *options),
    ]
    with subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        server = Launched(process, f"127.0.0.1:{grpc_port}", metrics_port, health_port, log)
        try:
            server.wait_until_serving()
            yield server
        finally:
            server.end()
            print(process.stderr.read(), file=sys.stderr)  # pytest shows it where a test fails


@pytest.fixture(scope="session")
def launch():
    """Starts a server, for fixtures of a module: repository, directory for the log, ports, further options."""
    return launched


@pytest.fixture(scope="session")
def server(repository, tmp_path_factory, free_port):
    """One server for all tests that leave it as they found it; nobody but they sends it anything."""
    with launched(repository, tmp_path_factory.mktemp("server"), free_port, "--probe-interval", "0") as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def own_server(repository, tmp_path, free_port):
    """Starts a server for one test alone, and another one if the test asks again."""

    def start(*options: str, repository: Path = repository):
        return launched(repository, tmp_path, free_port, *options)

    return start


@dataclass(frozen=True)
class Cheap:
    """A release whose arithmetic is next to nothing, and what it answers: the server's and the client's own cost is left."""

    repository: Path
    weights: np.ndarray

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Float32 [N, 10] for uint8 [N, 224, 224, 3]."""
        return images[:, :8, :8].reshape(len(images), -1).astype(np.float32) @ self.weights


@pytest.fixture(scope="session")
def cheap(tmp_path_factory, digits) -> Cheap:
    """A linear network over 64 pixels, published as any other."""
    directory = tmp_path_factory.mktemp("cheap")
    weights = np.random.default_rng(0).normal(size=(192, 10)).astype(np.float32) / 192
    constants = {"begin": [0, 0], "end": [8, 8], "axes": [1, 2], "flat": [-1, 192]}
    nodes = [
        helper.make_node("Slice", ["image", "begin", "end", "axes"], ["corner"]),
        helper.make_node("Cast", ["corner"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "cheap",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 224, 224, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 10]) for name in ("logits", "probabilities")],
        [
            *(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()),
            numpy_helper.from_array(weights, "weights"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    facts = {"precision": "fp32", "max_batch_size": 64}
    publish(directory / "repository", {"model.onnx": directory / "model.onnx"}, digits.labels, facts)
    return Cheap(directory / "repository", weights)


@pytest.fixture
def cheap_server(own_server, cheap):
    """As ``own_server``, of the cheap release: it is ready two seconds sooner."""
    return partial(own_server, repository=cheap.repository)
