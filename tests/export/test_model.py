"""The network is torchvision's AlexNet with the same keys and shapes."""

from __future__ import annotations

import math

import pytest
import torch

from alexnet_client.errors import BadInput
from alexnet_export.data import evaluation_batches
from alexnet_export.model import IMAGENET, UNIFORM, AlexNet, Normalization, ServedModel, check_state_dict, initialize

# Content of torchvision.models.alexnet().state_dict(), in its order.
TORCHVISION = {
    "features.0.weight": (64, 3, 11, 11),
    "features.0.bias": (64,),
    "features.3.weight": (192, 64, 5, 5),
    "features.3.bias": (192,),
    "features.6.weight": (384, 192, 3, 3),
    "features.6.bias": (384,),
    "features.8.weight": (256, 384, 3, 3),
    "features.8.bias": (256,),
    "features.10.weight": (256, 256, 3, 3),
    "features.10.bias": (256,),
    "classifier.1.weight": (4096, 9216),
    "classifier.1.bias": (4096,),
    "classifier.4.weight": (4096, 4096),
    "classifier.4.bias": (4096,),
    "classifier.6.weight": (1000, 4096),
    "classifier.6.bias": (1000,),
}


@pytest.fixture
def blank() -> AlexNet:
    with torch.device("meta"):
        return AlexNet()


def test_keys_and_shapes_equal_torchvisions(blank):
    assert [(key, tuple(value.shape)) for key, value in blank.state_dict().items()] == list(TORCHVISION.items())


def test_the_initial_loss_is_that_of_random_guessing(digits, small):
    torch.manual_seed(0)
    network = AlexNet(10, widths=small).eval()
    initialize(network)
    batch = next(evaluation_batches(digits.validation, batch_size=16))
    with torch.inference_mode():
        logits, _ = ServedModel(network, UNIFORM)(batch.images)
        loss = torch.nn.functional.cross_entropy(logits, batch.labels)
    assert abs(float(loss) - math.log(10)) < 0.3


@pytest.mark.parametrize("normalization", [UNIFORM, IMAGENET])
def test_the_served_model_normalises_pixels_and_returns_probabilities(checkpoint, normalization):
    network = checkpoint.network()
    pixels = torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        logits, probabilities = ServedModel(network, normalization)(pixels)
        mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
        by_hand = network(((pixels - mean) / std).permute(0, 3, 1, 2))
    assert torch.allclose(logits, by_hand, rtol=1e-4, atol=1e-4)
    assert torch.allclose(probabilities, by_hand.softmax(1), atol=1e-5)


@pytest.mark.parametrize("std", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0)])
def test_a_normalisation_needs_three_positive_standard_deviations(std):
    with pytest.raises(BadInput, match="three positive standard deviations"):
        Normalization((0.0, 0.0, 0.0), std)


def test_the_first_different_key_is_named(blank):
    right = blank.state_dict()
    check_state_dict(right, 1000, "file")
    without = {key: value for key, value in right.items() if key != "features.3.bias"}
    for wrong, classes, message in (
        (without, 1000, r"file: not an AlexNet with 1000 classes: features\.3\.bias is missing"),
        ({**right, "extra": torch.empty(1)}, 1000, "file: not an AlexNet: the network has no key extra"),
        (right, 10, r"classifier\.6\.weight has shape \[1000, 4096\], expected \[10, 4096\]"),
    ):
        with pytest.raises(BadInput, match=message):
            check_state_dict(wrong, classes, "file")
