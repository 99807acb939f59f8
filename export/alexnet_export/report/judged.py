"""What the network gets right and wrong on the test images: confusion, confidence, the worst mistakes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 10
WORST = 12
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Mistake:
    """One image in the wrong class: its place in the set, and the network's probability of its answer."""

    index: int
    truth: str
    answer: str
    probability: float


@dataclass(frozen=True)
class Confidence:
    """One bin of the reliability diagram: images whose best probability lies in it, its mean, and the share right."""

    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Judged:
    """Figures over labelled images.

    Attributes:
        images: how many.
        accuracy: top-1.
        confusion: [truth][answer] counts.
        per_class: accuracy of each class; None for one without images.
        mistakes: the most confident ones first.
        confidence: bins from 0 to 1.
        calibration_error: expected calibration error (Guo et al., 2017, eq. 3), over ``BINS`` bins.
    """

    images: int
    accuracy: float
    confusion: list[list[int]]
    per_class: list[float | None]
    mistakes: list[Mistake]
    confidence: list[Confidence]
    calibration_error: float


def judge_answers(logits: Array, truth: npt.NDArray[np.int64], labels: tuple[str, ...]) -> Judged:
    """Count what logits [N, classes] get right of ``truth`` [N]."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    answers, best = probabilities.argmax(1), probabilities.max(1)
    right = answers == truth
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (truth, answers), 1)
    wrong = np.flatnonzero(~right)
    worst = wrong[np.argsort(-best[wrong], kind="stable")][:WORST]
    place = np.minimum((best * BINS).astype(int), BINS - 1)
    bins = [
        Confidence(int(inside.sum()), float(best[inside].mean()), float(right[inside].mean()))
        for inside in (place == number for number in range(BINS))
        if inside.any()
    ]
    return Judged(
        images=len(truth),
        accuracy=float(right.mean()),
        confusion=confusion.tolist(),
        per_class=[float(row[n] / row.sum()) if row.sum() else None for n, row in enumerate(confusion)],
        mistakes=[
            Mistake(int(index), labels[truth[index]], labels[answers[index]], float(best[index])) for index in worst
        ],
        confidence=bins,
        calibration_error=float(sum(each.images * abs(each.accuracy - each.confidence) for each in bins) / len(truth)),
    )


def top_confusions(judged: Judged, labels: tuple[str, ...], count: int = 15) -> list[tuple[str, str, int]]:
    """The pairs (truth, answer, images) that are mistaken most often."""
    pairs = [
        (labels[truth], labels[answer], images)
        for truth, row in enumerate(judged.confusion)
        for answer, images in enumerate(row)
        if truth != answer and images
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:count]
