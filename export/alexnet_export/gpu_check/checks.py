"""The checks: training, PyTorch, ONNX Runtime with CUDA and with CUDA graphs, TensorRT, Triton on the GPU.

Each check imports the libraries it needs; a missing library only skips its check.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from alexnet_export.checkpoint import Checkpoint
from alexnet_export.gates import relative_difference
from alexnet_export.gpu_check.roofline import Peaks, Work, least_seconds
from alexnet_export.gpu_check.rows import Row, Skip
from alexnet_export.gpu_check.triton import check_triton
from alexnet_export.model import ServedModel

BATCHES = (1, 8, 32, 64, 256)
REPEATS = 30
CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Machine:
    """Shared inputs of the checks: a network, its ONNX files by precision, pixels, a scratch directory, the peak rates."""

    checkpoint: Checkpoint
    files: Mapping[str, Path]
    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    scratch: Path
    peaks: Peaks
    layers: list[Work]

    def file(self, precision: str) -> Path:
        """The ONNX file of a precision. Raises ``Skip`` if it is missing."""
        if precision not in self.files:
            raise Skip(f"no {precision} file: install onnx, onnx-ir, onnxscript and onnxruntime")
        return self.files[precision]

    def row(self, check: str, batch: int, seconds: list[float], precision: str, *, from_host: bool = False) -> Row:
        """Throughput in images/s, with its roofline bound."""
        bound = batch / least_seconds(self.layers, batch, precision, self.peaks, from_host=from_host)
        where = "from the host" if from_host else "on the device"
        name = f"{check}, batch {batch}, {where}"
        return Row(name, "passed", "", batch / statistics.median(seconds), "images/s", bound)


def measure_peaks() -> Peaks:
    """Measure the peak rates: a large matrix product for each precision, a copy on the device, a copy to the device."""
    side = 8192
    operations = {}
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        left = torch.randn(side, side, device="cuda", dtype=dtype)
        seconds = timed(partial(torch.matmul, left, left))
        operations[precision] = 2 * side**3 / min(seconds)
    operations["int8"] = 2 * operations["fp16"]  # ratio in the data sheets of Hopper and Ampere; not measured
    block = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(block)
    memory = 2 * 2**30 / min(timed(lambda: target.copy_(block)))
    pinned = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    link = 2**28 / min(timed(lambda: block[: 2**28].copy_(pinned, non_blocking=True)))
    return Peaks(operations, memory, link)


def timed(run: Callable[[], Any], *, repeats: int = REPEATS) -> list[float]:
    """Seconds of each of ``repeats`` runs on the device, after three warm-up runs."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


def check_training(machine: Machine) -> Iterator[Row]:
    """Mixed precision training on one batch: the loss decreases; throughput."""
    network = machine.checkpoint.network().train().to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    served = ServedModel(network, machine.checkpoint.normalization).cuda()
    images = torch.from_numpy(machine.pixels[:128]).cuda()
    labels = torch.arange(len(images), device="cuda") % len(machine.checkpoint.labels)
    losses: list[float] = []

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            logits, _ = served(images)
            loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))

    seconds = timed(step)
    rate = len(images) / statistics.median(seconds)
    if not losses[-1] < losses[0]:
        raise RuntimeError(f"the loss did not decrease: {losses[0]:.3f} to {losses[-1]:.3f}")
    yield Row("training step, bf16, batch 128", "passed", f"loss {losses[0]:.3f} to {losses[-1]:.3f}", rate, "images/s")


def check_torch(machine: Machine) -> Iterator[Row]:
    """Inference with PyTorch in half precision, for comparison."""
    served = ServedModel(machine.checkpoint.network(), machine.checkpoint.normalization).cuda().eval()
    for batch in BATCHES:
        images = torch.from_numpy(machine.pixels[:batch]).cuda()
        with torch.inference_mode(), torch.autocast("cuda", torch.float16):
            seconds = timed(partial(served, images))
        yield machine.row("PyTorch, fp16 autocast", batch, seconds, "fp16")


def check_onnxruntime(machine: Machine) -> Iterator[Row]:
    """ONNX Runtime with CUDA: equality with the CPU, throughput with tensors on the device and on the host."""
    ort = _onnxruntime()
    reference = ort.InferenceSession(str(machine.file("fp32")), providers=["CPUExecutionProvider"])
    expected = reference.run(["logits"], {"image": machine.pixels[:64]})[0]
    for precision in ("fp32", "fp16"):
        session = _session(ort, machine.file(precision), {"use_tf32": "0"})
        yield _compared(f"ONNX Runtime CUDA, {precision}", expected, session, machine, precision)
        for batch in BATCHES:
            run = _bound_run(session, torch.from_numpy(machine.pixels[:batch]).cuda())
            yield machine.row(f"ONNX Runtime CUDA, {precision}", batch, timed(run), precision)
            feed = {"image": machine.pixels[:batch]}
            seconds = timed(partial(session.run, ["logits"], feed))
            yield machine.row(f"ONNX Runtime CUDA, {precision}", batch, seconds, precision, from_host=True)


