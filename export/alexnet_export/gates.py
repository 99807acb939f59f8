"""The gates of a release: equal logits, or a loss of accuracy that is small with 95 % confidence. Pure.

The loss is paired: both models classify the same images, and only images that exactly one of them classifies correctly
count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alexnet_client.errors import BadInput
from alexnet_export.errors import GateFailed

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

PARITY_TOLERANCE = 1e-4
"""Largest allowed |difference| of a logit of a float32 file, as a share of the range of all logits."""
BUDGET_POINTS = 0.5
"""Largest allowed loss of top-1 accuracy of other files, percentage points; applies to the upper end of the interval."""
_Z95 = 1.959964


@dataclass(frozen=True)
class Loss:
    """Loss of top-1 accuracy, percentage points, with its 95 % interval; a negative loss is a gain."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Answers of a model compared with those of the reference on the same images.

    Attributes:
        images: number of images.
        labelled: images with a known class; only these count for the accuracy and its loss.
        top1: accuracy on the labelled images; None without labelled images.
        reference_top1: accuracy of the reference.
        loss_points: accuracy lost. Without labels, the class of the reference counts as correct: this is an upper
            bound, because top-1 accuracy cannot change on more images than the best class.
        agreement: share of all images with the same best class.
        max_logit_difference: largest |difference|, as a share of the range of all logits of the reference.
    """

    images: int
    labelled: int
    top1: float | None
    reference_top1: float | None
    loss_points: Loss
    agreement: float
    max_logit_difference: float


def softmax(logits: Array) -> npt.NDArray[np.float64]:
    """Probabilities float64 [N, classes] of logits [N, classes]."""
    exponents = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = exponents / exponents.sum(1, keepdims=True)
    return probabilities


def relative_difference(reference: Array, answer: Array) -> float:
    """Largest |difference| of a logit, as a share of the range of all logits of the reference."""
    return float(np.abs(reference - answer).max() / max(float(np.ptp(reference)), 1e-12))


def compare(reference: Array, answer: Array, labels: Labels) -> Comparison:
    """Compare logits [N, classes]; ``labels`` [N] are -1 where the class is unknown.

    Raises:
        GateFailed: the shapes differ, or a logit is not finite.
    """
    if answer.shape != reference.shape:
        raise GateFailed(f"answers: logits have shape {list(answer.shape)}, expected {list(reference.shape)}")
    if not np.isfinite(answer).all():
        raise GateFailed(f"answers: {np.count_nonzero(~np.isfinite(answer))} logits are not finite")
    reference_class, answer_class, known = reference.argmax(1), answer.argmax(1), labels >= 0
    truth = labels[known] if known.any() else reference_class
    compared = known if known.any() else np.ones(len(labels), bool)
    right, right_before = answer_class[compared] == truth, reference_class[compared] == truth
    return Comparison(
        images=len(labels),
        labelled=int(known.sum()),
        top1=float(right.mean()) if known.any() else None,
        reference_top1=float(right_before.mean()) if known.any() else None,
        loss_points=paired_loss(
            lost=int((right_before & ~right).sum()), won=int((~right_before & right).sum()), images=len(truth)
        ),
        agreement=float((reference_class == answer_class).mean()),
        max_logit_difference=relative_difference(reference, answer),
    )


def paired_loss(*, lost: int, won: int, images: int) -> Loss:
    """Loss from the numbers of images that only the reference (``lost``) or only the model (``won``) gets right.

    The interval is that of Agresti and Min (Statistics in Medicine 24, 2005): Wald's interval for the difference of
    paired proportions with half an image added to each of the four cells. It has a width above zero even if no image
    differs.
    """
    n, b, c = images + 2, lost + 0.5, won + 0.5
    center = (b - c) / n
    margin = _Z95 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return Loss(100 * (lost - won) / images, 100 * (center - margin), 100 * (center + margin))


def smallest_gate_set() -> int:
    """Number of images with which two identical models pass the accuracy gate; with fewer, no model can pass."""
    return math.ceil(_Z95 / (BUDGET_POINTS / 100) - 2)


def check_parity(comparison: Comparison) -> None:
    """Gate of a float32 file: logits and best classes equal PyTorch's.

    Raises:
        GateFailed: a logit or a best class differs.
    """
    if comparison.max_logit_difference > PARITY_TOLERANCE:
        raise GateFailed(
            f"parity: a logit differs by {comparison.max_logit_difference:.2e} of the range of the logits; "
            f"the limit is {PARITY_TOLERANCE:.0e}"
        )
    different = round((1 - comparison.agreement) * comparison.images)
    if different:
        raise GateFailed(f"parity: {different} of {comparison.images} images have another best class")


def check_loss(comparison: Comparison) -> None:
    """Gate of a file with reduced precision: the 95 % interval of the loss of accuracy is within the budget.

    Raises:
        GateFailed: the loss may be larger.
        BadInput: there are too few images for a decision.
    """
    counted, needed = comparison.labelled or comparison.images, smallest_gate_set()
    if counted < needed:
        raise BadInput(
            f"accuracy: {counted} images are too few to validate a loss of at most {BUDGET_POINTS} points, {needed} are "
            "required; add test images, or publish with PRECISION=fp32"
        )
    loss = comparison.loss_points
    if loss.high > BUDGET_POINTS:
        metric = (
            "top-1 loss"
            if comparison.labelled
            else "share of images with another best class (no image has a label of this network)"
        )
        raise GateFailed(
            f"accuracy: {metric} {loss.estimate:+.2f} points against fp32, 95 % interval {loss.low:.2f} to "
            f"{loss.high:.2f} on {counted} images; the limit is {BUDGET_POINTS}"
        )
