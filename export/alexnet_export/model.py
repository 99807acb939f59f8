"""AlexNet in torchvision's single-GPU form, and the normalisation of its input.

All knowledge of the architecture is in this module; to serve another network, replace ``AlexNet``. Keys and shapes of
the state dict equal torchvision's, so that its published weights load. Never imports data, training or ONNX.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alexnet_client.errors import BadInput
from alexnet_client.images import CROP

SIDE = CROP
"""Height and width of the input, pixels."""


@dataclass(frozen=True)
class Normalization:
    """Per-channel ``(pixel - mean) / std`` in pixel units 0-255, RGB."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise BadInput(
                f"a normalisation has three means and three positive standard deviations, got {self.mean} and {self.std}"
            )


UNIFORM = Normalization(mean=(128.0,) * 3, std=(64.0,) * 3)
"""For models trained here. One integer mean for all channels: a quantised graph can use it as the zero point of the
pixels and as the padding value of conv1, and can read the pixels unchanged."""

IMAGENET = Normalization(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
    std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
)
"""Normalisation of torchvision's published weights."""


@dataclass(frozen=True)
class Widths:
    """Sizes of the layers: channels of the five convolutions, units of the two hidden fully connected layers."""

    channels: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)
    hidden: int = 4096


FULL = Widths()
"""The published network: 61,100,840 parameters at 1,000 classes."""


class AlexNet(nn.Module):
    """Krizhevsky's "one weird trick" AlexNet: float32 [N, 3, 224, 224], normalised, in; logits [N, classes] out.

    Source of the layers: the printed form of ``torchvision.models.alexnet``.
    """

    def __init__(self, classes: int = 1000, *, dropout: float = 0.5, widths: Widths = FULL) -> None:
        super().__init__()
        first, second, third, fourth, fifth = widths.channels
        self.features = nn.Sequential(
            nn.Conv2d(3, first, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(first, second, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(second, third, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(third, fourth, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(fourth, fifth, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(p=dropout),
            nn.Linear(fifth * 6 * 6, widths.hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(p=dropout),
            nn.Linear(widths.hidden, widths.hidden),
            nn.ReLU(inplace=True),
            nn.Linear(widths.hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def initialize(model: AlexNet) -> None:
    """Set Kaiming-normal weights for training from scratch (He et al. 2015, eq. 10), and a small last layer.

    With a small last layer, every class starts near probability 1/classes. In single runs of 150 steps on the digits,
    Kaiming weights reached 72 % accuracy and PyTorch's default weights 53 %.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    nn.init.normal_(model.classifier[6].weight, std=0.001)  # type: ignore[arg-type]  # nn.Sequential hides the type


def check_state_dict(state_dict: dict[str, Tensor], classes: int, origin: str, *, widths: Widths = FULL) -> None:
    """Check that weights belong to this network.

    Raises:
        BadInput: a key is missing, unknown or has another shape; the text names the first one.
    """
    with torch.device("meta"):
        expected = {key: list(value.shape) for key, value in AlexNet(classes, widths=widths).state_dict().items()}
    for key, shape in expected.items():
        if key not in state_dict:
            raise BadInput(f"{origin}: not an AlexNet with {classes} classes: {key} is missing")
        found = list(state_dict[key].shape)
        if found != shape:
            raise BadInput(
                f"{origin}: not an AlexNet with {classes} classes: {key} has shape {found}, expected {shape}"
            )
    unknown = next((key for key in state_dict if key not in expected), None)
    if unknown:
        raise BadInput(f"{origin}: not an AlexNet: the network has no key {unknown}")


class Normalize(nn.Module):
    """uint8 or float pixels [N, 224, 224, 3] in; normalised float32 [N, 3, 224, 224] in channels_last layout out."""

    mean: Tensor
    scale: Tensor

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
        self.register_buffer("mean", mean.reshape(1, 3, 1, 1))
        self.register_buffer("scale", (1.0 / std).reshape(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        # The cast comes first, because TensorRT accepts uint8 only if it is converted first.
        return (pixels.to(torch.float32).permute(0, 3, 1, 2) - self.mean) * self.scale


class ServedModel(nn.Module):
    """The network as it is served: uint8 pixels [N, 224, 224, 3] in; logits and probabilities [N, classes] out."""

    def __init__(self, network: AlexNet, normalization: Normalization) -> None:
        super().__init__()
        self.normalize = Normalize(normalization)
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(self.normalize(image))
        return logits, torch.softmax(logits, dim=1)
