"""Run a network on pixels: PyTorch, an ONNX file in this process, or a server, all with one signature for the gates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from google.protobuf.json_format import MessageToDict

from alexnet_client import Client
from alexnet_client.cpus import usable_cpus
from alexnet_client.errors import BadInput
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import Pixels
from alexnet_export.errors import GateFailed
from alexnet_export.gates import softmax
from alexnet_export.model import ServedModel
from alexnet_export.to_onnx import INPUT, MAX_BATCH_SIZE, OUTPUTS
from alexnet_export.triton_config import CUDA, ONNXRUNTIME, OPENVINO_BF16, OPENVINO_F32, engine_config
from alexnet_server.onnxruntime.providers import ConfigError
from alexnet_server.onnxruntime.session import make_session, openvino_device, supports_bf16
from alexnet_server.onnxruntime.settings import Settings, read_settings

Array = npt.NDArray[np.float32]
Runner = Callable[[Pixels], tuple[Array, Array]]
"""uint8 [N, 224, 224, 3] in; logits and probabilities, float32 [N, classes], out."""

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


def engine_settings(engine: str) -> Settings:
    """The settings of a session that Triton's configuration for this engine contains: what is validated is what serves."""
    config = MessageToDict(engine_config(engine), preserving_proto_field_name=True)
    kind = "GPU" if engine == CUDA else "CPU"
    available = ort.get_available_providers()
    return read_settings(config, kind=kind, device_id=0, available=available, cpus=usable_cpus())


def onnx_runner(model: Path | bytes, *, engine: str = ONNXRUNTIME) -> Runner:
    """Runner of an ONNX file, or of its content.

    Raises:
        BadInput: the engine is not available, or cannot load the model.
    """
    ort.set_default_logger_severity(3)  # warnings are about shapes that ONNX Runtime infers itself afterwards
    try:
        session = make_session(model, engine_settings(engine))
    except ConfigError as error:
        raise BadInput(str(error)) from error

    def run(pixels: Pixels) -> tuple[Array, Array]:
        logits, probabilities = session.run(list(OUTPUTS), {INPUT: pixels})
        return logits, probabilities

    return run


def openvino_engines() -> list[str]:
    """OpenVINO's engines on this CPU.

    Raises:
        ConfigError: OpenVINO's plug-in is missing or does not support this CPU.
    """
    return [OPENVINO_F32, *([OPENVINO_BF16] if supports_bf16(openvino_device()) else [])]


def gpu_usable() -> bool:
    """Whether this machine has a GPU that ONNX Runtime supports."""
    return torch.cuda.is_available() and "CUDAExecutionProvider" in ort.get_available_providers()


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
