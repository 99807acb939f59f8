"""The time a GPU needs at least for AlexNet: arithmetic or bytes of each layer, whichever takes longer. Pure; a bound.

Layers as torchvision has them at 224 x 224. Nothing here was measured. Source of the method: Williams, Waterman, Patterson,
"Roofline: an insightful visual performance model for multicore architectures", 2009.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES = 2
"""Of a weight or an activation in fp16."""
IMAGE_BYTES = 224 * 224 * 3


@dataclass(frozen=True)
class Layer:
    """Of one image: multiplications, weights, and numbers that go in and come out."""

    name: str
    multiplications: int
    weights: int
    activations: int

    @property
    def fully_connected(self) -> bool:
        return self.name.startswith("fc")


def _convolution(name: str, channels: tuple[int, int], kernel: int, sides: tuple[int, int]) -> Layer:
    (before, after), (side_in, side_out) = channels, sides
    weights = kernel * kernel * before * after
    flows = before * side_in * side_in + after * side_out * side_out
    return Layer(name, weights * side_out * side_out, weights + after, flows)


def _connected(name: str, before: int, after: int) -> Layer:
    return Layer(name, before * after, before * after + after, before + after)


LAYERS = (
    _convolution("conv1", (3, 64), 11, (224, 55)),
    _convolution("conv2", (64, 192), 5, (27, 27)),
    _convolution("conv3", (192, 384), 3, (13, 13)),
    _convolution("conv4", (384, 256), 3, (13, 13)),
    _convolution("conv5", (256, 256), 3, (13, 13)),
    _connected("fc6", 9216, 4096),
    _connected("fc7", 4096, 4096),
    _connected("fc8", 4096, 1000),
)


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do at most: operations a second (a multiplication and its addition are two) and bytes a second."""

    operations_s: float
    memory_bytes_s: float
    link_bytes_s: float


def layers_s(gpu: Gpu, images: int, layers: tuple[Layer, ...] = LAYERS) -> float:
    """Seconds of a batch at least, layer after layer."""
    return sum(
        max(
            2 * each.multiplications * images / gpu.operations_s,
            BYTES * (each.weights + each.activations * images) / gpu.memory_bytes_s,
        )
        for each in layers
    )


def weights_s(gpu: Gpu) -> float:
    """Seconds to read all weights once, which every batch does: those of the fully connected layers exceed any cache."""
    return BYTES * sum(each.weights for each in LAYERS) / gpu.memory_bytes_s


def connected_share(gpu: Gpu, images: int) -> float:
    """Share of a batch's time that goes to the fully connected layers."""
    connected = tuple(each for each in LAYERS if each.fully_connected)
    return layers_s(gpu, images, connected) / layers_s(gpu, images)
