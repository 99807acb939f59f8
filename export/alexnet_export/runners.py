"""Run a network on pixels: PyTorch, an ONNX file in this process, or a server, all with one signature for the gates."""

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

from alexnet_client import Client
from alexnet_client.cpus import usable_cpus
from alexnet_client.errors import BadInput
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import Pixels
from alexnet_export.errors import GateFailed
from alexnet_export.gates import softmax
from alexnet_export.model import ServedModel
from alexnet_export.to_onnx import INPUT, MAX_BATCH_SIZE, OUTPUTS

Array = npt.NDArray[np.float32]
Runner = Callable[[Pixels], tuple[Array, Array]]
"""uint8 [N, 224, 224, 3] in; logits and probabilities, float32 [N, classes], out."""

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_FIRST_BATCHES = (1, 2, 7, MAX_BATCH_SIZE)


def answers(
    run: Runner, pixels: Pixels, *, on_images: Callable[[int], None] = lambda images: None
) -> npt.NDArray[np.float32]:
    """Logits [N, classes] of ``pixels``, in batches of 1, 2, 7 and 64 images and then of 64.

    Args:
        run: the network.
        pixels: uint8 [N, 224, 224, 3].
        on_images: called with the number of images of each batch.

    Raises:
        GateFailed: the logits of a batch have a wrong shape, or its probabilities are not the softmax of the logits.
    """
    found = []
    for batch in _batches(pixels):
        logits, probabilities = run(batch)
        if logits.ndim != 2 or len(logits) != len(batch):
            raise GateFailed(f"answers: a batch of {len(batch)} gives logits of shape {list(logits.shape)}")
        if not np.allclose(probabilities, softmax(logits), atol=1e-5, equal_nan=True):
            raise GateFailed(f"answers: in a batch of {len(batch)} the probabilities are not the softmax of the logits")
        found.append(logits)
        on_images(len(batch))
    return np.concatenate(found)


def _batches(pixels: Pixels) -> Iterator[Pixels]:
    start = 0
    for size in _FIRST_BATCHES:
        if start < len(pixels):
            yield pixels[start : start + size]
        start += size
    for begin in range(start, len(pixels), MAX_BATCH_SIZE):
        yield pixels[begin : begin + MAX_BATCH_SIZE]


def open_session(model: Path | bytes, *, optimized: Path | None = None, provider: str = CPU) -> Any:
    """Create an ONNX Runtime session that uses all CPUs of this process.

    Args:
        model: the file, or its content.
        optimized: path to write the optimised graph to.
        provider: ``CPU`` or ``CUDA``.

    Raises:
        BadInput: ONNX Runtime cannot load the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    options.log_severity_level = 3  # its warnings are about shapes that it infers itself afterwards
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        where = "the graph" if isinstance(model, bytes) else str(model)
        raise BadInput(f"{where}: ONNX Runtime {ort.__version__} cannot load it ({error})") from error


def onnx_runner(model: Path | bytes, *, provider: str = CPU) -> Runner:
    """Runner of an ONNX file, or of its content."""
    session = open_session(model, provider=provider)

    def run(pixels: Pixels) -> tuple[Array, Array]:
        logits, probabilities = session.run(list(OUTPUTS), {INPUT: pixels})
        return logits, probabilities

    return run


def fastest_provider() -> str:
    """CUDA if this machine has a GPU and ONNX Runtime supports it, else the CPU."""
    return CUDA if torch.cuda.is_available() and CUDA in ort.get_available_providers() else CPU


def torch_runner(checkpoint: Checkpoint) -> Runner:
    """Runner of PyTorch in float32: the reference of all gates."""
    model = ServedModel(checkpoint.network(), checkpoint.normalization).eval()

    def run(pixels: Pixels) -> tuple[Array, Array]:
        with torch.inference_mode():
            logits, probabilities = model(torch.from_numpy(pixels))
        return logits.numpy(), probabilities.numpy()

    return run


@contextmanager
def served_runner(target: str, model: str) -> Iterator[tuple[Runner, set[str]]]:
    """Runner of a Triton server at ``target``, and the set of the versions that answered.

    Raises:
        ClientError: the server is unavailable or rejects a request.
    """
    versions: set[str] = set()
    with asyncio.Runner() as loop:

        async def connect() -> Client:
            return Client(target, model=model, timeout_s=60)  # gRPC objects belong to a running event loop

        def run(pixels: Pixels) -> tuple[Array, Array]:
            answer = loop.run(client.infer(pixels))
            versions.add(answer.model_version)
            return answer.logits, answer.probabilities

        client = loop.run(connect())
        try:
            yield run, versions
        finally:
            loop.run(client.close())


def operators_that_run(model: Path | bytes) -> Counter[str]:
    """Operators of the graph after all optimisations of ONNX Runtime on this machine."""
    with TemporaryDirectory(prefix="alexnet-export-") as scratch:
        optimized = Path(scratch) / "optimized.onnx"
        open_session(model, optimized=optimized)
        return Counter(node.op_type for node in onnx.load(optimized).graph.node)
