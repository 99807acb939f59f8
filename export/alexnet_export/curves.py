"""A picture of a training run, drawn from its history."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from alexnet_export.atomic import replace_file

SMOOTHING_STEPS = 10


def draw_curves(history: Path, picture: Path) -> None:
    """Draw loss and validation accuracy over steps from ``history.jsonl`` as a PNG."""
    records = [json.loads(line) for line in history.read_text().splitlines()]
    steps = [record for record in records if record["event"] == "StepDone"]
    evaluations = [record for record in records if record["event"] == "Evaluated"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    at = np.array([record["step"] for record in steps])
    losses = np.array([record["loss"] for record in steps])
    left.plot(at, losses, color="#9ecae1", linewidth=1, label="training, each step")
    window = min(SMOOTHING_STEPS, len(losses))
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    left.plot(at[window - 1 :], smooth, color="#08519c", label=f"training, mean of {window} steps")
    evaluated_at = [record["step"] for record in evaluations]
    left.plot(evaluated_at, [record["loss"] for record in evaluations], "o-", color="#d94801", label="validation")
    left.set(title="Cross-entropy", xlabel="step", ylim=(0, None))
    left.legend(frameon=False)
    accuracies = [100 * record["accuracy"] for record in evaluations]
    right.plot(evaluated_at, accuracies, "o-", color="#d94801")
    for x, y in zip(evaluated_at, accuracies, strict=True):
        right.annotate(f"{y:.1f}", (x, y), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    right.set(title="Validation accuracy, %", xlabel="step", ylim=(0, 107))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e5e5")
    with replace_file(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
