"""What several tests of the real server share: command lines, a cheap network, an HTTP receiver, and callers that generate load."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from waiting import until

from alexnet_client import Client
from alexnet_client.errors import ClientError
from alexnet_client.golden import GOLDEN, IMAGES, Golden
from alexnet_export.publish import publish

TIMEOUT_S = 90
CHEAP_GRAPH = """
<ir_version: 10, opset_import: ["": 20]>
cheap (uint8[N, 224, 224, 3] image) => (float[N, 10] logits, float[N, 10] probabilities)
<int64[2] begin = {0, 0}, int64[2] end = {8, 8}, int64[2] axes = {1, 2}, int64[2] flat = {-1, 192}> {
    corner = Slice(image, begin, end, axes)
    numbers = Cast<to = 1>(corner)
    row = Reshape(numbers, flat)
    logits = MatMul(row, weights)
    probabilities = Softmax(logits)
}
"""
"""A linear network over 64 pixels; ``publish_graph`` adds the weights."""


def run_command(module: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of this project to its end: ``run_command("alexnet_client", "health")``."""
    return run([sys.executable, "-m", module, *arguments], **environment)


def serve_command(repository: Path, ports: Callable[[], int], *options: object) -> list[object]:
    """The command line of a server on free ports, without a health endpoint. Later options replace earlier ones."""
    own_ports = ("--grpc-port", ports(), "--metrics-port", ports(), "--health-port", 0)
    return [sys.executable, "-m", "alexnet_server", "serve", "--repository", repository, *own_ports, *options]


def run(command: list[object], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and check that it prints no traceback."""
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, **environment},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def publish_graph(directory: Path, graph: str, weights: np.ndarray, labels: Sequence[str]) -> Path:
    """Publish a variant of ``CHEAP_GRAPH`` like any other release; returns the model repository."""
    model = onnx.parser.parse_model(graph)
    model.graph.initializer.append(numpy_helper.from_array(weights, "weights"))
    files = {name: directory / name for name in ("model.onnx", GOLDEN)}
    onnx.save(model, files["model.onnx"])
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 224, 224, 3), np.uint8)
    Golden(images, ort.InferenceSession(files["model.onnx"]).run(["logits"], {"image": images})[0]).write(files[GOLDEN])
    publish(directory / "repository", files, labels, {"precision": "fp32", "max_batch_size": 64})
    return directory / "repository"


def with_small_queue(repository: Path, directory: Path, requests: int) -> Path:
    """A copy of a repository whose "bounded" configuration has a shorter queue."""
    copy = shutil.copytree(repository, directory / "small-queue", ignore=shutil.ignore_patterns(".*"))
    config = copy / "alexnet/configs/bounded.pbtxt"
    text, changes = re.subn(r"max_queue_size: \d+", f"max_queue_size: {requests}", config.read_text())
    assert changes
    config.write_text(text)
    return copy


@contextmanager
def receiver(on_post: Callable[[str, str, bytes], None]) -> Iterator[int]:
    """An HTTP server that gives path, content type and body of each POST to a function: its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name is http.server's
            body = self.rfile.read(int(self.headers["Content-Length"]))
            on_post(self.path, self.headers["Content-Type"], body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class Load:
    """Callers that send single images, the number of calls by outcome, and the number of answers by model version.

    The outcomes are "correct", "wrong", and the names of the client's exceptions.
    """

    def __init__(
        self, client: Client, images: np.ndarray, expected: np.ndarray, *, callers: int = 8, pause_s: float = 0.0
    ) -> None:
        self.outcomes, self.versions = Counter[str](), Counter[str]()
        self._client, self._images, self._expected = client, images, expected
        self._callers, self._pause_s, self._tolerance = callers, pause_s, 1e-4 * np.ptp(expected)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._call(random.Random(seed))) for seed in range(self._callers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), outcome

    async def _call(self, rng: random.Random) -> None:
        while True:
            row = rng.randrange(len(self._images))
            try:
                answer = await self._client.infer(self._images[row : row + 1])
            except ClientError as error:
                self.outcomes[type(error).__name__] += 1
                await asyncio.sleep(0.02)
            else:
                correct = np.allclose(answer.logits[0], self._expected[row], atol=self._tolerance)
                self.outcomes["correct" if correct else "wrong"] += 1
                self.versions[answer.model_version] += 1
                if self._pause_s:
                    await asyncio.sleep(self._pause_s)

    async def wait_for_answers(self, count: int) -> None:
        """Wait until so many more calls have a correct answer."""
        wanted = self.outcomes["correct"] + count
        await until(lambda: self.outcomes["correct"] >= wanted, f"{count} more correct answers")
