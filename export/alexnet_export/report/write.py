"""Measure a checkpoint and write the report: ``index.html`` and ``report.json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from alexnet_client.files import write_text, writing
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.curves import training_svg
from alexnet_export.data import DataSet
from alexnet_export.image_sets import MAXIMUM_IMAGES, MINIMUM_IMAGES, Images, gate_images
from alexnet_export.releases import Release
from alexnet_export.report import pictures
from alexnet_export.report.evaluation import Evaluation, evaluate_logits, top_confusions
from alexnet_export.report.invariance import IMAGES, Curve, curves, steps
from alexnet_export.report.layers import DeadUnits, Layer, describe_layers, run_network

SMALL_MATRIX = 20
"""Largest number of classes for a confusion matrix; with more, the page lists the most frequent confusions."""
THUMBNAIL = 96
RELEASE_KEYS = ("precision", "created", "git_revision", "variants", "quantization", "machine", "tools")


@dataclass(frozen=True)
class Summary:
    """Paths and main results of a report."""

    page: Path
    data: Path
    accuracy: float | None
    parameters: int
    multiply_adds: int


def write_report(
    checkpoint: Checkpoint,
    dataset: DataSet,
    output: Path,
    *,
    history: Path | None = None,
    release: Release | None = None,
    minimum_images: int = MINIMUM_IMAGES,
    maximum_images: int = MAXIMUM_IMAGES,
    curve_images: int = IMAGES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Measure the network on the test split of a data set and write ``index.html`` and ``report.json``.

    Args:
        checkpoint: the network.
        dataset: source of the images; accuracy is only measured if its classes are those of the network.
        output: directory; created if it is missing.
        history: ``history.jsonl`` of the training; None omits the training chart.
        release: a published version whose variants are compared.
        minimum_images: smallest number of images.
        maximum_images: largest number of test images.
        curve_images: images for the invariance curves.
        on_progress: called with the steps done and their total.

    Raises:
        BadInput: there are too few readable images, the manifest is damaged, or the report cannot be written.
    """
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    total, done = steps() + 3, 0

    def step() -> None:
        nonlocal done
        done += 1
        on_progress(done, total)

    images = gate_images(dataset, checkpoint.labels, minimum=minimum_images, maximum=maximum_images)
    found = _measure(checkpoint, images, curve_images, step)
    data = _data(found, checkpoint, dataset, release)
    page = _render(found, data, training_svg(history) if history else None)
    write_text(output / "report.json", json.dumps(data, indent=2) + "\n")
    write_text(output / "index.html", page)
    step()
    accuracy = found.evaluation.accuracy if found.evaluation else None
    return Summary(output / "index.html", output / "report.json", accuracy, data["parameters"], data["multiply_adds"])


@dataclass(frozen=True)
class _Measured:
    """Results; ``evaluation`` is None if no image has a label."""

    images: Images
    known: npt.NDArray[np.bool_]
    filters: npt.NDArray[np.float32]
    layers: list[Layer]
    dead: list[DeadUnits]
    evaluation: Evaluation | None
    curves: list[Curve]


def _measure(checkpoint: Checkpoint, images: Images, curve_images: int, step: Callable[[], None]) -> _Measured:
    step()
    network = checkpoint.network()
    activity = run_network(network, checkpoint.normalization, images.pixels)
    step()
    known = images.labels >= 0
    return _Measured(
        images,
        known,
        network.features[0].weight.detach().numpy(),  # type: ignore[operator]
        describe_layers(network),
        activity.dead,
        evaluate_logits(activity.logits[known], images.labels[known], checkpoint.labels) if known.any() else None,
        curves(network, checkpoint.normalization, images.pixels[:curve_images], on_step=step),
    )


def _data(found: _Measured, checkpoint: Checkpoint, dataset: DataSet, release: Release | None) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": {"sha256": checkpoint.sha256, "made_by": dict(checkpoint.made_by)},
        "normalization": asdict(checkpoint.normalization),
        "labels": list(checkpoint.labels),
        "images": {"from": dataset.name, "count": len(found.images), "labelled": int(found.known.sum())},
        "layers": [asdict(layer) for layer in found.layers],
        "parameters": sum(layer.parameters for layer in found.layers),
        "multiply_adds": sum(layer.multiply_adds for layer in found.layers),
        "dead_units": [asdict(each) for each in found.dead],
        "evaluation": asdict(found.evaluation) if found.evaluation else None,
        "invariance": [asdict(curve) for curve in found.curves],
        "release": {"version": release.version, **{key: release.manifest.get(key) for key in RELEASE_KEYS}}
        if release
        else None,
    }


def _render(found: _Measured, data: dict[str, Any], training: str | None) -> str:
    evaluation, labels = found.evaluation, tuple(data["labels"])
    pixels, mistakes = found.images.pixels[found.known], evaluation.mistakes if evaluation else []
    pictured = {
        "filters": pictures.filters(found.filters),
        "invariance": [Markup(pictures.invariance(curve)) for curve in found.curves],  # noqa: S704  our own SVG
        "reliability": Markup(pictures.reliability(evaluation)) if evaluation else None,  # noqa: S704
        "mistakes": [pictures.png(pixels[mistake.index], side=THUMBNAIL) for mistake in mistakes],
    }
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            data=data,
            pictures=pictured,
            training=Markup(training) if training else None,  # noqa: S704
            confusions=top_confusions(evaluation, labels) if evaluation else [],
            matrix=evaluation is not None and len(labels) <= SMALL_MATRIX,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("alexnet_export.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share, digits=1: "–" if share is None else f"{100 * share:.{digits}f} %"  # noqa: RUF001  typographic
    environment.filters["thousands"] = lambda number: f"{number:,}".replace(",", "\u202f")
    environment.filters["sizes"] = lambda sizes: " × ".join(map(str, sizes))  # noqa: RUF001  typographic
    return environment
