"""How good a network is on a split, in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alexnet_export.data import Split, evaluation_batches
from alexnet_export.errors import UserError
from alexnet_export.model import Normalization

BATCH_SIZE = 90


@dataclass(frozen=True)
class Score:
    """Top-1 accuracy and mean cross-entropy over ``images`` images; ``unreadable`` has a line for each skipped file."""

    accuracy: float
    loss: float
    images: int
    unreadable: tuple[str, ...]


def evaluate(
    network: nn.Module, split: Split, normalization: Normalization, *, autocast: bool, limit: int | None = None
) -> Score:
    """Run the network over a split, or over its first ``limit`` images.

    Raises:
        UserError: not one image of the split could be read.
    """
    network.eval()
    device = next(network.parameters()).device
    right, loss, count = 0, 0.0, 0
    unreadable: list[str] = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        for batch in evaluation_batches(split, batch_size=BATCH_SIZE, limit=limit):
            unreadable += batch.unreadable
            if not len(batch.labels):
                continue
            labels = batch.labels.to(device)
            logits = network(normalize(batch.images.to(device), normalization)).float()
            right += int((logits.argmax(1) == labels).sum())
            loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
    if not count:
        raise UserError("not one image of the split could be read; are these JPEG, PNG or WebP files?")
    return Score(right / count, loss / count, count, tuple(unreadable))


def normalize(images: Tensor, normalization: Normalization) -> Tensor:
    """uint8 [N, 224, 224, 3] to float32 [N, 3, 224, 224] in channels_last order, normalised."""
    mean = torch.tensor(normalization.mean, device=images.device)
    std = torch.tensor(normalization.std, device=images.device)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)
