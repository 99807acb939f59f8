"""INT8 files, quantised by NNCF: uint8 activations from zero (behind a ReLU) and int8 weights with a scale for each filter.

Ranges are the smallest and largest value of the calibration images. NNCF's default, the mean of the extremes of each image,
clips: the error of the logits is 13 times as large (root mean square 0.0100 of their range instead of 0.0008). With the "mixed"
preset and the exported graph, OpenVINO's conv1 reads pixels with a zero point of 128 instead of 0 (see ``rewrites``).

For TensorRT, activations are int8: its ONNX parser reads uint8 with the same scale as int8, which halves the range.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from alexnet_client.golden import rms_error
from alexnet_export import rewrites
from alexnet_export.errors import GateFailed
from alexnet_export.gates import BUDGET_POINTS, Comparison, compare, smallest_gate_set
from alexnet_export.graph import layers, read_model
from alexnet_export.image_sets import Images
from alexnet_export.runners import onnx_runner
from alexnet_export.to_onnx import INPUT, IR_VERSION

BATCH_SIZE = 32


@dataclass(frozen=True)
class Quantized:
    """An INT8 model, and how its answers differ from those of the float model on the selection images.

    Attributes:
        model: the ONNX model.
        reduce_range: the weights use 7 bits, for CPUs that add products in 16 bits.
        signed: the activations are int8.
        calibration_images: number of images for the ranges.
        layers: number of layers with weights.
        float_layers: names of those that stayed in float to keep the accuracy.
        error: root mean square of the differences of the logits, as a share of their range.
    """

    model: onnx.ModelProto
    reduce_range: bool
    signed: bool
    calibration_images: int
    layers: int
    float_layers: tuple[str, ...]
    error: float


def quantize(
    path: Path,
    calibration: Images,
    selection: Images,
    *,
    reduce_range: bool,
    signed: bool = False,
    on_images: Callable[[int], None] = lambda images: None,
) -> Quantized:
    """Quantise all layers, and return layers to float if the loss of accuracy exceeds the budget.

    Args:
        path: the exported float file.
        calibration: images for the ranges of the activations.
        selection: images to measure the loss on; other ones than those of the gates.
        reduce_range: use 7 bits for the weights.
        signed: int8 activations, for TensorRT.
        on_images: called with the number of images of each batch for calibration.

    Raises:
        GateFailed: NNCF cannot quantise the network, or not within the budget.
    """
    reference = logits_of(path, selection.pixels)
    source = _prepared(path, signed=signed)
    run = partial(with_nncf, source, calibration, reduce_range=reduce_range, signed=signed, on_images=on_images)
    quantized = run()
    answers = logits_of(quantized, selection.pixels)
    if not _within_budget(compare(reference, answers, selection.labels)):
        quantized = run(selection=selection)
        answers = logits_of(quantized, selection.pixels)
    found = layers(ir.from_proto(quantized).graph)
    in_float = tuple(str(node.name) for node in found if not _reads_integers(node))
    if len(in_float) == len(found):
        raise GateFailed(f"accuracy: every layer in integers costs more than {BUDGET_POINTS} points")
    return Quantized(
        quantized, reduce_range, signed, len(calibration), len(found), in_float, rms_error(reference, answers)
    )


def _prepared(path: Path, *, signed: bool) -> onnx.ModelProto:
    model = read_model(path)
    rewrites.drop_identity_pool(model)
    if not signed:
        rewrites.fold_normalization(model)
    return ir.to_proto(model)


def logits_of(model: Path | onnx.ModelProto, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Logits [N, classes] by ONNX Runtime's CPU kernels."""
    run = onnx_runner(model if isinstance(model, Path) else model.SerializeToString())
    return np.concatenate([run(batch)[0] for batch in _batches(pixels)])


def _batches(rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return [rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)]


def with_nncf(
    model: onnx.ModelProto,
    calibration: Images,
    *,
    reduce_range: bool,
    signed: bool = False,
    on_images: Callable[[int], None] = lambda images: None,
    selection: Images | None = None,
) -> onnx.ModelProto:
    """Quantise; with ``selection``, NNCF returns layers to float until the accuracy on these images is within the budget.

    Raises:
        GateFailed: NNCF failed.
    """
    with _nncf() as nncf:

        def batch_of(pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.uint8]]:
            on_images(len(pixels))
            return {INPUT: pixels}

        dataset = nncf.Dataset(_batches(calibration.pixels), batch_of)
        overflow = nncf.OverflowFix.ENABLE if reduce_range else nncf.OverflowFix.DISABLE
        advanced = nncf.AdvancedQuantizationParameters(
            overflow_fix=overflow,
            batchwise_statistics=True,
            activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
        )
        common = {
            "preset": nncf.QuantizationPreset.PERFORMANCE,
            "subset_size": dataset.get_length(),
            # With the normalisation not folded, NNCF would round the pixels before it.
            "ignored_scope": nncf.IgnoredScope(types=["Sub", "Mul"] if signed else [], validate=False),
        }
        quantized: onnx.ModelProto
        try:
            if selection is None:
                quantized = nncf.quantize(model, dataset, advanced_parameters=advanced, **common)
            else:
                best = logits_of(model, selection.pixels).argmax(1)
                labels = np.where(selection.labels >= 0, selection.labels, best)
                samples = zip(_batches(selection.pixels), _batches(labels), strict=True)
                quantized = nncf.quantize_with_accuracy_control(
                    model,
                    calibration_dataset=dataset,
                    validation_dataset=nncf.Dataset(list(samples)),
                    validation_fn=_accuracy,
                    max_drop=BUDGET_POINTS / 100,
                    advanced_quantization_parameters=advanced,
                    **common,
                )
        except Exception as error:  # NNCF raises its own and Python's exceptions, without a common base
            raise GateFailed(f"NNCF {nncf.__version__} cannot quantise this network ({error})") from error
    finished = ir.from_proto(quantized)
    (rewrites.make_signed if signed else rewrites.read_uint8)(finished)
    quantized = ir.to_proto(finished)
    quantized.ir_version = IR_VERSION
    return quantized


def _accuracy(model: onnx.ModelProto, samples: Iterable[Any]) -> tuple[float, None]:
    run = onnx_runner(model.SerializeToString())
    right = [run(pixels)[0].argmax(1) == labels for pixels, labels in samples]
    return float(np.concatenate(right).mean()), None


def _reads_integers(layer: ir.Node) -> bool:
    producer = layer.inputs[1].producer() if layer.inputs[1] else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _within_budget(comparison: Comparison) -> bool:
    loss, counted = comparison.loss_points, comparison.labelled or comparison.images
    # Too few images for a proof leave it to the gate.
    return (loss.high if counted >= smallest_gate_set() else loss.estimate) <= BUDGET_POINTS


@contextmanager
def _nncf() -> Iterator[Any]:
    """The module, without its telemetry and its output."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes the import fail: NNCF sends nothing
    import nncf

    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(io.StringIO()):  # progress bars that cannot be disabled
        yield nncf
