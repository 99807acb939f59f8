"""The parity gate: the ONNX file must give PyTorch's answers before anything is published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import Batch, DataSet, Split, evaluation_batches
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
        batch_sizes: the sizes that were run.
        accuracy: top-1 of the ONNX file on the images whose truth is known; None if there are none.
        unreadable: a line for each file that was skipped.
    """

    images: int
    max_logit_difference: float
    same_top1: int
    batch_sizes: tuple[int, ...]
    accuracy: float | None = None
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class GateImages:
    """What to compare on: the test split, then validation and training images if it is too small for the gate.

    Only a test image of the network's own classes keeps its label, others have -1: accuracy is a matter of held-out
    images, equality of any.
    """

    dataset: DataSet
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.dataset.test) + len(self.dataset.validation) + len(self.dataset.train)

    def sample(self, index: int, epoch: int) -> tuple[npt.NDArray[np.uint8], int]:
        tested = index < len(self.dataset.test)
        if tested:  # in an order of its own, because folders come by class and not all may be looked at
            index = int(np.random.default_rng(0).permutation(len(self.dataset.test))[index])
        for split in (self.dataset.test, self.dataset.validation, self.dataset.train):
            if index < len(split):
                break
            index -= len(split)
        pixels, label = split.sample(index, epoch)
        return pixels, label if tested and self.labels == self.dataset.labels else -1


def verify(
    checkpoint: Checkpoint, path: Path, dataset: DataSet, *, on_batch: Callable[[int], None] = lambda images: None
) -> Parity:
    """Compare the file with the network it came from on at least ``MINIMUM_IMAGES`` images.

    Args:
        checkpoint: the source.
        path: the ONNX file.
        dataset: real images; see ``GateImages`` for which of them.
        on_batch: called with the count of images done.

    Raises:
        GateFailed: a gate failed; the text says which and by how much.
        UserError: there are too few readable images.
    """
    reference = ServedModel(checkpoint.network(), checkpoint.normalization).eval()
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    theirs, ours, truth = [], [], []
    unreadable: list[str] = []
    for batch in _in_batches_of(GateImages(dataset, checkpoint.labels), BATCH_SIZES, MINIMUM_IMAGES):
        with torch.inference_mode():
            logits, _ = reference(batch.images)
        answer, probabilities = session.run(list(OUTPUTS), {INPUT: batch.images.numpy()})
        if answer.shape != tuple(logits.shape) or not np.allclose(probabilities.sum(1), 1, atol=1e-5):
            raise GateFailed(
                f"parity: a batch of {len(logits)} gives logits {answer.shape}, or probabilities that do not add to 1"
            )
        ours.append(logits.numpy())
        theirs.append(answer)
        truth.append(batch.labels.numpy())
        unreadable += batch.unreadable
        on_batch(len(logits))
    count = sum(map(len, ours))
    if count < MINIMUM_IMAGES:
        raise UserError(f"{count} readable images to compare on, {MINIMUM_IMAGES} are needed; add some to the data set")
    parity = compare(np.concatenate(ours), np.concatenate(theirs), set(map(len, ours)))
    labels = np.concatenate(truth)
    known = labels >= 0
    right = np.concatenate(theirs).argmax(1)[known] == labels[known]
    return replace(parity, accuracy=float(right.mean()) if known.any() else None, unreadable=tuple(unreadable))


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
    return Parity(len(reference), difference, same, tuple(sorted(sizes)))


def _in_batches_of(images: Split, sizes: tuple[int, ...], minimum: int) -> Iterator[Batch]:
    """Batches of each size in turn, then of the largest, until ``minimum`` images or the end."""
    wanted = [*sizes, *[sizes[-1]] * -(-minimum // sizes[-1])]
    waiting, done = Batch(torch.empty(0, 224, 224, 3, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), ()), 0
    for batch in evaluation_batches(images, batch_size=sizes[-1]):
        waiting = Batch(
            torch.cat([waiting.images, batch.images]),
            torch.cat([waiting.labels, batch.labels]),
            waiting.unreadable + batch.unreadable,
        )
        while len(waiting.labels) >= wanted[0]:
            size = wanted.pop(0)
            yield Batch(waiting.images[:size], waiting.labels[:size], waiting.unreadable)
            waiting, done = Batch(waiting.images[size:], waiting.labels[size:], ()), done + size
            if done >= minimum:
                return
    if len(waiting.labels):
        yield waiting