def check_cuda_graph(machine: Machine) -> Iterator[Row]:
    """A batch of one, with and without a CUDA graph."""
    ort = _onnxruntime()
    image = torch.from_numpy(machine.pixels[:1]).cuda()
    for name, options in (("without", {}), ("with", {"enable_cuda_graph": "1"})):
        session = _session(ort, machine.file("fp16"), options)
        yield machine.row(f"ONNX Runtime CUDA, fp16, {name} CUDA graph", 1, timed(_bound_run(session, image)), "fp16")


def check_tensorrt(machine: Machine) -> Iterator[Row]:
    """TensorRT engines of the fp16 and the int8 file: agreement with fp32, throughput."""
    from alexnet_export.runners import onnx_runner
    from alexnet_export.to_tensorrt import Engine, build_engine, tensorrt_missing

    missing = tensorrt_missing()
    if missing:
        raise Skip(missing)
    expected = onnx_runner(machine.file("fp32"))(machine.pixels[:64])[0]
    for precision in ("fp16", "int8"):
        plan = machine.scratch / f"{precision}.plan"
        build_engine(machine.file(precision), plan, cache=machine.scratch / "engines")
        engine = Engine(plan)
        logits, _ = engine(machine.pixels[:64])
        agreement = float((logits.argmax(1) == expected.argmax(1)).mean())
        yield Row(f"TensorRT, {precision}, same best class as fp32", "passed", "", 100 * agreement, "%")
        for batch in (1, 8, 32, 64):
            images = torch.from_numpy(machine.pixels[:batch]).cuda()
            seconds = timed(partial(engine.run, images))
            yield machine.row(f"TensorRT, {precision}", batch, seconds, precision)


def check_served(machine: Machine) -> Iterator[Row]:
    """The Triton of the wheel with the onnxruntime backend on the GPU."""
    if importlib.util.find_spec("pytriton") is None or importlib.util.find_spec("alexnet_server") is None:
        raise Skip("Triton: nvidia-pytriton or alexnet-server is not installed")
    _onnxruntime()
    yield from check_triton(machine.checkpoint, machine.file("fp32"), machine.pixels, machine.scratch)


CHECKS: dict[str, Callable[[Machine], Iterator[Row]]] = {
    "training": check_training,
    "PyTorch": check_torch,
    "ONNX Runtime CUDA": check_onnxruntime,
    "CUDA graph": check_cuda_graph,
    "TensorRT": check_tensorrt,
    "Triton": check_served,
}


def _onnxruntime() -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise Skip("ONNX Runtime is not installed: run pip install onnxruntime-gpu") from error
    if CUDA not in ort.get_available_providers():
        raise Skip("ONNX Runtime was built without CUDA: install onnxruntime-gpu instead (ACCELERATOR=gpu)")
    return ort


def _session(ort: Any, path: Path, options: dict[str, str]) -> Any:
    session = ort.InferenceSession(str(path), providers=[(CUDA, options)])
    if session.get_providers()[0] != CUDA:
        raise RuntimeError(f"ONNX Runtime fell back to {session.get_providers()[0]}")
    return session


def _bound_run(session: Any, images: torch.Tensor) -> Callable[[], Any]:
    """A repeatable run with input and outputs in device memory."""
    outputs = {
        each.name: torch.empty(len(images), each.shape[-1], dtype=torch.float32, device="cuda")
        for each in session.get_outputs()
    }
    binding = session.io_binding()
    binding.bind_input("image", "cuda", 0, np.uint8, tuple(images.shape), images.data_ptr())
    for name, output in outputs.items():
        binding.bind_output(name, "cuda", 0, np.float32, tuple(output.shape), output.data_ptr())

    def run() -> tuple[Any, ...]:
        session.run_with_iobinding(binding)
        return images, outputs  # keeps the buffers alive as long as the function

    return run


def _compared(check: str, expected: Any, session: Any, machine: Machine, precision: str) -> Row:
    """Limits: fp32 differs by at most 1e-3 of the range of the logits; fp16 has the same best class on 99.5 % of the images."""
    logits = session.run(["logits"], {"image": machine.pixels[:64]})[0]
    difference = relative_difference(expected, logits)
    agreement = float((logits.argmax(1) == expected.argmax(1)).mean())
    good = difference <= 1e-3 if precision == "fp32" else agreement >= 0.995
    reason = f"max |Δlogit| {difference:.1e} of the range, same best class as on the CPU for {agreement:.1%}"
    return Row(f"{check}, equal to the CPU", "passed" if good else "failed", reason)
