"""What the export's variants are worth: in process, on the CPU, random images, sides in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from rows import Row, ratio_row

from alexnet_export import calibrate, quantize, rewrites
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet
from alexnet_export.gateset import calibration_images
from alexnet_export.graph import copy, read_model, sweep, to_bytes
from alexnet_export.runners import open_session
from alexnet_export.speed import REPEATS_OF_ONE, time_in_turns
from alexnet_export.to_onnx import export_onnx

ROUNDS = 21
OPERATIONS_AN_IMAGE = 2 * 714_188_480
"""Twice the multiply-adds of AlexNet at 1,000 classes; the last layer of fewer classes has a little less."""


def bench_variants(models: dict[str, bytes]) -> Iterator[Row]:
    """The rows, as they are found, for what ``make_models`` made."""
    images = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3)).astype(np.uint8)
    ready = np.ascontiguousarray(((images.astype(np.float32) - 128) / 64).transpose(0, 3, 1, 2))
    sessions = {name: open_session(content) for name, content in models.items()}

    def at(batch: int, *names: str) -> dict[str, Callable[[], Any]]:
        feeds = {"image": images[:batch]}, {"ready": ready[:batch]}
        return {
            name: lambda session=sessions[name], feed=feeds["float" in name]: session.run(None, feed) for name in names
        }

    yield Row(
        "size of the int8 file",
        "int8 / fp32 bytes",
        *[len(models["int8"]) / 1e6] * 3,
        1,
        "MB",
        62,
        at_most=True,
        figures=f"fp32 {len(models['fp32']) / 1e6:.0f} MB",
    )
    for batch, goal in ((1, 3.5), (32, 2.8), (64, 2.8)):
        found = time_in_turns(at(batch, "int8", "fp32"), rounds=ROUNDS, repeats=_repeats(batch))
        yield _row(f"int8 against fp32, batch {batch}", found, "int8", "fp32", batch, goal)
    for batch in (1, 32):
        found = time_in_turns(at(batch, "int8", "int8, float input"), rounds=ROUNDS, repeats=_repeats(batch))
        yield _row(
            f"uint8 pixels against ready float tensors, batch {batch}", found, "int8", "int8, float input", batch, 1.0
        )
    found = time_in_turns(at(32, "int8", "quantize_static, float input"), rounds=ROUNDS)
    yield _row(
        "int8 against onnxruntime's quantize_static, batch 32", found, "int8", "quantize_static, float input", 32, 1.15
    )
    for name, batch in (("int8", 32), ("int8", 64)):
        found = time_in_turns({**at(batch, name), "peak": integer_peak()}, rounds=ROUNDS)
        tops = [batch * OPERATIONS_AN_IMAGE / seconds / 1e12 for seconds in found[name]]
        peaks = [PEAK_OPERATIONS / seconds / 1e12 for seconds in found["peak"]]
        low, middle, high = statistics.quantiles([mine / peak for mine, peak in zip(tops, peaks, strict=True)], n=4)
        figures = f"{statistics.median(tops):.2f} TOPS of {statistics.median(peaks):.2f}"
        yield Row(
            f"arithmetic rate against that of conv2 alone, batch {batch}",
            "TOPS / TOPS",
            middle,
            low,
            high,
            ROUNDS,
            goal=0.85,
            figures=figures,
        )


def make_models(checkpoint: Checkpoint, dataset: DataSet, scratch: Path) -> dict[str, bytes]:
    """The sides: what we publish, the same fed with ready float tensors, and what ONNX Runtime's own tool makes."""
    export_onnx(checkpoint, scratch / "exported.onnx")
    exported = read_model(scratch / "exported.onnx")
    folded = copy(exported)
    for rewrite in rewrites.FLOAT:
        rewrite.apply(folded)
    pixels = calibration_images(dataset).pixels[:128]
    limits = calibrate.limits(calibrate.observe(folded, pixels), "minmax")
    before = quantize.quantize(folded, quantize.quantize_weights(folded, quantize.CPU), limits, quantize.CPU)
    after = copy(before)
    for rewrite in rewrites.QUANTISED:
        rewrite.apply(after)
    first = next(node for node in before.graph if node.op_type == "QuantizeLinear")
    plain = fed_with_floats(exported, next(node for node in exported.graph if node.op_type == "Conv"))
    (scratch / "plain.onnx").write_bytes(to_bytes(plain))
    ready = ((pixels.astype(np.float32) - 128) / 64).transpose(0, 3, 1, 2)
    quantize_static(
        scratch / "plain.onnx",
        scratch / "static.onnx",
        _Reader(ready),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return {
        "fp32": to_bytes(folded),
        "int8": to_bytes(after),
        "int8, float input": to_bytes(fed_with_floats(before, first)),
        "quantize_static, float input": (scratch / "static.onnx").read_bytes(),
    }


def fed_with_floats(model: ir.Model, first: ir.Node) -> ir.Model:
    """The graph from ``first`` on, which gets a float32 [N, 3, 224, 224] called ``ready``."""
    place = model.graph.index(first) if hasattr(model.graph, "index") else list(model.graph).index(first)
    result = copy(model)
    node = list(result.graph)[place]
    ready = ir.Value(name="ready", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 3, 224, 224]))
    node.replace_input_with(0, ready)
    result.graph.inputs.clear()
    result.graph.inputs.append(ready)
    sweep(result)
    return result


