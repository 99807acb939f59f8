"""What a model must prove before it is published: equal answers, or a loss of accuracy that is surely small. Pure.

The loss is paired: both models answer the same images, so only those count that one gets right and the other wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alexnet_export.errors import GateFailed, UserError

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

PARITY_TOLERANCE = 1e-4
"""Largest |difference| of a logit, as a share of the range of all logits, for a float32 file."""
BUDGET_POINTS = 0.5
"""Largest loss of top-1 accuracy of a quantised file, in percentage points; the interval's upper end counts."""
_Z95 = 1.959964


@dataclass(frozen=True)
class Loss:
    """Top-1 accuracy lost against the reference, in percentage points, with its 95 % interval; negative is a gain."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Judgement:
    """How a model's answers compare with its reference's on the same images.

    Attributes:
        images: how many were compared.
        labelled: on how many of them the accuracy and its loss were counted.
        top1: accuracy on the labelled images; None if there are none.
        reference_top1: the reference's.
        loss_points: accuracy lost. Without labels the reference's answer is taken for the truth: top-1 cannot be lost
            on more images than get another best class.
        agreement: share of all images with the same best class.
        max_logit_difference: largest |difference|, as a share of the range of all the reference's logits.
    """

    images: int
    labelled: int
    top1: float | None
    reference_top1: float | None
    loss_points: Loss
    agreement: float
    max_logit_difference: float


def judge(reference: Array, answer: Array, labels: Labels) -> Judgement:
    """Compare logits [N, classes]; ``labels`` [N] are -1 where the truth is not known.

    Raises:
        GateFailed: the shapes differ, or a logit is not finite.
    """
    if answer.shape != reference.shape:
        raise GateFailed(f"answers: logits of shape {list(answer.shape)} where {list(reference.shape)} is expected")
    if not np.isfinite(answer).all():
        raise GateFailed(f"answers: {np.count_nonzero(~np.isfinite(answer))} logits are not finite")
    ours, theirs, known = reference.argmax(1), answer.argmax(1), labels >= 0
    truth = labels[known] if known.any() else ours
    compared = known if known.any() else np.ones(len(labels), bool)
    right, right_before = theirs[compared] == truth, ours[compared] == truth
    return Judgement(
        images=len(labels),
        labelled=int(known.sum()),
        top1=float(right.mean()) if known.any() else None,
        reference_top1=float(right_before.mean()) if known.any() else None,
        loss_points=paired_loss(
            lost=int((right_before & ~right).sum()), won=int((~right_before & right).sum()), images=len(truth)
        ),
        agreement=float((ours == theirs).mean()),
        max_logit_difference=float(np.abs(reference - answer).max() / max(float(np.ptp(reference)), 1e-12)),
    )


def paired_loss(*, lost: int, won: int, images: int) -> Loss:
    """The loss from the images that only one of two models gets right.

    The interval is Agresti and Min's (Statistics in Medicine 24, 2005): Wald's for the difference of paired proportions
    with half an image added to each of the four cells, so that no difference seen is not taken for none there is.
    """
    n, b, c = images + 2, lost + 0.5, won + 0.5
    center = (b - c) / n
    margin = _Z95 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return Loss(100 * (lost - won) / images, 100 * (center - margin), 100 * (center + margin))


def smallest_gate_set(budget_points: float = BUDGET_POINTS) -> int:
    """How many images it takes until two models that never differ can prove a loss of at most the budget."""
    return math.ceil(_Z95 / (budget_points / 100) - 2)


def check_parity(judgement: Judgement) -> None:
    """The gate of a float32 file: PyTorch's answers.

    Raises:
        GateFailed: a logit or a best class differs; the text says by how much.
    """
    if judgement.max_logit_difference > PARITY_TOLERANCE:
        raise GateFailed(
            f"parity: a logit differs by {judgement.max_logit_difference:.2e} of the logits' range, "
            f"{PARITY_TOLERANCE:.0e} is allowed"
        )
    different = round((1 - judgement.agreement) * judgement.images)
    if different:
        raise GateFailed(f"parity: {different} of {judgement.images} images get another best class")


def check_loss(judgement: Judgement, budget_points: float = BUDGET_POINTS) -> None:
    """The gate of a file with less precision: the loss of accuracy, with its interval, stays within the budget.

    Raises:
        GateFailed: it may be larger; the text says by how much.
        UserError: the images are too few to tell.
    """
    counted, needed = judgement.labelled or judgement.images, smallest_gate_set(budget_points)
    if counted < needed:
        raise UserError(
            f"accuracy: {counted} images cannot prove a loss of at most {budget_points} points, {needed} are needed; "
            "add test images, or publish with PRECISION=fp32"
        )
    loss = judgement.loss_points
    if loss.high > budget_points:
        what = "top-1" if judgement.labelled else "images with another best class (no labels of this network's classes)"
        raise GateFailed(
            f"accuracy: {what} {loss.estimate:+.2f} points against fp32, 95 % interval {loss.low:.2f} to "
            f"{loss.high:.2f} on {counted} images; at most {budget_points} is allowed"
        )
