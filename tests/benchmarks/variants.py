"""Benchmark of the model variants: in process on the CPU with random images, alternating between the variants."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from results import Result
from workloads import random_images

from alexnet_export import calibrate, quantize, rewrites
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet
from alexnet_export.graph import copy, read_model, sweep, to_bytes
from alexnet_export.image_sets import calibration_images
from alexnet_export.runners import open_session
from alexnet_export.speed import REPEATS_OF_ONE, median_seconds
from alexnet_export.to_onnx import export_onnx

INT8_FLOAT_INPUT, STATIC = "int8 with float input", "quantize_static with float input"
COMPARISONS = (
    ("int8", "fp32", 1, 3.5),
    ("int8", "fp32", 32, 2.8),
    ("int8", "fp32", 64, 2.8),
    ("int8", INT8_FLOAT_INPUT, 1, 1.0),
    ("int8", INT8_FLOAT_INPUT, 32, 1.0),
    ("int8", STATIC, 32, 1.15),
)
"""Variant, the variant it is compared with, batch size and goal of the speed-up."""


def bench_variants(models: dict[str, bytes], *, rounds: int = 21) -> Iterator[Result]:
    """Measure the models of ``make_models``."""
    images = random_images()
    floats = np.ascontiguousarray(((images.astype(np.float32) - 128) / 64).transpose(0, 3, 1, 2))
    sessions = {name: open_session(content) for name, content in models.items()}
    int8_mb, fp32_mb = (len(models[name]) / 1e6 for name in ("int8", "fp32"))
    yield Result.of(
        "size of the int8 file", [int8_mb], unit="MB", goal=62, at_most=True, details=f"fp32 {fp32_mb:.0f} MB"
    )
    for variant, other, batch, goal in COMPARISONS:

        def run(name: str, batch: int = batch) -> None:
            feed = {"floats": floats[:batch]} if "float" in name else {"image": images[:batch]}
            sessions[name].run(None, feed)

        repeats = REPEATS_OF_ONE if batch == 1 else 1
        seconds: dict[str, list[float]] = {variant: [], other: []}
        for number in range(rounds + 1):  # the first round is the warm-up
            for name, durations in seconds.items():
                duration = median_seconds(partial(run, name), repeats)
                if number:
                    durations.append(duration)
        ours, theirs = ([batch / each for each in seconds[name]] for name in (variant, other))
        yield Result.ratio(f"speed-up of {variant} over {other}, batch {batch}", ours, theirs, goal=goal)


def make_models(checkpoint: Checkpoint, dataset: DataSet, scratch: Path) -> dict[str, bytes]:
    """Our FP32 and INT8 variants, INT8 with float input, and the result of ONNX Runtime's ``quantize_static``."""
    export_onnx(checkpoint, scratch / "exported.onnx")
    exported = read_model(scratch / "exported.onnx")
    folded = copy(exported)
    for rewrite in rewrites.FLOAT:
        rewrite(folded)
    pixels = calibration_images(dataset).pixels[:128]
    limits = calibrate.limits(calibrate.observe(folded, pixels), "minmax")
    quantized = quantize.quantize(folded, quantize.quantize_weights(folded, quantize.CPU), limits, quantize.CPU)
    rewritten = copy(quantized)
    for rewrite in rewrites.QUANTISED:
        rewrite(rewritten)
    first_quantize = next(node for node in quantized.graph if node.op_type == "QuantizeLinear")
    first_conv = next(node for node in exported.graph if node.op_type == "Conv")
    (scratch / "float-input.onnx").write_bytes(to_bytes(with_float_input(exported, first_conv)))
    floats = ((pixels.astype(np.float32) - 128) / 64).transpose(0, 3, 1, 2)
    quantize_static(
        scratch / "float-input.onnx",
        scratch / "static.onnx",
        _Reader(floats),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return {
        "fp32": to_bytes(folded),
        "int8": to_bytes(rewritten),
        INT8_FLOAT_INPUT: to_bytes(with_float_input(quantized, first_quantize)),
        STATIC: (scratch / "static.onnx").read_bytes(),
    }


def with_float_input(model: ir.Model, first: ir.Node) -> ir.Model:
    """The part of the graph that starts at ``first``, with an input ``floats``, float32 [N, 3, 224, 224]."""
    place = list(model.graph).index(first)
    result = copy(model)
    floats = ir.Value(name="floats", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 3, 224, 224]))
    list(result.graph)[place].replace_input_with(0, floats)
    result.graph.inputs.clear()
    result.graph.inputs.append(floats)
    sweep(result)
    return result


class _Reader(CalibrationDataReader):
    def __init__(self, floats: np.ndarray) -> None:
        self.batches = iter(np.split(floats, len(floats) // 16))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"floats": np.ascontiguousarray(batch)}
