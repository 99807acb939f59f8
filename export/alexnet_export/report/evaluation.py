"""Evaluation of logits on labelled images: confusion matrix, calibration, most confident mistakes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alexnet_export.gates import softmax

BINS = 10
MISTAKES = 12
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Mistake:
    """A misclassified image: its index, the true and the predicted class, and the probability of the predicted one."""

    index: int
    truth: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class ConfidenceBin:
    """Images whose highest probability is in one bin: their number, its mean, and their accuracy."""

    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics over labelled images.

    Attributes:
        images: number of images.
        accuracy: top-1.
        confusion: counts by [truth][predicted].
        per_class: accuracy of each class; None for a class without images.
        mistakes: the most confident ones first.
        confidence: non-empty bins from 0 to 1.
        calibration_error: expected calibration error (Guo et al., 2017, eq. 3), over ``BINS`` bins.
    """

    images: int
    accuracy: float
    confusion: list[list[int]]
    per_class: list[float | None]
    mistakes: list[Mistake]
    confidence: list[ConfidenceBin]
    calibration_error: float


def evaluate_logits(logits: Array, truth: npt.NDArray[np.int64], labels: tuple[str, ...]) -> Evaluation:
    """Compare logits [N, classes] with the true classes [N]."""
    probabilities = softmax(logits)
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    right = predicted == truth
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    wrong = np.flatnonzero(~right)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [
        ConfidenceBin(int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean()))
        for inside in (bin_of == number for number in range(BINS))
        if inside.any()
    ]
    return Evaluation(
        images=len(truth),
        accuracy=float(right.mean()),
        confusion=confusion.tolist(),
        per_class=[float(row[n] / row.sum()) if row.sum() else None for n, row in enumerate(confusion)],
        mistakes=[
            Mistake(int(index), labels[truth[index]], labels[predicted[index]], float(confidence[index]))
            for index in worst
        ],
        confidence=bins,
        calibration_error=float(sum(each.images * abs(each.accuracy - each.confidence) for each in bins) / len(truth)),
    )


def top_confusions(evaluation: Evaluation, labels: tuple[str, ...], count: int = 15) -> list[tuple[str, str, int]]:
    """The most frequent pairs (truth, predicted, images)."""
    pairs = [
        (labels[truth], labels[predicted], images)
        for truth, row in enumerate(evaluation.confusion)
        for predicted, images in enumerate(row)
        if truth != predicted and images
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:count]
