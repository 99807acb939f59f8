"""The layers of the network: output sizes, parameters, multiply-adds, dead units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from alexnet_export.model import SIDE, AlexNet, Normalization, Normalize

BATCH_SIZE = 32
NAMES = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5", "fc6", "fc7", "fc8")


@dataclass(frozen=True)
class Layer:
    """A layer: output size ([channels, height, width] or [units]), number of parameters, and cost per image."""

    name: str
    kind: str
    size: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class DeadUnits:
    """Outputs of a ReLU (channel and position) that are zero on every image, and channels that are zero at every position."""

    name: str
    units: int
    dead: int
    channels: int
    dead_channels: int


def describe_layers(network: AlexNet) -> list[Layer]:
    """All layers that change the size or have weights, in order."""
    sizes: dict[nn.Module, tuple[int, ...]] = {}

    def record(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        sizes[module] = tuple(output.shape[1:])

    described = [
        module
        for module in (*network.features, *network.classifier)
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.Linear)
    ]
    hooks = [module.register_forward_hook(record) for module in described]
    with torch.inference_mode():
        network(torch.zeros(1, 3, SIDE, SIDE))
    for hook in hooks:
        hook.remove()
    found = []
    for name, module in zip(NAMES, described, strict=True):
        adds = 0
        if isinstance(module, nn.Conv2d):
            adds = module.weight.numel() * math.prod(sizes[module][1:])  # a filter is applied at every position
            kind = f"{module.kernel_size[0]} x {module.kernel_size[0]}, stride {module.stride[0]}"
        elif isinstance(module, nn.MaxPool2d):
            kind = f"maximum of {module.kernel_size} x {module.kernel_size}"
        else:
            adds, kind = module.weight.numel(), "fully connected"
        parameters = sum(each.numel() for each in module.parameters())
        found.append(Layer(name, kind, sizes[module], parameters, adds))
    return found


@dataclass(frozen=True)
class Activity:
    """Logits float32 [N, classes], and the dead units of each ReLU."""

    logits: npt.NDArray[np.float32]
    dead: list[DeadUnits]


def run_network(network: AlexNet, normalization: Normalization, pixels: npt.NDArray[np.uint8]) -> Activity:
    """Run the network on uint8 [N, 224, 224, 3] and observe its ReLUs."""
    normalize = Normalize(normalization)
    relus = [module for module in (*network.features, *network.classifier) if isinstance(module, nn.ReLU)]
    names = [name for name in NAMES[:-1] if not name.startswith("pool")]  # no ReLU follows a pool or the last layer
    alive: dict[str, Tensor] = {}

    def hook_of(name: str) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            active = (output > 0).any(dim=0)
            alive[name] = alive[name] | active if name in alive else active

        return record

    hooks = [relu.register_forward_hook(hook_of(name)) for name, relu in zip(names, relus, strict=True)]
    with torch.inference_mode():
        logits = [
            network(normalize(torch.from_numpy(pixels[start : start + BATCH_SIZE]))).numpy()
            for start in range(0, len(pixels), BATCH_SIZE)
        ]
    for hook in hooks:
        hook.remove()
    dead = [
        DeadUnits(
            name,
            found.numel(),
            int((~found).sum()),
            len(found),
            int((~found.reshape(len(found), -1).any(1)).sum()),
        )
        for name, found in alive.items()
    ]
    return Activity(np.concatenate(logits), dead)
