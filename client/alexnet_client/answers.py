"""What a client is told: the model's signature, a classification, a batch of tensors. Records, no behaviour of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet_client.images import BLANK_FILE


@dataclass(frozen=True)
class ModelSignature:
    """What the server says of a model: its one input, its classes and the largest batch it accepts.

    ``encoded``: it reads image files instead of pixels.
    """

    input_name: str
    input_shape: tuple[int, ...]
    classes: int
    max_batch_size: int
    versions: tuple[str, ...]
    encoded: bool = False

    def blank(self) -> npt.NDArray[Any]:
        """A batch of one image with nothing on it, to ask the model with."""
        if self.encoded:
            return np.array([[BLANK_FILE]], object)
        return np.zeros([max(1, size) for size in self.input_shape], np.uint8)


@dataclass(frozen=True)
class Guess:
    """One class the model considered; ``probability`` in [0, 1]."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Classification:
    """The answer for one image.

    Attributes:
        top: the best guesses, best first.
        logits: float32 [classes].
        probabilities: float32 [classes].
        model_version: the release that answered.
    """

    top: tuple[Guess, ...]
    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    model_version: str

    @property
    def label(self) -> str:
        """Name of the best guess."""
        return self.top[0].label

    @property
    def probability(self) -> float:
        """Probability of the best guess."""
        return self.top[0].probability


@dataclass(frozen=True)
class BatchAnswer:
    """The tensors for a batch: float32 [N, classes] each, and the release that answered."""

    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    model_version: str
