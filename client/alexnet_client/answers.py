"""What a client is told: the model's signature, a classification, a batch of tensors. Records, no behaviour of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet_client.codec import DTYPES
from alexnet_client.errors import BadInput
from alexnet_client.images import BLANK_FILE


@dataclass(frozen=True)
class ModelSignature:
    """What the server says of a model: its one input, its classes and the largest batch it accepts.

    ``datatype`` of the input is the protocol's name of it.
    """

    input_name: str
    input_shape: tuple[int, ...]
    classes: int
    max_batch_size: int
    versions: tuple[str, ...]
    datatype: str = "UINT8"

    @property
    def encoded(self) -> bool:
        """Whether it reads image files instead of pixels."""
        return self.datatype == "BYTES"

    def check(self, images: npt.NDArray[Any]) -> None:
        """Raises ``BadInput`` for a batch that the model cannot read: the server would refuse others along with it."""
        wanted = [size if size > 0 else "N" for size in self.input_shape]
        dtype = np.dtype(object) if self.encoded else DTYPES.get(self.datatype)
        shape_fits = images.ndim == len(wanted) and all(
            size in ("N", found) for size, found in zip(wanted, images.shape, strict=True)
        )
        if not shape_fits or not len(images) or images.dtype != dtype:
            kind = "file contents (dtype object)" if self.encoded else self.datatype.lower()
            raise BadInput(f"a batch is {kind} {wanted}, this one is {images.dtype} {list(images.shape)}")

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

    @classmethod
    def joined(cls, parts: Sequence[BatchAnswer]) -> BatchAnswer:
        """The rows of all, in order; if the release was switched meanwhile, the versions are joined too: "1+2"."""
        return cls(
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
            "+".join(dict.fromkeys(part.model_version for part in parts)),
        )
