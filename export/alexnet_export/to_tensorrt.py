"""Build a TensorRT engine from an ONNX file, for the GPU of this machine. The only module that imports tensorrt.

The file determines the precision: the network is strongly typed, the only mode of TensorRT 11. An engine is specific to
a GPU, a TensorRT version and an ONNX file; its name in the cache contains all three.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alexnet_client.errors import BadInput
from alexnet_client.files import replace_file, sha256_file, writing
from alexnet_export.errors import GateFailed
from alexnet_export.model import SIDE
from alexnet_export.to_onnx import INPUT, MAX_BATCH_SIZE, OUTPUTS

PREFERRED_BATCH = 32


def tensorrt_missing() -> str | None:
    """The reason why this machine cannot build engines, in one line; None if it can."""
    if not torch.cuda.is_available():
        return "TensorRT: no NVIDIA GPU found, or PyTorch was built without CUDA"
    if importlib.util.find_spec("tensorrt") is None:
        return "TensorRT: not installed; run pip install tensorrt-cu13, or use NVIDIA's container"
    try:
        _tensorrt()
    except Exception as error:  # noqa: BLE001  a wheel without its libraries raises several types
        return f"TensorRT: cannot be imported ({error})"
    return None


def build_engine(source: Path, plan: Path, *, cache: Path) -> None:
    """Build an engine, or copy it from the cache.

    Args:
        source: the ONNX file; uint8 ``image`` [N, 224, 224, 3] in.
        plan: path of the engine.
        cache: directory for engines and timings. Its content is trusted, because an engine is executable code.

    Raises:
        BadInput: there is no GPU or no TensorRT, or a file cannot be written.
        GateFailed: TensorRT cannot read the file or cannot build an engine.
    """
    if missing := tensorrt_missing():
        raise BadInput(missing)
    trt = _tensorrt()
    major, minor = torch.cuda.get_device_capability()
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    key = f"{torch.cuda.get_device_name().replace(' ', '-')}-sm{major}{minor}-tensorrt{trt.__version__}"
    cached = cache / f"{key}-batch{MAX_BATCH_SIZE}-{sha256_file(source)[:16]}.plan"
    if not cached.is_file():
        serialized = _build(trt, source, cache / f"{key}.timing")
        with replace_file(cached) as temporary:
            temporary.write_bytes(serialized)
    with replace_file(plan) as temporary:
        shutil.copyfile(cached, temporary)


def _build(trt: ModuleType, source: Path, timing: Path) -> bytes:
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # TensorRT 11 has no flag: the only mode
    network = builder.create_network(1 << int(flag) if flag is not None else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(source.read_bytes()):
        errors = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise GateFailed(f"TensorRT cannot read {source.name}: {errors}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *((batch, SIDE, SIDE, 3) for batch in (1, PREFERRED_BATCH, MAX_BATCH_SIZE)))
    config.add_optimization_profile(profile)
    timings = config.create_timing_cache(timing.read_bytes() if timing.is_file() else b"")
    config.set_timing_cache(timings, ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise GateFailed(f"TensorRT cannot build an engine from {source.name}; see its log messages above")
    with replace_file(timing) as temporary:
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


class Engine:
    """A loaded engine with the signature of ``runners.Runner``; PyTorch allocates the buffers."""

    def __init__(self, plan: Path) -> None:
        trt = _tensorrt()
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise BadInput(f"{plan}: not an engine for this GPU and TensorRT version; build it again")
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """uint8 [N, 224, 224, 3] in; logits and probabilities, float32 [N, classes], out."""
        outputs = self.run(torch.from_numpy(np.ascontiguousarray(pixels)).cuda())
        logits, probabilities = (outputs[name].cpu().numpy() for name in OUTPUTS)
        return logits, probabilities

    def run(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The same with tensors on the device; returns when the outputs are complete."""
        self._context.set_input_shape(INPUT, tuple(images.shape))
        self._context.set_tensor_address(INPUT, images.data_ptr())
        outputs = {}
        for name in OUTPUTS:
            outputs[name] = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=torch.float32, device="cuda")
            self._context.set_tensor_address(name, outputs[name].data_ptr())
        self._stream.wait_stream(torch.cuda.current_stream())
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise GateFailed("TensorRT: the engine failed; see its log messages above")
        self._stream.synchronize()
        return outputs


def _tensorrt() -> Any:
    import tensorrt

    return tensorrt
