"""A checkpoint on disk: a weights file, and a JSON card beside it that says what made it.

The card names its weights file by hash and is renamed into place last, so that a crash leaves either the old
checkpoint or the new one. Loading never unpickles code (``weights_only=True``).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alexnet_export.atomic import replace_file, sha256_file, write_text, writing
from alexnet_export.errors import UserError
from alexnet_export.model import AlexNet, Normalization, check_state_dict

CARD = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what is needed to serve it.

    Attributes:
        state_dict: float32 weights, torchvision's keys.
        labels: class names, in the order of the logits.
        normalization: of the pixels in front of the network.
        made_by: how it came about: training options, accuracy, versions of the tools; free-form JSON.
        sha256: of the weights file; empty before it is saved.
    """

    state_dict: Mapping[str, Tensor]
    labels: tuple[str, ...]
    normalization: Normalization
    made_by: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def network(self) -> AlexNet:
        """The network with these weights, in evaluation mode."""
        model = AlexNet(len(self.labels))
        model.load_state_dict(dict(self.state_dict))
        return model.eval()


def save(checkpoint: Checkpoint, directory: Path) -> Path:
    """Write the checkpoint into ``directory`` and return the path of its card. Older weights are removed last."""
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    partial = directory / "weights.partial"
    write_tensors(dict(checkpoint.state_dict), partial)
    digest = sha256_file(partial)
    weights = directory / f"weights-{digest[:16]}.pt"
    partial.replace(weights)
    card = {
        "architecture": "alexnet",
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
    return directory / CARD


def load(directory: Path) -> Checkpoint:
    """Read a checkpoint, checking its hash, its keys and its count of classes.

    Raises:
        UserError: there is none, or it is truncated, altered, or of another network.
    """
    card_path = directory / CARD
    try:
        card = json.loads(card_path.read_text())
        weights = directory / card["weights"]
        labels = tuple(card["labels"])
        normalization = Normalization(tuple(card["normalization"]["mean"]), tuple(card["normalization"]["std"]))
        digest = card["sha256"]
    except FileNotFoundError:
        raise UserError(f"{directory}: no checkpoint there; `make train` makes one") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{card_path}: not a checkpoint card ({error!r}); train again") from None
    if not weights.is_file():
        raise UserError(f"{weights}: missing though {card_path.name} names it; train again")
    if sha256_file(weights) != digest:
        raise UserError(f"{weights}: truncated or altered, its SHA-256 is not the one in {card_path.name}; train again")
    state_dict = read_state_dict(weights)
    check_state_dict(state_dict, len(labels), str(weights))
    return Checkpoint(state_dict, labels, normalization, card.get("made_by", {}), digest)


def write_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values for ``torch.load(weights_only=True)``, atomically.

    Raises:
        UserError: the disk is full or the place cannot be written; ``path`` is as it was.
    """
    with replace_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # what torch's zip writer makes of a failed write
            free = shutil.disk_usage(path.parent).free
            raise UserError(
                f"{path}: could not be written whole, its disk has {free / 1e6:,.0f} MB free; "
                "free some space and run this again"
            ) from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a ``torch.save``d state dict without executing anything from it.

    Raises:
        UserError: the file is missing, broken, or holds something else than named tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # noqa: BLE001  what is no such file makes torch raise a dozen types
        # torch's own text advises to load with weights_only=False, which would run whatever the file says.
        raise UserError(f"{path}: not a PyTorch state dict, or a damaged one ({type(error).__name__})") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: holds no state dict; save it with torch.save(model.state_dict(), path)")
    return content


def labels_digest(labels: Iterable[str]) -> str:
    """SHA-256 of the class names in order, for manifests."""
    return hashlib.sha256("\n".join(labels).encode()).hexdigest()
