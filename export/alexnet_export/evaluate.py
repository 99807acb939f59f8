"""How good a network is on a split, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alexnet_export.data import Split, evaluation_batches
from alexnet_export.errors import UserError
from alexnet_export.model import Normalization


def evaluate(
    network: nn.Module, split: Split, normalization: Normalization, *, autocast: bool, limit: int | None = None
) -> tuple[float, float, int]:
    """Top-1 accuracy, mean cross-entropy and the count of readable images of a split.

    Raises:
        UserError: not one image of the split could be read.

    """
    network.eval()
    device = next(network.parameters()).device
    right, loss, count = 0, 0.0, 0
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        for batch in evaluation_batches(split, batch_size=90, limit=limit):
            if not len(batch.labels):
                continue
            labels = batch.labels.to(device)
            logits = network(normalize(batch.images.to(device), normalization)).float()
            right += int((logits.argmax(1) == labels).sum())
            loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
    if not count:
        raise UserError("not one image of the split could be read; are these JPEG, PNG or WebP files?")
    return right / count, loss / count, count


def normalize(images: Tensor, normalization: Normalization) -> Tensor:
    """uint8 [N, 224, 224, 3] to float32 [N, 3, 224, 224] in channels_last order, normalised."""
    mean = torch.tensor(normalization.mean, device=images.device)
    std = torch.tensor(normalization.std, device=images.device)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)
