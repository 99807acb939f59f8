"""The least time that arithmetic, memory and the link to the host leave for a batch. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from alexnet_export.model import AlexNet
from alexnet_export.report.layers import SIDE, describe_layers

BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
PIXEL_BYTES = SIDE * SIDE * 3


@dataclass(frozen=True)
class Peaks:
    """What the device does at best: operations a second by precision, bytes a second of its memory and of its link."""

    operations: dict[str, float]
    memory: float
    link: float


@dataclass(frozen=True)
class Work:
    """One layer for one image: multiply-adds, weights and activations (in and out) as counts of numbers."""

    name: str
    multiply_adds: int
    weights: int
    activations: int


def layers_of(classes: int = 1000) -> list[Work]:
    """The layers with weights. Pools are taken to be free, so the bound is a lower one."""
    described = describe_layers(AlexNet(classes).eval())
    sizes = [(3, SIDE, SIDE), *(layer.measured for layer in described)]
    return [
        Work(layer.name, layer.multiply_adds, layer.parameters, prod(before) + prod(after))
        for layer, (before, after) in zip(described, pairwise(sizes), strict=True)
        if layer.parameters
    ]


def least_seconds(layers: list[Work], batch: int, precision: str, peaks: Peaks, *, from_host: bool = False) -> float:
    """Each layer takes the longer of its arithmetic and its traffic; with ``from_host`` the pixels come over the link.

    Copies overlap with the work of other batches, so the link is a bound of its own and not a summand.
    """
    size = BYTES[precision]
    on_device = sum(
        max(
            2 * layer.multiply_adds * batch / peaks.operations[precision],
            size * (layer.weights + layer.activations * batch) / peaks.memory,
        )
        for layer in layers
    )
    return max(on_device, batch * PIXEL_BYTES / peaks.link) if from_host else on_device
