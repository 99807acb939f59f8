"""Training options and the events of a training run. Pure data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from alexnet_client.errors import BadInput
from alexnet_export.model import FULL, Widths

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run. The defaults are those of the digits demo.

    Attributes:
        learning_rate: peak of the one-cycle schedule.
        precision: "auto" is bfloat16 autocast where the device has instructions for it, else float32.
        evaluation_limit: validation images of each evaluation; None for all.
        workers: processes that load images.
        widths: sizes of the layers.
    """

    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 4e-4
    weight_decay: float = 5e-4
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
        if not 0 <= self.dropout < 1:
            raise BadInput(f"--dropout must be in [0, 1), got {self.dropout}")
        if self.precision not in get_args(Precision):
            raise BadInput(f"--precision {self.precision}: unknown; choose one of {', '.join(get_args(Precision))}")


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
