"""The layers of the network: output sizes, parameters, multiply-adds, dead units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from alexnet_export.model import SIDE, AlexNet, Normalization, Normalize

BATCH_SIZE = 32


@dataclass(frozen=True)
class Layer:
    """A layer: output size by formula and as measured ([channels, height, width] or [units]), parameters and cost per image."""

    name: str
    kind: str
    formula: tuple[int, ...]
    measured: tuple[int, ...]
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


def output_side(side: int, *, kernel: int, stride: int, padding: int) -> int:
    """floor((in + 2 p - k) / s) + 1; source: Dumoulin and Visin, "A guide to convolution arithmetic", relationship 6."""
    return (side + 2 * padding - kernel) // stride + 1


def describe_layers(network: AlexNet) -> list[Layer]:
    """All layers that change the size or have weights, in order."""
    measured = _measured_sizes(network)
    found, channels, side, names = [], 3, SIDE, _names()
    for module in (*network.features, network.avgpool, *network.classifier):
        size: tuple[int, ...]
        if isinstance(module, nn.Conv2d):
            side = output_side(
                side,
                kernel=module.kernel_size[0],
                stride=module.stride[0],
                padding=module.padding[0],  # type: ignore[arg-type]  # a pair of numbers here, never "same"
            )
            adds = module.out_channels * side**2 * module.kernel_size[0] ** 2 * channels
            channels = module.out_channels
            size = (channels, side, side)
            kind = f"{module.kernel_size[0]} x {module.kernel_size[0]}, stride {module.stride[0]}"
        elif isinstance(module, nn.MaxPool2d):
            window, stride = module.kernel_size, module.stride
            assert isinstance(window, int)
            assert isinstance(stride, int)
            side = output_side(side, kernel=window, stride=stride, padding=0)
            size, adds, kind = (channels, side, side), 0, f"maximum of {window} x {window}"
        elif isinstance(module, nn.Linear):
            size, adds, kind = (module.out_features,), module.weight.numel(), "fully connected"
        else:
            continue
        parameters = sum(each.numel() for each in module.parameters())
        found.append(Layer(next(names), kind, size, measured[module], parameters, adds))
    return found


def _names() -> Iterator[str]:
    yield from ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5", "fc6", "fc7", "fc8")


def _measured_sizes(network: AlexNet) -> dict[nn.Module, tuple[int, ...]]:
    sizes: dict[nn.Module, tuple[int, ...]] = {}

    def record(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        sizes[module] = tuple(output.shape[1:])

    hooks = [module.register_forward_hook(record) for module in (*network.features, *network.classifier)]
    with torch.inference_mode():
        network(torch.zeros(1, 3, SIDE, SIDE))
    for hook in hooks:
        hook.remove()
    return sizes


@dataclass(frozen=True)
class Activity:
    """Logits float32 [N, classes], and the dead units of each ReLU."""

    logits: npt.NDArray[np.float32]
    dead: list[DeadUnits]


def run_network(network: AlexNet, normalization: Normalization, pixels: npt.NDArray[np.uint8]) -> Activity:
    """Run the network on uint8 [N, 224, 224, 3] and observe its ReLUs."""
    normalize = Normalize(normalization)
    relus = [module for module in (*network.features, *network.classifier) if isinstance(module, nn.ReLU)]
    names = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
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
