"""The network layer by layer: sizes from the formula and as measured, parameters, multiply-adds, dead units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from alexnet_export.model import AlexNet, Normalization

SIDE = 224
CHUNK = 32


@dataclass(frozen=True)
class Layer:
    """One layer: output size by the formula and as measured ([channels, height, width] or [units]), cost for an image."""

    name: str
    kind: str
    formula: tuple[int, ...]
    measured: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class DeadUnits:
    """Outputs of one ReLU (channel and position) that were zero on every image, and channels that were so everywhere."""

    name: str
    units: int
    dead: int
    channels: int
    dead_channels: int


def output_side(side: int, *, kernel: int, stride: int, padding: int) -> int:
    """floor((in + 2 p - k) / s + 1), from Dumoulin and Visin, "A guide to convolution arithmetic", relationship 6."""
    return (side + 2 * padding - kernel) // stride + 1


def describe_layers(network: AlexNet) -> list[Layer]:
    """Every layer that changes the size or has weights, in order."""
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
            size, adds, kind = (channels, side, side), 0, f"largest of {window} x {window}"
        elif isinstance(module, nn.Linear):
            size, adds, kind = (module.out_features,), module.weight.numel(), "every unit with every one"
        else:
            continue
        parameters = sum(each.numel() for each in module.parameters())
        found.append(Layer(next(names), kind, size, measured[module], parameters, adds))
    return found


def _names() -> Iterator[str]:
    yield from ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5", "fc6", "fc7", "fc8")


def _measured_sizes(network: AlexNet) -> dict[nn.Module, tuple[int, ...]]:
    sizes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        sizes[module] = tuple(output.shape[1:])

    hooks = [module.register_forward_hook(note) for module in (*network.features, *network.classifier)]
    with torch.inference_mode():
        network(torch.zeros(1, 3, SIDE, SIDE))
    for hook in hooks:
        hook.remove()
    return sizes


@dataclass(frozen=True)
class Answers:
    """What the network says of images: logits float32 [N, classes], and which ReLU outputs were ever above zero."""

    logits: npt.NDArray[np.float32]
    dead: list[DeadUnits]


def ask(network: AlexNet, normalization: Normalization, pixels: npt.NDArray[np.uint8]) -> Answers:
    """Run the network over uint8 [N, 224, 224, 3], watching its ReLUs."""
    relus = [module for module in (*network.features, *network.classifier) if isinstance(module, nn.ReLU)]
    names = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
    alive: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            active = (output > 0).any(dim=0)
            alive[name] = alive[name] | active if name in alive else active

        return note

    hooks = [relu.register_forward_hook(watch(name)) for name, relu in zip(names, relus, strict=True)]
    with torch.inference_mode():
        logits = [
            network(normalized(torch.from_numpy(pixels[start : start + CHUNK]), normalization)).numpy()
            for start in range(0, len(pixels), CHUNK)
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
    return Answers(np.concatenate(logits), dead)


def normalized(images: Tensor, normalization: Normalization) -> Tensor:
    """uint8 or float pixels [N, 224, 224, 3] to what the network reads, float32 [N, 3, 224, 224]."""
    mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2).contiguous()
