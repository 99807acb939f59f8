"""The pictures of the report: plots as SVG in the page's own colours, pixels as PNG. No file, no figure window."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from PIL import Image

from alexnet_export.curves import SMOOTHING_STEPS
from alexnet_export.report.invariance import Curve
from alexnet_export.report.judged import Judged

_TEXT, _GRID, _FIRST, _SECOND = "#010203", "#010204", "#2f7fd1", "#e07a1f"
"""The first two become the page's own colours, so that dark and light both read well."""
GAP, GREY = 2, 128
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _GRID,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "grid.color": _GRID,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "svg.hashsalt": "alexnet",
}


def filters(weight: npt.NDArray[np.float32]) -> str:
    """conv1's filters [N, 3, 11, 11] as colour patches, eight a row, each stretched to its own range: a PNG data URI."""
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
    """uint8 [height, width, 3] as a PNG data URI, resized to a square of ``side``."""
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.resize((side, side), Image.Resampling.LANCZOS) if side else image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def training(history: Path) -> str | None:
    """Loss and validation accuracy over steps; None if there is no history."""
    try:
        records = [json.loads(line) for line in history.read_text().splitlines()]
    except (OSError, ValueError):
        return None
    steps = [record for record in records if record["event"] == "StepDone"]
    evaluated = [record for record in records if record["event"] == "Evaluated"]
    if not steps:
        return None
    with mpl.rc_context(_STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
        losses = np.array([record["loss"] for record in steps])
        window = min(SMOOTHING_STEPS, len(losses))
        at = [record["step"] for record in steps]
        left.plot(at, losses, color=_FIRST, alpha=0.3, linewidth=1)
        smooth = np.convolve(losses, np.ones(window) / window, "valid")
        left.plot(at[window - 1 :], smooth, color=_FIRST, label=f"training, mean of {window}")
        places = [record["step"] for record in evaluated]
        left.plot(places, [record["loss"] for record in evaluated], "o-", color=_SECOND, label="validation")
        left.set(title="Cross-entropy", xlabel="step", ylim=(0, None))
        left.legend()
        right.plot(places, [100 * record["accuracy"] for record in evaluated], "o-", color=_SECOND)
        right.set(title="Validation accuracy, %", xlabel="step", ylim=(0, 102))
        return _svg(figure)


def invariance(curve: Curve) -> str:
    """The answer on the left, the conv5 features on the right, over the size of the transformation."""
    with mpl.rc_context(_STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
        _lines(left, curve, ("same best class", curve.same_answer), ("cosine of the logits", curve.logits))
        _lines(right, curve, ("moved with the image", curve.equivariance), ("stayed the same", curve.invariance))
        left.set(title="The answer", ylim=(0, 1.03))
        right.set(title="The conv5 features, cosine")
        return _svg(figure)


def reliability(judged: Judged) -> str:
    """How often the network is right, over how sure it says it is."""
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(4.2, 3.4), layout="constrained")
        axes.plot([0, 1], [0, 1], "--", color=_GRID, linewidth=1)
        sizes = [20 + 180 * each.images / judged.images for each in judged.confidence]
        found = [(each.confidence, each.accuracy) for each in judged.confidence]
        sure, right = zip(*found, strict=True)
        axes.plot(sure, right, color=_FIRST, linewidth=1)
        axes.scatter(sure, right, s=sizes, color=_FIRST)
        axes.set(xlabel="probability of the answer", ylabel="share that is right", xlim=(0, 1.03), ylim=(0, 1.03))
        return _svg(figure)


def _lines(axes: Any, curve: Curve, *lines: tuple[str, Sequence[float]]) -> None:
    for (name, values), colour, style in zip(lines, (_FIRST, _SECOND), ("o-", "s--"), strict=True):
        axes.plot(curve.sizes, values, style, color=colour, label=name, markersize=4)
    axes.set(xlabel=curve.unit)
    axes.legend(loc="lower center")


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_TEXT, "currentColor").replace(_GRID, "var(--line)")
    # The page decides the size; the view box keeps the proportions.
    head, rest = text.split(">", 1)
    kept = [part for part in head.split() if not part.startswith(("width=", "height="))]
    return " ".join(kept) + ">" + rest
