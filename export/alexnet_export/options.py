"""Training options and the events of a training run. Pure data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from alexnet_client.errors import BadInput
from alexnet_export.model import FULL, Widths

Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["onecycle", "cosine", "constant"]
Precision = Literal["auto", "fp32", "bf16"]
_CHOICES = {"optimizer": get_args(Optimizer), "schedule": get_args(Schedule), "precision": get_args(Precision)}


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run. The defaults are those of the digits demo.

    Attributes:
        optimizer: "sgd" is that of the 2012 paper: momentum 0.9 (section 5), with weight decay 5e-4 and rate 0.01.
        precision: "auto" is bfloat16 autocast where the device has instructions for it, else float32.
        evaluation_limit: validation images of each evaluation; None for all.
        workers: processes that load images.
        widths: sizes of the layers.
    """

    steps: int = 300
    batch_size: int = 32
    optimizer: Optimizer = "adamw"
    learning_rate: float = 4e-4
    weight_decay: float = 5e-4
    schedule: Schedule = "onecycle"
    label_smoothing: float = 0.0
    dropout: float = 0.2
    precision: Precision = "auto"
    evaluate_every: int = 75
    evaluation_limit: int | None = None
    seed: int = 0
    workers: int = 0
    widths: Widths = FULL

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "evaluate_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}")
        for name in ("seed", "workers", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadInput(f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}")
        for name in ("label_smoothing", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"--{name.replace('_', '-')} must be in [0, 1), got {getattr(self, name)}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise BadInput(f"--{name} {getattr(self, name)}: unknown; choose one of {', '.join(allowed)}")


@dataclass(frozen=True)
class StepDone:
    """One optimizer step: mean cross-entropy of its batch, and the files that were skipped as unreadable."""

    step: int
    loss: float
    learning_rate: float
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluated:
    """Validation after ``step`` steps: top-1 accuracy and mean cross-entropy over ``images`` readable images."""

    step: int
    accuracy: float
    loss: float
    images: int
    best: bool
    unreadable: tuple[str, ...] = ()


Event = StepDone | Evaluated
