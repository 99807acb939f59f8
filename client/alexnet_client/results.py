"""Results of a client: a classification, and the output tensors of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prediction:
    """One class with its probability in [0, 1]."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Classification:
    """The result for one image.

    Attributes:
        top: the most probable classes, most probable first.
        logits: float32 [classes].
        probabilities: float32 [classes].
        model_version: version that computed the result.
    """

    top: tuple[Prediction, ...]
    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    model_version: str

    @property
    def label(self) -> str:
        """Name of the most probable class."""
        return self.top[0].label

    @property
    def probability(self) -> float:
        """Probability of the most probable class."""
        return self.top[0].probability


@dataclass(frozen=True)
class BatchResult:
    """The output tensors of a batch, float32 [N, classes] each, and the model version that computed them."""

    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    model_version: str

    def rows(self, start: int, end: int) -> BatchResult:
        """The results of images ``start`` to ``end``, exclusive."""
        return BatchResult(self.logits[start:end], self.probabilities[start:end], self.model_version)

    @classmethod
    def joined(cls, parts: Sequence[BatchResult]) -> BatchResult:
        """The rows of all parts, in order. If the version changed between parts, the versions are joined: "1+2"."""
        return cls(
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
            "+".join(dict.fromkeys(part.model_version for part in parts)),
        )
