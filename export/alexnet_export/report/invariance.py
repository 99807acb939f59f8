"""How the answer and the conv5 features hold when the image is moved, scaled or turned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from alexnet_export.model import AlexNet, Normalization
from alexnet_export.report.layers import CHUNK, normalized

IMAGES = 96
CONV5 = 12
"""How many modules of ``features`` end with conv5's ReLU: 13 x 13 positions, before the last pool."""


@dataclass(frozen=True)
class Curve:
    """Over the sizes of one kind of transformation, means over the images.

    Attributes:
        kind: "shift", "scale" or "rotation".
        unit: of ``sizes``.
        sizes: how far.
        same_answer: share of images whose best class stays.
        logits: cosine of the logits with those of the untouched image.
        equivariance: cosine of the features of the transformed image with the transformed features.
        invariance: cosine of the features of the transformed image with the features of the untouched one.
    """

    kind: str
    unit: str
    sizes: list[float]
    same_answer: list[float]
    logits: list[float]
    equivariance: list[float]
    invariance: list[float]


KINDS: dict[str, tuple[str, list[float], Callable[[float], tuple[float, float, float]]]] = {
    # size -> (angle in radians, scale, shift to the right as a share of the side)
    "shift": ("pixels to the right", [-48, -32, -16, -8, -4, 0, 4, 8, 16, 32, 48], lambda size: (0, 1, size / 224)),
    "scale": ("times as large", [0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4], lambda size: (0, size, 0)),
    "rotation": ("degrees", [-45, -30, -20, -10, -5, 0, 5, 10, 20, 30, 45], lambda size: (math.radians(size), 1, 0)),
}


def curves(
    network: AlexNet,
    normalization: Normalization,
    pixels: npt.NDArray[np.uint8],
    *,
    on_step: Callable[[], None] = lambda: None,
) -> list[Curve]:
    """One curve for each of ``KINDS``, on uint8 [N, 224, 224, 3]; ``on_step`` is called ``steps()`` times.

    What moves in from outside the image repeats its edge. Features are compared where the transformed map has some.
    """
    images = normalized(torch.from_numpy(pixels[:IMAGES]), normalization)
    features, logits = _run(network, images)
    found = []
    for kind, (unit, sizes, parameters) in KINDS.items():
        rows = []
        for size in sizes:
            theta = _inverse(*parameters(size))
            moved_features, moved_logits = _run(network, warp(images, theta, padding="border"))
            expected, there = warp(features, theta), warp(torch.ones_like(features[:, :1]), theta) > 0.999
            rows.append(
                (
                    float((moved_logits.argmax(1) == logits.argmax(1)).float().mean()),
                    _cosine(moved_logits, logits),
                    _cosine(moved_features * there, expected * there),
                    _cosine(moved_features, features),
                )
            )
            on_step()
        found.append(Curve(kind, unit, list(sizes), *(list(column) for column in zip(*rows, strict=True))))
    return found


def steps() -> int:
    """How many transformations ``curves`` goes through."""
    return sum(len(sizes) for _, sizes, _ in KINDS.values())


def warp(images: Tensor, theta: Tensor, *, padding: str = "zeros") -> Tensor:
    """Resample [N, channels, side, side] bilinearly; ``theta`` [2, 3] maps output to input places from -1 to 1."""
    grid = functional.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def _inverse(angle: float, scale: float, shift: float) -> Tensor:
    """From output to input: the image is turned by ``angle``, made ``scale`` times as large and shifted to the right."""
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    return torch.tensor([[cosine, -sine, -2 * shift * cosine], [sine, cosine, -2 * shift * sine]])


def _run(network: AlexNet, images: Tensor) -> tuple[Tensor, Tensor]:
    features, logits = [], []
    with torch.inference_mode():
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            maps = network.features[:CONV5](chunk)
            features.append(maps)
            pooled = network.avgpool(network.features[CONV5:](maps))
            logits.append(network.classifier(torch.flatten(pooled, 1)))
    return torch.cat(features), torch.cat(logits)


def _cosine(left: Tensor, right: Tensor) -> float:
    return float(functional.cosine_similarity(left.flatten(1), right.flatten(1)).mean())
