"""Check Triton with KIND_GPU: publish a release in a scratch repository, serve it, and send requests with the client."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_export.checkpoint import Checkpoint
from alexnet_export.gates import relative_difference
from alexnet_export.gpu_check.rows import Row
from alexnet_load.trial_server import serving

START_TIMEOUT_S = 180
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
    options = ("--config-name", "gpu", "--start-timeout", str(START_TIMEOUT_S), "--max-restarts", "0")
    with serving(repository, *options, log=scratch / "triton.log") as server:
        for batch in (1, 32):
            logits, seconds = asyncio.run(_request(server.target, pixels[:batch]))
            difference = relative_difference(expected[:batch], logits)
            status = "passed" if difference <= 1e-3 else "failed"
            reason = f"max |Δlogit| {difference:.1e} of the range"
            rate = batch / statistics.median(seconds)
            yield Row(f"Triton KIND_GPU over gRPC, requests of {batch}", status, reason, rate, "images/s")  # type: ignore[arg-type]


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
