"""The choice among ways of quantising: by measured accuracy on images that judge nothing later.

Each calibration method is tried, the layers are ranked by the harm they do, and the worst go back to float one by one
until the budget of accuracy holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexnet_export import calibrate, rewrites
from alexnet_export.errors import GateFailed
from alexnet_export.gates import BUDGET_POINTS, Comparison, compare, smallest_gate_set
from alexnet_export.graph import copy, layers, to_bytes
from alexnet_export.image_sets import Images
from alexnet_export.quantize import (
    FLOAT_OPERATORS,
    INTEGER_OPERATORS,
    IntegerWeights,
    Scheme,
    quantize,
    quantize_weights,
)
from alexnet_export.runners import answers, onnx_runner, operators_that_run

SENSITIVITY_IMAGES = 256


@dataclass(frozen=True)
class LayerHarm:
    """What quantising one layer alone does: root mean square of the logits' change, as a share of their range."""

    layer: str
    weights: str
    logit_error: float


@dataclass(frozen=True)
class Trial:
    """One way of quantising, judged on the images for choosing."""

    method: str
    float_layers: tuple[str, ...]
    logit_error: float
    comparison: Comparison


@dataclass(frozen=True)
class Quantized:
    """The chosen way; ``model`` has no rewrite of ``rewrites.QUANTISED`` yet."""

    model: ir.Model
    trial: Trial
    trials: tuple[Trial, ...]
    harm: tuple[LayerHarm, ...]


def choose(
    model: ir.Model,
    calibration: Images,
    choice: Images,
    scheme: Scheme,
    *,
    sensitivity_images: int = SENSITIVITY_IMAGES,
    on_step: Callable[[], None] = lambda: None,
) -> Quantized:
    """Find the way of quantising that changes the answers least.

    Args:
        model: the float graph after ``rewrites.FLOAT``.
        calibration: training images, for the ranges.
        choice: images to compare ways on.
        scheme: for whose kernels.
        sensitivity_images: how many of ``choice`` rank the layers.
        on_step: called after each of ``steps(model)`` steps.

    Raises:
        GateFailed: not even with half of the layers in float does the accuracy hold.
    """
    histograms = calibrate.observe(model, calibration.pixels)
    weights = quantize_weights(model, scheme)
    reference = answers(onnx_runner(to_bytes(model)), choice.pixels)
    on_step()

    def attempt(method: str, keep_float: Sequence[str]) -> tuple[ir.Model, Trial]:
        quantized = quantize(model, weights, calibrate.limits(histograms, method), scheme, keep_float=keep_float)
        logits = answers(onnx_runner(to_bytes(quantized)), choice.pixels)
        error = _error(reference, logits)
        on_step()
        return quantized, Trial(method, tuple(keep_float), error, compare(reference, logits, choice.labels))

    tried = [attempt(method, ()) for method in calibrate.METHODS]
    best = min(tried, key=lambda pair: (not _holds(pair[1].comparison), pair[1].logit_error))
    trials = [trial for _, trial in tried]
    method = best[1].method
    ranked = choice.pixels[:sensitivity_images]
    harm = _harm(model, weights, calibrate.limits(histograms, method), scheme, ranked, reference, on_step)
    worst_first = [each.layer for each in sorted(harm, key=lambda each: -each.logit_error)]
    while not _holds(best[1].comparison):
        kept = len(best[1].float_layers) + 1
        if kept > len(worst_first) // 2:  # with more in float it would be no faster than float
            raise GateFailed(
                f"int8: with {kept - 1} of {len(worst_first)} layers in float the loss is still up to "
                f"{best[1].comparison.loss_points.high:.2f} points on the {len(choice)} images for choosing"
            )
        best = attempt(method, worst_first[:kept])
        trials.append(best[1])

    return Quantized(best[0], best[1], tuple(trials), tuple(harm))


def steps(model: ir.Model) -> int:
    """How often ``choose`` calls ``on_step`` if no layer goes back to float."""
    return 1 + len(calibrate.METHODS) + len(layers(model.graph))


def finish(quantized: Quantized, scheme: Scheme) -> ir.Model:
    """The chosen model after all rewrites, proved to run in integers.

    Raises:
        GateFailed: ONNX Runtime would run a layer in float that was quantised.
    """
    model = copy(quantized.model)
    for rewrite in rewrites.QUANTISED:
        rewrite(model)
    if not scheme.unsigned:
        return model  # TensorRT chooses its own kernels
    counts = operators_that_run(to_bytes(model))
    integer = sum(counts[name] for name in INTEGER_OPERATORS)
    floating = sum(counts[name] for name in FLOAT_OPERATORS)
    wanted = len(layers(model.graph)) - len(quantized.trial.float_layers)
    if integer != wanted or floating != len(quantized.trial.float_layers):
        raise GateFailed(
            f"integer kernels: {integer} layers run as integers where {wanted} should, {floating} run in float"
        )
    return model


def _harm(
    model: ir.Model,
    weights: dict[str, IntegerWeights],
    limits: dict[str, float],
    scheme: Scheme,
    pixels: npt.NDArray[np.uint8],
    reference: npt.NDArray[np.float32],
    on_step: Callable[[], None],
) -> list[LayerHarm]:
    found = []
    for node in layers(model.graph):
        others = [str(other.name) for other in layers(model.graph) if other is not node]
        alone = quantize(model, weights, limits, scheme, keep_float=others)
        logits = answers(onnx_runner(to_bytes(alone)), pixels)
        initializer = str(node.inputs[1].name) if node.inputs[1] else ""
        found.append(LayerHarm(str(node.name), initializer, _error(reference[: len(pixels)], logits)))
        on_step()
    return found


def _holds(comparison: Comparison) -> bool:
    loss, counted = comparison.loss_points, comparison.labelled or comparison.images
    # Too few images to prove it leave the proof to the gate.
    return (loss.high if counted >= smallest_gate_set() else loss.estimate) <= BUDGET_POINTS


def _error(reference: npt.NDArray[np.float32], logits: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean((reference - logits) ** 2)) / max(float(np.ptp(reference)), 1e-12))
