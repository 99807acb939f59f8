"""The real tritonserver: one per test process, and others for tests that stop or damage theirs."""

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
            log = self.log.read_text()[-3000:] if self.log.exists() else "Triton was not started"
            raise AssertionError(f"{line}{self.process.stderr.read()}\n{log}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it gracefully and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            for stub in self.stubs():
                stub.send_signal(signal.SIGUSR1)
            time.sleep(1)
            log = self.log.read_text()[-6000:] if self.log.exists() else "it has another log"
            raise AssertionError(f"the server does not stop:\n{log}") from None

    def end(self) -> None:
        """Stop it immediately with a second SIGINT: a graceful shutdown takes three seconds."""
        for _ in range(2):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.2)  # two signals at the same time would arrive as one
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
            print(process.stderr.read(), file=sys.stderr)  # pytest shows it if the test fails


@pytest.fixture(scope="session")
def launch():
    """``launched``, for fixtures of a module."""
    return launched


@pytest.fixture(scope="session")
def server(repository, tmp_path_factory, free_port):
    """A server for all tests that leave it unchanged; it receives no probes, so that tests can count requests."""
    with launched(repository, tmp_path_factory.mktemp("server"), free_port, "--probe-interval", "0") as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def own_server(request, tmp_path, free_port):
    """A function that starts a server for one test; without ``repository``, it serves the small release."""

    def start(*options: str, repository: Path | None = None):
        return launched(repository or request.getfixturevalue("repository"), tmp_path, free_port, *options)

    return start


@dataclass(frozen=True)
class Cheap:
    """A release that needs almost no computation, and its expected answers."""

    repository: Path
    weights: np.ndarray

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Float32 [N, 10] for uint8 [N, 224, 224, 3]."""
        return images[:, :8, :8].reshape(len(images), -1).astype(np.float32) @ self.weights


@pytest.fixture(scope="session")
def cheap(tmp_path_factory, digits) -> Cheap:
    """A linear network over 64 pixels, published like any other."""
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
    manifest = {"precision": "fp32", "max_batch_size": 64}
    publish(directory / "repository", {"model.onnx": directory / "model.onnx"}, digits.labels, manifest)
    return Cheap(directory / "repository", weights)


@pytest.fixture
def cheap_server(own_server, cheap):
    """``own_server`` with the cheap release, which is ready two seconds earlier."""
    return partial(own_server, repository=cheap.repository)
