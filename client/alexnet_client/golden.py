"""Golden answers of a release: a few images, and the logits that its engine computed for them when it was validated.

Whoever serves the release compares its own answers with them. ONNX Runtime 1.23 and 1.24, for example, had INT8 kernels that
were wrong on processors with AMX only (https://github.com/microsoft/onnxruntime/issues/26324).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet_client.errors import BadInput

GOLDEN = "golden.npz"
IMAGES = 8
LARGEST_ERROR = 0.005
"""Largest allowed root mean square of the differences, as a share of the range of the logits. Engines may round an 8-bit activation
differently: ONNX Runtime and OpenVINO differ by 0.00005 with the INT8 file of the digits (AMD EPYC with AVX2). Quantisation itself
changes the logits by 0.0008, and logits in another order differ by 0.26."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Golden:
    """Images (the input of the model, batch axis first) and logits float32 [N, classes]."""

    images: Array
    logits: Array

    def write(self, path: Path) -> None:
        """Write a compressed npz file."""
        np.savez_compressed(path, images=self.images, logits=self.logits)

    def batches(self) -> tuple[Golden, Golden]:
        """All images in one batch, and the first one alone: the batch size selects the kernels."""
        return self, Golden(self.images[:1], self.logits[:1])

    def mismatch(self, logits: Array) -> str:
        """Describe how logits of the same images differ from the golden ones; empty if they are equal within the tolerance."""
        if logits.shape != self.logits.shape:
            return f"logits have shape {list(logits.shape)}, expected {list(self.logits.shape)}"
        if not np.isfinite(logits).all():
            return f"{np.count_nonzero(~np.isfinite(logits))} logits are not finite"
        error = rms_error(self.logits, logits)
        if error > LARGEST_ERROR:
            return f"the RMS error of the logits is {error:.2g} of their range, the limit is {LARGEST_ERROR}"
        return ""


def rms_error(reference: Array, logits: Array) -> float:
    """Root mean square of the differences of the logits, as a share of the range of all logits of the reference."""
    return float(np.sqrt(np.mean((reference - logits) ** 2.0)) / max(float(np.ptp(reference)), 1e-12))


def read_golden(version: Path) -> Golden | None:
    """The golden answers in a version directory; None if the release has none.

    Raises:
        BadInput: the file is damaged.
    """
    path = version / GOLDEN
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            return Golden(content["images"], content["logits"])
    except Exception as error:  # noqa: BLE001  zipfile's, zlib's and numpy's exceptions have no common base
        raise BadInput(f"{path}: damaged ({error}); publish again: make export") from None
