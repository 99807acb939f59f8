"""Lower bound of the time of a batch from arithmetic, memory bandwidth and the link to the host (roofline). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from alexnet_export.model import SIDE, AlexNet
from alexnet_export.report.layers import describe_layers

BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
PIXEL_BYTES = SIDE * SIDE * 3


@dataclass(frozen=True)
class Peaks:
    """Peak rates of a device: operations/s by precision, bytes/s of its memory and of its link to the host."""

    operations: dict[str, float]
    memory: float
    link: float


@dataclass(frozen=True)
class Work:
    """Work of a layer for one image: multiply-adds, number of weights, number of activations (in and out)."""

    name: str
    multiply_adds: int
    weights: int
    activations: int


def layers_of(network: AlexNet) -> list[Work]:
    """The layers with weights. Pools are not counted, so the result is a lower bound."""
    described = describe_layers(network)
    sizes = [(3, SIDE, SIDE), *(layer.size for layer in described)]
    return [
        Work(layer.name, layer.multiply_adds, layer.parameters, prod(before) + prod(after))
        for layer, (before, after) in zip(described, pairwise(sizes), strict=True)
        if layer.parameters
    ]


def least_seconds(layers: list[Work], batch: int, precision: str, peaks: Peaks, *, from_host: bool = False) -> float:
    """Sum over the layers of the longer of arithmetic and memory traffic; with ``from_host`` at least the transfer time.

    Transfers overlap with the computation of other batches, so their time is not added.
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
