"""AlexNet, in torchvision's single-GPU form, and the normalisation of the pixels in front of it.

Everything that knows the architecture is here; to serve another network, replace ``AlexNet``. State-dict keys and
shapes equal torchvision's, so that its published weights load. Never imports data, training or ONNX.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alexnet_export.errors import UserError


@dataclass(frozen=True)
class Normalization:
    """Per-channel ``(pixel - mean) / std``, in pixel units 0-255, RGB."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(
                f"a normalisation needs three means and three positive stds, got {self.mean} and {self.std}"
            )


UNIFORM = Normalization(mean=(128.0,) * 3, std=(64.0,) * 3)
"""For models trained here: one integer mean for all channels, so that a quantised graph can use it as the zero point
of the pixels (and of conv1's padding) and read them as they are."""

IMAGENET = Normalization(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
    std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
)
"""What torchvision's published weights were trained with."""


CHANNELS = (64, 192, 384, 256, 256)
"""Of the five convolutions."""
HIDDEN = 4096
"""Width of the two hidden layers behind them."""


class AlexNet(nn.Module):
    """Krizhevsky's "one weird trick" AlexNet: float32 [N, 3, 224, 224], normalised, in; logits [N, classes] out.

    61,100,840 parameters at 1,000 classes. Source of the layers: the printed form of ``torchvision.models.alexnet``.
    """

    def __init__(self, classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        first, second, third, fourth, fifth = CHANNELS
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
            nn.Linear(fifth * 6 * 6, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(p=dropout),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def initialize(model: AlexNet) -> None:
    """Kaiming-normal weights for training from scratch (He et al. 2015, eq. 10), with a small last layer.

    The small last layer starts every class near probability 1/classes. In single runs of 150 steps on digits,
    Kaiming weights reached 72 % where PyTorch's default reached 53 %.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    nn.init.normal_(model.classifier[6].weight, std=0.001)  # type: ignore[arg-type]  # nn.Sequential hides the type


def check_state_dict(state_dict: dict[str, Tensor], classes: int, origin: str) -> None:
    """Refuse weights that are not this network's.

    Raises:
        UserError: naming the first key that is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        expected = {key: list(value.shape) for key, value in AlexNet(classes).state_dict().items()}
    for key, shape in expected.items():
        if key not in state_dict:
            raise UserError(f"{origin}: not an AlexNet of {classes} classes, {key} is missing")
        found = list(state_dict[key].shape)
        if found != shape:
            raise UserError(
                f"{origin}: not an AlexNet of {classes} classes, {key} has shape {found} where {shape} is expected"
            )
    unknown = next((key for key in state_dict if key not in expected), None)
    if unknown:
        raise UserError(f"{origin}: not an AlexNet, it has a key {unknown} that the network lacks")


class ServedModel(nn.Module):
    """The network as it is served: uint8 pixels [N, 224, 224, 3] in; logits and probabilities [N, classes] out.

    The cast comes before the transpose because TensorRT accepts uint8 only if it is converted first.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: AlexNet, normalization: Normalization) -> None:
        super().__init__()
        self.network = network
        mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
        self.register_buffer("mean", mean.reshape(1, 3, 1, 1))
        self.register_buffer("scale", (1.0 / std).reshape(1, 3, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = (image.to(torch.float32).permute(0, 3, 1, 2) - self.mean) * self.scale
        logits = self.network(x)
        return logits, torch.softmax(logits, dim=1)
