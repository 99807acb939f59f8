"""The 1,797 handwritten digits of scikit-learn, drawn on coloured canvases; no download is needed.

Source: the test set of UCI "Optical Recognition of Handwritten Digits" (8 x 8 pixels, 17 levels). Position, scale,
rotation, colours and noise of a canvas depend only on (seed, split, epoch, index).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from alexnet_export.data import DataSet, Pixels, SplitName
from alexnet_export.model import SIDE

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EVALUATION_VARIANTS = 4
"""Canvases of each digit in validation and test. With one canvas, the 95 % interval of the accuracy would be +-2.6 points."""


@dataclass(frozen=True)
class DigitCanvases:
    """One split. Training draws a new canvas of each digit in every epoch; validation and test use the same canvases."""

    digits: npt.NDArray[np.uint8]  # [N, 8, 8], 0-255
    labels: npt.NDArray[np.int64]
    name: SplitName
    seed: int
    variants: int

    def __len__(self) -> int:
        return len(self.digits) * self.variants

    def sample(self, index: int, epoch: int) -> tuple[Pixels, int]:
        stream = ("train", "validation", "test").index(self.name)
        random = np.random.default_rng((self.seed, stream, epoch if self.name == "train" else 0, index))
        original = index % len(self.digits)
        return draw(self.digits[original], random), int(self.labels[original])


def open_digits(*, seed: int = 0) -> DataSet:
    """Split the digits 70 : 15 : 15. The split does not depend on the seed, so a test digit is never a training digit."""
    from sklearn.datasets import load_digits  # takes a second to import

    source = load_digits()
    digits = np.round(source.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(2012).permutation(len(digits))
    first, second = int(0.70 * len(order)), int(0.85 * len(order))

    def part(name: SplitName, indices: npt.NDArray[np.int64], variants: int) -> DigitCanvases:
        return DigitCanvases(digits[indices], source.target[indices].astype(np.int64), name, seed, variants)

    return DataSet(
        "digits",
        LABELS,
        train=part("train", order[:first], 1),
        validation=part("validation", order[first:second], EVALUATION_VARIANTS),
        test=part("test", order[second:], EVALUATION_VARIANTS),
    )


def draw(digit: Pixels, random: np.random.Generator) -> Pixels:
    """Draw one 8 x 8 digit on a canvas.

    Args:
        digit: uint8 [8, 8], ink 0-255.
        random: generator of position, scale, rotation, colours and noise.

    Returns:
        uint8 [224, 224, 3], RGB.
    """
    size = random.uniform(140, 210)
    angle = math.radians(random.uniform(-15, 15))
    room = (SIDE - size) / 2
    center_x, center_y = SIDE / 2 + random.uniform(-room, room), SIDE / 2 + random.uniform(-room, room)
    # A blank margin of half a digit, in which the strokes fade out, and eight times the resolution: bicubic resizing of
    # the small image and bilinear resizing of the large one take a third of the time of bicubic resizing on the canvas.
    glyph = Image.fromarray(np.pad(digit, 4)).resize((128, 128), Image.Resampling.BICUBIC)
    # Image.transform needs the inverse, from canvas to glyph: the digit is 64 glyph pixels wide, its centre is (64, 64).
    a, b = 64 / size * math.cos(angle), 64 / size * math.sin(angle)
    inverse = (a, b, 64 - a * center_x - b * center_y, -b, a, 64 + b * center_x - a * center_y)
    ink = glyph.transform((SIDE, SIDE), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR)
    paper, colour = _paper_and_ink(random)
    colours = np.linspace(paper, colour, num=256).astype(np.int16)
    noise = np.frombuffer(random.bytes(SIDE * SIDE * 3), np.int8).reshape(SIDE, SIDE, 3) >> 3  # -16 to 15
    canvas: Pixels = np.clip(colours[np.asarray(ink)] + noise, 0, 255).astype(np.uint8)
    return canvas


def _paper_and_ink(random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Two RGB colours; the luma of the ink (ITU-R BT.601 weights) is at least 100 darker, so that it is visible."""
    luma = np.array([0.299, 0.587, 0.114])
    while True:
        paper, ink = random.uniform(0, 255, (2, 3))
        if (paper - ink) @ luma >= 100:
            return np.stack([paper, ink])
