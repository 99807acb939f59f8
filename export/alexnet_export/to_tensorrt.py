"""From an ONNX file to a TensorRT engine for the GPU of this machine. The only file that imports tensorrt.

The precision is the file's own: the network is strongly typed, which is all that TensorRT 11 knows. An engine belongs to
one GPU, one TensorRT and one file; the cache keeps it under a name made of the three.
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alexnet_export.atomic import replace_file, sha256_file, writing
from alexnet_export.errors import GateFailed, UserError
from alexnet_export.to_onnx import INPUT, MAX_BATCH_SIZE, OUTPUTS

PREFERRED_BATCH = 32
SIDE, CHANNELS = 224, 3


@dataclass(frozen=True)
class EngineInfo:
    """What an engine was built for; ``cached`` if it was there already."""

    gpu: str
    tensorrt: str
    onnx_sha256: str
    cached: bool


def tensorrt_missing() -> str | None:
    """Why no engine can be built here, in one line; None if one can."""
    if not torch.cuda.is_available():
        return "TensorRT: no NVIDIA GPU here (or this PyTorch has no CUDA)"
    if importlib.util.find_spec("tensorrt") is None:
        return "TensorRT: not installed; pip install tensorrt-cu13, or use NVIDIA's container"
    try:
        _tensorrt()
    except Exception as error:  # noqa: BLE001  a wheel without its libraries raises whatever it likes
        return f"TensorRT: cannot be imported ({error})"
    return None


def build_engine(source: Path, plan: Path, *, cache: Path, max_batch_size: int = MAX_BATCH_SIZE) -> EngineInfo:
    """Build an engine, or take it from the cache.

    Args:
        source: the ONNX file; uint8 ``image`` [N, 224, 224, 3] in.
        plan: where to write the engine.
        cache: directory for engines and timings; trusted, because an engine is code.
        max_batch_size: the profile covers 1 to this, and is tuned for 32.

    Raises:
        UserError: there is no GPU or no TensorRT, or the disk refuses.
        GateFailed: TensorRT cannot read the file or build an engine of it; the text says why.
    """
    missing = tensorrt_missing()
    if missing:
        raise UserError(missing)
    trt = _tensorrt()
    major, minor = torch.cuda.get_device_capability()
    name, digest = torch.cuda.get_device_name(), sha256_file(source)
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    key = f"{name.replace(' ', '-')}-sm{major}{minor}-tensorrt{trt.__version__}"
    kept = cache / f"{key}-batch{max_batch_size}-{digest[:16]}.plan"
    cached = kept.is_file()
    if not cached:
        serialized = _build(trt, source, cache / f"{key}.timing", max_batch_size)
        with replace_file(kept) as temporary:
            temporary.write_bytes(serialized)
    with replace_file(plan) as temporary:
        shutil.copyfile(kept, temporary)
    return EngineInfo(name, trt.__version__, digest, cached)


def _build(trt: ModuleType, source: Path, timing: Path, max_batch_size: int) -> bytes:
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # TensorRT 11 knows nothing else
    network = builder.create_network(1 << int(flag) if flag is not None else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(source.read_bytes()):
        errors = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise GateFailed(f"TensorRT cannot read {source.name}: {errors}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    shape = (SIDE, SIDE, CHANNELS)
    profile.set_shape(INPUT, (1, *shape), (min(PREFERRED_BATCH, max_batch_size), *shape), (max_batch_size, *shape))
    config.add_optimization_profile(profile)
    timings = config.create_timing_cache(timing.read_bytes() if timing.is_file() else b"")
    config.set_timing_cache(timings, ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise GateFailed(f"TensorRT could not build an engine of {source.name}; its own lines above say why")
    with replace_file(timing) as temporary:
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


class Engine:
    """A loaded engine that answers for the gates; buffers are PyTorch's."""

    def __init__(self, plan: Path) -> None:
        trt = _tensorrt()
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise UserError(f"{plan}: not an engine for this GPU and this TensorRT; build it again")
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """uint8 [N, 224, 224, 3] in; logits and probabilities, float32 [N, classes], out."""
        outputs = self.run(torch.from_numpy(np.ascontiguousarray(pixels)).cuda())
        logits, probabilities = (outputs[name].cpu().numpy() for name in OUTPUTS)
        return logits, probabilities

    def run(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The same on the device; waits until it is done."""
        self._context.set_input_shape(INPUT, tuple(images.shape))
        self._context.set_tensor_address(INPUT, images.data_ptr())
        outputs = {}
        for name in OUTPUTS:
            outputs[name] = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=torch.float32, device="cuda")
            self._context.set_tensor_address(name, outputs[name].data_ptr())
        self._stream.wait_stream(torch.cuda.current_stream())
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise GateFailed("TensorRT: the engine did not run; its own lines above say why")
        self._stream.synchronize()
        return outputs


def _tensorrt() -> Any:
    import tensorrt

    return tensorrt
