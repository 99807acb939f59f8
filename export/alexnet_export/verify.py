"""The parity gate: the ONNX file must give PyTorch's answers before anything is published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import Split, evaluation_batches
from alexnet_export.errors import GateFailed, UserError
from alexnet_export.model import ServedModel
from alexnet_export.to_onnx import INPUT, MAX_BATCH_SIZE, OUTPUTS

TOLERANCE = 1e-4
"""Largest |difference| of a logit, as a share of the range of all logits."""
MINIMUM_IMAGES = 500
BATCH_SIZES = (1, 2, 7, MAX_BATCH_SIZE)
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime's answers are from PyTorch's.

    Attributes:
        images: how many were compared.
        max_logit_difference: largest |difference|, as a share of the range of all logits.
        same_top1: images whose best class is the same.
        accuracy: top-1 of the ONNX file on these images; None without truth.
        batch_sizes: the sizes that were run.

    """

    images: int
    max_logit_difference: float
    same_top1: int
    accuracy: float | None
    batch_sizes: tuple[int, ...]


def verify(
    checkpoint: Checkpoint,
    path: Path,
    images: Split,
    *,
    has_truth: bool = True,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Parity:
    """Compare the file with the network it came from on at least ``MINIMUM_IMAGES`` images.

    Args:
        checkpoint: the source.
        path: the ONNX file.
        images: real ones; more than ``MINIMUM_IMAGES`` are not looked at beyond a whole round of batch sizes.
        has_truth: whether the labels of ``images`` are this network's classes.
        on_batch: called with the count of images done.

    Raises:
        GateFailed: a gate failed; the text says which and by how much.
        UserError: there are too few readable images.

    """
    reference = ServedModel(checkpoint.network(), checkpoint.normalization).eval()
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    theirs: list[Array] = []
    ours: list[Array] = []
    truth: list[npt.NDArray[np.int64]] = []
    sizes: set[int] = set()
    for pixels, labels in _in_batches_of(images, BATCH_SIZES, MINIMUM_IMAGES):
        with torch.inference_mode():
            logits, _ = reference(torch.from_numpy(pixels))
        answer, probabilities = session.run(list(OUTPUTS), {INPUT: pixels})
        if answer.shape != tuple(logits.shape) or not np.allclose(probabilities.sum(1), 1, atol=1e-5):
            raise GateFailed(
                f"{path.name}: a batch of {len(pixels)} gives {answer.shape}, or probabilities not adding to 1"
            )
        ours.append(logits.numpy())
        theirs.append(answer)
        truth.append(labels)
        sizes.add(len(pixels))
        on_batch(len(pixels))
    if sum(map(len, ours)) < MINIMUM_IMAGES:
        raise UserError(
            f"{sum(map(len, ours))} readable images to compare on, {MINIMUM_IMAGES} are needed; add some to the test split"
        )
    parity = compare(np.concatenate(ours), np.concatenate(theirs), sizes)
    if not has_truth:
        return parity
    right = np.concatenate(theirs).argmax(1) == np.concatenate(truth)
    return Parity(parity.images, parity.max_logit_difference, parity.same_top1, float(right.mean()), parity.batch_sizes)


def compare(reference: Array, answer: Array, sizes: set[int]) -> Parity:
    """Judge logits [N, classes] of both sides.

    Raises:
        GateFailed: they differ by more than ``TOLERANCE``, in the best class of an image, or one is not finite.

    """
    if not np.isfinite(answer).all():
        raise GateFailed(f"parity: {np.count_nonzero(~np.isfinite(answer))} logits are not finite")
    difference = float(np.abs(reference - answer).max() / max(float(np.ptp(reference)), 1e-12))
    same = int((reference.argmax(1) == answer.argmax(1)).sum())
    if difference > TOLERANCE:
        raise GateFailed(
            f"parity: a logit differs by {difference:.2e} of the logits' range, {TOLERANCE:.0e} is allowed"
        )
    if same < len(reference):
        raise GateFailed(f"parity: {len(reference) - same} of {len(reference)} images get another best class")
    return Parity(len(reference), difference, same, None, tuple(sorted(sizes)))


def _in_batches_of(
    images: Split, sizes: tuple[int, ...], minimum: int
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Batches of each size in turn, then of the largest, until ``minimum`` images or the end."""
    pixels, labels = np.empty((0, 224, 224, 3), np.uint8), np.empty(0, np.int64)
    wanted = [*sizes, *[sizes[-1]] * -(-minimum // sizes[-1])]
    done = 0
    for batch in evaluation_batches(images, batch_size=sizes[-1]):
        pixels = np.concatenate([pixels, batch.images.numpy()])
        labels = np.concatenate([labels, batch.labels.numpy()])
        while wanted and len(pixels) >= wanted[0] and done < minimum:
            size = wanted.pop(0)
            yield pixels[:size], labels[:size]
            pixels, labels, done = pixels[size:], labels[size:], done + size
    if len(pixels) and done < minimum:
        yield pixels, labels
