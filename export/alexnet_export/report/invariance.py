"""Change of the predicted class and of the conv5 features when the image is shifted, scaled or rotated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from alexnet_export.model import SIDE, AlexNet, Normalization, Normalize
from alexnet_export.report.layers import BATCH_SIZE

IMAGES = 96
CONV5 = 12
"""Number of modules of ``features`` up to conv5's ReLU: 13 x 13 positions, before the last pool."""


@dataclass(frozen=True)
class Curve:
    """Means over the images for each size of a transformation.

    Attributes:
        kind: "shift", "scale" or "rotation".
        unit: of ``sizes``.
        sizes: of the transformation.
        same_class: share of images with the same best class as without the transformation.
        logits: cosine similarity of the logits to those of the original image.
        equivariance: cosine similarity of the features of the transformed image to the transformed features.
        invariance: cosine similarity of the features of the transformed image to those of the original image.
    """

    kind: str
    unit: str
    sizes: list[float]
    same_class: list[float]
    logits: list[float]
    equivariance: list[float]
    invariance: list[float]


KINDS: dict[str, tuple[str, list[float], Callable[[float], tuple[float, float, float]]]] = {
    # size -> (angle in radians, scale, shift to the right as a share of the side)
    "shift": ("pixels to the right", [-48, -32, -16, -8, -4, 0, 4, 8, 16, 32, 48], lambda size: (0, 1, size / SIDE)),
    "scale": ("scale factor", [0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4], lambda size: (0, size, 0)),
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

    Pixels from outside the image repeat its edge. Features are compared where the transformed map is defined.
    """
    images = Normalize(normalization)(torch.from_numpy(pixels)).contiguous()
    features, logits = _run(network, images)
    found = []
    for kind, (unit, sizes, parameters) in KINDS.items():
        rows = []
        for size in sizes:
            theta = _inverse(*parameters(size))
            moved_features, moved_logits = _run(network, warp(images, theta, padding="border"))
            expected, defined = warp(features, theta), warp(torch.ones_like(features[:, :1]), theta) > 0.999
            rows.append(
                (
                    float((moved_logits.argmax(1) == logits.argmax(1)).float().mean()),
                    _cosine(moved_logits, logits),
                    _cosine(moved_features * defined, expected * defined),
                    _cosine(moved_features, features),
                )
            )
            on_step()
        found.append(Curve(kind, unit, list(sizes), *(list(column) for column in zip(*rows, strict=True))))
    return found


def steps() -> int:
    """Number of transformations in ``curves``."""
    return sum(len(sizes) for _, sizes, _ in KINDS.values())


def warp(images: Tensor, theta: Tensor, *, padding: str = "zeros") -> Tensor:
    """Resample [N, channels, side, side] bilinearly; ``theta`` [2, 3] maps output to input positions from -1 to 1."""
    grid = functional.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def _inverse(angle: float, scale: float, shift: float) -> Tensor:
    """Map from output to input: rotate by ``angle`` radians, scale by ``scale``, shift to the right by a share of the side."""
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    return torch.tensor([[cosine, -sine, -2 * shift * cosine], [sine, cosine, -2 * shift * sine]])


def _run(network: AlexNet, images: Tensor) -> tuple[Tensor, Tensor]:
    features, logits = [], []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            maps = network.features[:CONV5](batch)
            features.append(maps)
            pooled = network.avgpool(network.features[CONV5:](maps))
            logits.append(network.classifier(torch.flatten(pooled, 1)))
    return torch.cat(features), torch.cat(logits)


def _cosine(left: Tensor, right: Tensor) -> float:
    return float(functional.cosine_similarity(left.flatten(1), right.flatten(1)).mean())
