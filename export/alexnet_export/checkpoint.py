"""A checkpoint on disk: a weights file, and a JSON card that describes it.

The card contains the hash of its weights file and is renamed into place last. After a crash, the directory contains
either the old checkpoint or the new one. Loading never executes pickled code (``weights_only=True``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alexnet_client.errors import BadInput
from alexnet_client.files import replace_file, sha256_file, write_text, writing
from alexnet_export.model import FULL, AlexNet, Normalization, Widths, check_state_dict

CARD = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and everything that is needed to serve it.

    Attributes:
        state_dict: float32 weights with torchvision's keys.
        labels: class names in the order of the logits.
        normalization: applied to the pixels before the network.
        made_by: training options, accuracy and tool versions; free-form JSON.
        sha256: of the weights file; empty before the checkpoint is saved.
        widths: sizes of the layers.
    """

    state_dict: Mapping[str, Tensor]
    labels: tuple[str, ...]
    normalization: Normalization
    made_by: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""
    widths: Widths = FULL

    def network(self) -> AlexNet:
        """The network with these weights, in evaluation mode."""
        model = AlexNet(len(self.labels), widths=self.widths)
        model.load_state_dict(dict(self.state_dict))
        return model.eval()


def save(checkpoint: Checkpoint, directory: Path) -> None:
    """Write the checkpoint to ``directory`` and remove older weights.

    Raises:
        BadInput: the disk is full or the directory is not writable; the old checkpoint is unchanged.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    partial = directory / "weights.partial"
    write_tensors(dict(checkpoint.state_dict), partial)
    digest = sha256_file(partial)
    weights = directory / f"weights-{digest[:16]}.pt"
    partial.replace(weights)
    card = {
        "architecture": {"name": "alexnet", **asdict(checkpoint.widths)},
        "classes": len(checkpoint.labels),
        "labels": list(checkpoint.labels),
        "normalization": asdict(checkpoint.normalization),
        "weights": weights.name,
        "sha256": digest,
        "made_by": dict(checkpoint.made_by),
    }
    write_text(directory / CARD, json.dumps(card, indent=2) + "\n")
    for old in directory.glob("weights-*.pt"):
        if old != weights:
            old.unlink()


def load(directory: Path) -> Checkpoint:
    """Read a checkpoint and check its hash, its keys and its number of classes.

    Raises:
        BadInput: there is no checkpoint, or it is truncated, altered, or of another network.
    """
    card_path = directory / CARD
    try:
        card = json.loads(card_path.read_text())
        weights = directory / card["weights"]
        labels = tuple(card["labels"])
        normalization = Normalization(tuple(card["normalization"]["mean"]), tuple(card["normalization"]["std"]))
        widths = Widths(tuple(card["architecture"]["channels"]), card["architecture"]["hidden"])
        digest = card["sha256"]
    except FileNotFoundError:
        raise BadInput(f"{directory}: no checkpoint found; create one with `make train`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{card_path}: not a valid checkpoint card ({error!r}); train again") from None
    if not weights.is_file():
        raise BadInput(f"{weights}: missing, but listed in {card_path.name}; train again")
    if sha256_file(weights) != digest:
        raise BadInput(
            f"{weights}: truncated or altered (its SHA-256 differs from the one in {card_path.name}); train again"
        )
    state_dict = read_state_dict(weights)
    check_state_dict(state_dict, len(labels), str(weights), widths=widths)
    return Checkpoint(state_dict, labels, normalization, card.get("made_by", {}), digest, widths)


def write_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values for ``torch.load(weights_only=True)``, atomically.

    Raises:
        BadInput: the disk is full or the directory is not writable; ``path`` is unchanged.
    """
    with replace_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's zip writer turns a failed write into this
            free = shutil.disk_usage(path.parent).free
            raise BadInput(
                f"{path}: could not be written completely, its disk has {free / 1e6:,.0f} MB free; "
                "free some space and run the command again"
            ) from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict written by ``torch.save`` without executing code from it.

    Raises:
        BadInput: the file is missing or damaged, or does not contain named tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except Exception as error:  # noqa: BLE001  torch raises a dozen types for a damaged file
        # torch's own text suggests weights_only=False, which would execute code from the file.
        raise BadInput(f"{path}: not a PyTorch state dict, or damaged ({type(error).__name__})") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BadInput(f"{path}: contains no state dict; save it with torch.save(model.state_dict(), path)")
    return content
