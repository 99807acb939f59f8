"""Whoever answers for the network: PyTorch, an ONNX file in this process, a server. One signature for all gates."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch

from alexnet_client import Client, ClientError
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.errors import UserError
from alexnet_export.machine import usable_processors
from alexnet_export.model import ServedModel
from alexnet_export.to_onnx import INPUT, OUTPUTS

Pixels = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float32]
Runner = Callable[[Pixels], tuple[Array, Array]]
"""uint8 [N, 224, 224, 3] in; logits and probabilities, float32 [N, classes], out."""

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def open_session(model: Path | bytes, *, optimized: Path | None = None, threads: int = 0, provider: str = CPU) -> Any:
    """An ONNX Runtime session.

    Args:
        model: the file, or its content.
        optimized: where to write the graph as it will run.
        threads: within an operator; 0 for as many as this process has processors.
        provider: CPU, or CUDA for the GPU.

    Raises:
        UserError: ONNX Runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_processors()
    options.log_severity_level = 3  # its warnings are about shapes that it then finds out by itself
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        where = "the graph" if isinstance(model, bytes) else str(model)
        raise UserError(f"{where}: ONNX Runtime {ort.__version__} cannot load it ({error})") from error


def onnx_runner(model: Path | bytes, *, threads: int = 0, provider: str = CPU) -> Runner:
    """Answers of an ONNX file, or of its content."""
    session = open_session(model, threads=threads, provider=provider)

    def run(pixels: Pixels) -> tuple[Array, Array]:
        logits, probabilities = session.run(list(OUTPUTS), {INPUT: pixels})
        return logits, probabilities

    return run


def fastest_provider() -> str:
    """CUDA where this machine has a GPU and ONNX Runtime was built for it, else the CPU."""
    return CUDA if torch.cuda.is_available() and CUDA in ort.get_available_providers() else CPU


def torch_runner(checkpoint: Checkpoint) -> Runner:
    """Answers of PyTorch, in float32: the reference of all gates."""
    model = ServedModel(checkpoint.network(), checkpoint.normalization).eval()

    def run(pixels: Pixels) -> tuple[Array, Array]:
        with torch.inference_mode():
            logits, probabilities = model(torch.from_numpy(pixels))
        return logits.numpy(), probabilities.numpy()

    return run


@contextmanager
def served_runner(target: str, model: str, *, timeout_s: float = 60.0) -> Iterator[tuple[Runner, set[str]]]:
    """Answers of a running Triton, and the versions that gave them.

    Raises:
        UserError: it cannot be reached or refuses; the client's own line says why.
    """
    versions: set[str] = set()
    with asyncio.Runner() as loop:

        async def connect() -> Client:
            return Client(target, model=model, timeout_s=timeout_s)  # gRPC wants to be made inside the loop

        def run(pixels: Pixels) -> tuple[Array, Array]:
            try:
                answer = loop.run(client.infer(pixels))
            except ClientError as error:
                raise UserError(str(error)) from error
            versions.add(answer.model_version)
            return answer.logits, answer.probabilities

        try:
            client = loop.run(connect())
        except ClientError as error:
            raise UserError(str(error)) from error
        try:
            yield run, versions
        finally:
            loop.run(client.close())


def operators_that_run(model: Path | bytes) -> Counter[str]:
    """The operators of the graph as ONNX Runtime runs it here, after all its optimisations."""
    with TemporaryDirectory(prefix="alexnet-export-") as scratch:
        optimized = Path(scratch) / "optimized.onnx"
        open_session(model, optimized=optimized)
        return Counter(node.op_type for node in onnx.load(optimized).graph.node)
