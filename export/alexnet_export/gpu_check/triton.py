"""Check Triton with KIND_GPU: publish a release in a scratch repository, serve it, and send requests with the client."""

from __future__ import annotations

import asyncio
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_export.checkpoint import Checkpoint
from alexnet_export.gates import relative_difference
from alexnet_export.gpu_check.rows import Row

START_S = 180
REQUESTS = 60


def check_triton(
    checkpoint: Checkpoint, model: Path, pixels: np.ndarray[Any, np.dtype[np.uint8]], scratch: Path
) -> Iterator[Row]:
    """Correctness and throughput over gRPC of requests with 1 and 32 images, one in flight."""
    from alexnet_export.publish import publish
    from alexnet_export.runners import onnx_runner

    repository = scratch / "repository"
    publish(repository, {"model.onnx": model}, checkpoint.labels, {"precision": "fp32", "max_batch_size": 64})
    expected = onnx_runner(model)(pixels[:32])[0]
    grpc, metrics = _free_port(), _free_port()
    command = [
        *(sys.executable, "-m", "alexnet_server", "serve", "--repository", str(repository), "--config-name", "gpu"),
        *("--grpc-port", str(grpc), "--metrics-port", str(metrics), "--log", str(scratch / "triton.log")),
        *("--start-timeout", str(START_S), "--health-port", "0", "--max-restarts", "0"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            if "Serving" not in process.stdout.readline():
                raise RuntimeError(process.stderr.read().strip().splitlines()[-1])
            for batch in (1, 32):
                logits, seconds = asyncio.run(_request(f"127.0.0.1:{grpc}", pixels[:batch]))
                difference = relative_difference(expected[:batch], logits)
                status = "passed" if difference <= 1e-3 else "failed"
                reason = f"max |Δlogit| {difference:.1e} of the range"
                rate = batch / statistics.median(seconds)
                yield Row(f"Triton KIND_GPU over gRPC, requests of {batch}", status, reason, rate, "images/s")  # type: ignore[arg-type]
        finally:
            process.terminate()
            process.wait(60)


async def _request(target: str, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[Any, list[float]]:
    from alexnet_client import Client

    seconds = []
    async with Client(target, timeout_s=60) as client:
        answer = await client.infer(pixels)
        for _ in range(REQUESTS):
            started = time.perf_counter()
            answer = await client.infer(pixels)
            seconds.append(time.perf_counter() - started)
    return answer.logits, seconds


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
