"""The answers of a model on real images, at several batch sizes, for the gates to judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from alexnet_export.errors import GateFailed
from alexnet_export.runners import Pixels, Runner
from alexnet_export.to_onnx import MAX_BATCH_SIZE

BATCH_SIZES = (1, 2, 7, MAX_BATCH_SIZE)


def answers(
    run: Runner, pixels: Pixels, *, on_images: Callable[[int], None] = lambda images: None
) -> npt.NDArray[np.float32]:
    """Logits [N, classes] of ``pixels``: batches of each of ``BATCH_SIZES``, then of the largest.

    Args:
        run: who answers.
        pixels: uint8 [N, 224, 224, 3].
        on_images: called with the count of images done.

    Raises:
        GateFailed: a batch comes back in another shape, or with probabilities that are not its logits' softmax.
    """
    found = []
    for batch in _batches(pixels):
        logits, probabilities = run(batch)
        if logits.ndim != 2 or len(logits) != len(batch):
            raise GateFailed(f"answers: a batch of {len(batch)} gives logits of shape {list(logits.shape)}")
        if not np.allclose(probabilities, _softmax(logits), atol=1e-5, equal_nan=True):
            raise GateFailed(f"answers: in a batch of {len(batch)} the probabilities are not the softmax of the logits")
        found.append(logits)
        on_images(len(batch))
    return np.concatenate(found)


def _batches(pixels: Pixels) -> Iterator[Pixels]:
    start = 0
    for size in BATCH_SIZES:
        if start < len(pixels):
            yield pixels[start : start + size]
        start += size
    for begin in range(start, len(pixels), MAX_BATCH_SIZE):
        yield pixels[begin : begin + MAX_BATCH_SIZE]


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    exponents = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    softmax: npt.NDArray[np.float64] = exponents / exponents.sum(1, keepdims=True)
    return softmax
