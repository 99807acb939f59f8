"""Pictures of the model report: charts as SVG in the colours of the page, pixels as PNG. Writes no files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from alexnet_export.report.evaluation import Evaluation
from alexnet_export.report.invariance import Curve
from alexnet_load.svg import BLUE, GRID, ORANGE, styled_figure, to_svg

GAP, GREY = 2, 128


def filters(weight: npt.NDArray[np.float32]) -> str:
    """conv1's filters [N, 3, 11, 11] as colour patches, eight in a row, each scaled to its own range: a PNG data URI."""
    low = weight.min(axis=(1, 2, 3), keepdims=True)
    span = np.maximum(weight.max(axis=(1, 2, 3), keepdims=True) - low, 1e-12)
    patches = np.rint(255 * (weight - low) / span).astype(np.uint8).transpose(0, 2, 3, 1)
    framed = np.pad(patches, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=GREY)
    columns, side = 8, framed.shape[1]
    rows = -(-len(framed) // columns)
    sheet = np.full((rows * side, columns * side, 3), GREY, np.uint8)
    for place, patch in enumerate(framed):
        top, left = side * (place // columns), side * (place % columns)
        sheet[top : top + side, left : left + side] = patch
    return png(sheet[:-GAP, :-GAP])


def png(pixels: npt.NDArray[np.uint8], *, side: int | None = None) -> str:
    """uint8 [height, width, 3] as a PNG data URI, resized to a square of ``side`` pixels."""
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.resize((side, side), Image.Resampling.LANCZOS) if side else image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def invariance(curve: Curve) -> str:
    """Two charts over the size of the transformation: the predicted class on the left, the conv5 features on the right."""
    with styled_figure(9, 3) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        _lines(left, curve, ("same best class", curve.same_class), ("cosine of the logits", curve.logits))
        _lines(right, curve, ("equivariance", curve.equivariance), ("invariance", curve.invariance))
        left.set(title="Prediction", ylim=(0, 1.03))
        right.set(title="conv5 features, cosine")
        return to_svg(figure)


def reliability(evaluation: Evaluation) -> str:
    """Reliability diagram: accuracy over the probability of the predicted class."""
    with styled_figure(4.2, 3.4) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], "--", color=GRID, linewidth=1)
        sizes = [20 + 180 * each.images / evaluation.images for each in evaluation.confidence]
        confidence = [each.confidence for each in evaluation.confidence]
        accuracy = [each.accuracy for each in evaluation.confidence]
        axes.plot(confidence, accuracy, color=BLUE, linewidth=1)
        axes.scatter(confidence, accuracy, s=sizes, color=BLUE)
        axes.set(xlabel="probability of the predicted class", ylabel="accuracy", xlim=(0, 1.03), ylim=(0, 1.03))
        return to_svg(figure)


def _lines(axes: Any, curve: Curve, *lines: tuple[str, Sequence[float]]) -> None:
    for (name, values), colour, style in zip(lines, (BLUE, ORANGE), ("o-", "s--"), strict=True):
        axes.plot(curve.sizes, values, style, color=colour, label=name, markersize=4)
    axes.set(xlabel=curve.unit)
    axes.legend(loc="lower center")
