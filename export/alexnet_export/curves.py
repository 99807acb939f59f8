"""The chart of a training run, drawn from its history: a PNG file for the terminal, SVG for the model report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from alexnet_client.files import replace_file
from alexnet_load.svg import BLUE, ORANGE, styled_figure, to_svg

SMOOTHING_STEPS = 10


def write_png(history: Path, picture: Path) -> None:
    """Draw loss and validation accuracy over the steps of ``history.jsonl``. Raises ``BadInput``."""
    with styled_figure(11, 4) as figure:
        _draw(figure, *_read(history))
        for axes in figure.axes:
            axes.grid(color="#e5e5e5")
        with replace_file(picture) as temporary:
            figure.savefig(temporary, format="png", dpi=110, facecolor="white")


def training_svg(history: Path) -> str | None:
    """The same chart as an ``<svg>`` element; None if there is no history."""
    try:
        steps, evaluations = _read(history)
    except (OSError, ValueError):
        return None
    if not steps:
        return None
    with styled_figure(9, 3.2) as figure:
        _draw(figure, steps, evaluations)
        return to_svg(figure)


def _read(history: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    records = [json.loads(line) for line in history.read_text().splitlines()]
    steps, evaluations = ([each for each in records if each["event"] == kind] for kind in ("StepDone", "Evaluated"))
    return steps, evaluations


def _draw(figure: Figure, steps: list[dict[str, float]], evaluations: list[dict[str, float]]) -> None:
    left, right = figure.subplots(1, 2)
    losses = np.array([record["loss"] for record in steps])
    at = [record["step"] for record in steps]
    window = min(SMOOTHING_STEPS, len(losses))
    left.plot(at, losses, color=BLUE, alpha=0.3, linewidth=1, label="training, each step")
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    left.plot(at[window - 1 :], smooth, color=BLUE, label=f"training, mean of {window} steps")
    evaluated_at = [record["step"] for record in evaluations]
    left.plot(evaluated_at, [record["loss"] for record in evaluations], "o-", color=ORANGE, label="validation")
    left.set(title="Cross-entropy", xlabel="step", ylim=(0, None))
    left.legend()
    accuracies = [100 * record["accuracy"] for record in evaluations]
    right.plot(evaluated_at, accuracies, "o-", color=ORANGE)
    for x, y in zip(evaluated_at, accuracies, strict=True):
        right.annotate(f"{y:.1f}", (x, y), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    right.set(title="Validation accuracy, %", xlabel="step", ylim=(0, 107))