PEAK_IMAGES, PEAK_SIDE, PEAK_IN, PEAK_OUT, PEAK_KERNEL = 32, 27, 64, 192, 5
PEAK_OPERATIONS = 2 * PEAK_IMAGES * PEAK_SIDE**2 * PEAK_KERNEL**2 * PEAK_IN * PEAK_OUT


def integer_peak() -> Callable[[], Any]:
    """conv2 alone, a third of the network's arithmetic: the fastest integer kernel of ONNX Runtime that was seen here."""
    random = np.random.default_rng(0)
    constants = {
        "scale": np.float32(0.02),
        "zero": np.uint8(0),
        "weight": random.integers(-127, 128, (PEAK_OUT, PEAK_IN, PEAK_KERNEL, PEAK_KERNEL)).astype(np.int8),
        "weight_zero": np.int8(0),
    }
    inputs = ["x", "scale", "zero", "weight", "scale", "weight_zero", "scale", "zero"]
    shape = [PEAK_IMAGES, PEAK_SIDE, PEAK_SIDE]
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2]),  # cancelled: the kernel is NHWC
            onnx.helper.make_node("QLinearConv", inputs, ["y"], kernel_shape=[PEAK_KERNEL] * 2, pads=[2] * 4),
            onnx.helper.make_node("Transpose", ["y"], ["out"], perm=[0, 2, 3, 1]),
        ],
        "peak",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [*shape, PEAK_IN])],
        [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.UINT8, [*shape, PEAK_OUT])],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = open_session(model.SerializeToString())
    image = random.integers(0, 256, (*shape, PEAK_IN)).astype(np.uint8)
    return lambda: session.run(None, {"image": image})


def _repeats(batch: int) -> int:
    return REPEATS_OF_ONE if batch == 1 else 1


def _row(name: str, found: dict[str, list[float]], ours: str, theirs: str, batch: int, goal: float) -> Row:
    rates = [batch / statistics.median(found[side]) for side in (ours, theirs)]
    figures = f"{rates[0]:.0f} against {rates[1]:.0f} images/s"
    return ratio_row(name, f"{theirs} / {ours} seconds", found[ours], found[theirs], goal=goal, figures=figures)


class _Reader(CalibrationDataReader):
    def __init__(self, ready: np.ndarray) -> None:
        self.batches = iter(np.split(ready, len(ready) // 16))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"ready": np.ascontiguousarray(batch)}
