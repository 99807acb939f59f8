"""From a checkpoint, a data set and perhaps a release to the report: everything measured, one page, the data beside it."""

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

from alexnet_export.atomic import write_text, writing
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet
from alexnet_export.gateset import Images, gate_images
from alexnet_export.releases import Release
from alexnet_export.report import pictures
from alexnet_export.report.invariance import Curve, curves, steps
from alexnet_export.report.judged import Judged, judge_answers, top_confusions
from alexnet_export.report.layers import DeadUnits, Layer, ask, describe_layers

SMALL_MATRIX = 20
"""Classes up to which the confusion matrix is drawn; beyond that the most frequent confusions are listed."""
THUMBNAIL = 96


@dataclass(frozen=True)
class Summary:
    """Where the report is, and its headline figures."""

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
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Measure the network on the data set's test images and write ``index.html`` and ``report.json``.

    Args:
        checkpoint: the network.
        dataset: its test split is what the network is judged on, if the classes are the network's own.
        output: directory, made if it is missing.
        history: ``history.jsonl`` of the training; None leaves the training curves out.
        release: a published version, whose variants are compared.
        on_progress: called with steps done and their total.

    Raises:
        UserError: too few readable images, a damaged manifest, or the disk refuses.
    """
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    total, done = steps() + 3, 0

    def step() -> None:
        nonlocal done
        done += 1
        on_progress(done, total)

    found = _measure(checkpoint, gate_images(dataset, checkpoint.labels), step)
    data = _data(found, checkpoint, dataset, release)
    page = _render(found, data, pictures.training(history) if history else None)
    write_text(output / "report.json", json.dumps(data, indent=2) + "\n")
    write_text(output / "index.html", page)
    step()
    accuracy = found.judged.accuracy if found.judged else None
    return Summary(output / "index.html", output / "report.json", accuracy, data["parameters"], data["multiply_adds"])


@dataclass(frozen=True)
class _Found:
    """What was measured; ``judged`` is None where no image has a label."""

    images: Images
    known: npt.NDArray[np.bool_]
    filters: npt.NDArray[np.float32]
    layers: list[Layer]
    dead: list[DeadUnits]
    judged: Judged | None
    curves: list[Curve]


def _measure(checkpoint: Checkpoint, images: Images, step: Callable[[], None]) -> _Found:
    step()
    network = checkpoint.network()
    answers = ask(network, checkpoint.normalization, images.pixels)
    step()
    known = images.labels >= 0
    return _Found(
        images,
        known,
        network.features[0].weight.detach().numpy(),  # type: ignore[operator]
        describe_layers(network),
        answers.dead,
        judge_answers(answers.logits[known], images.labels[known], checkpoint.labels) if known.any() else None,
        curves(network, checkpoint.normalization, images.pixels, on_step=step),
    )


def _data(found: _Found, checkpoint: Checkpoint, dataset: DataSet, release: Release | None) -> dict[str, Any]:
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
        "judged": asdict(found.judged) if found.judged else None,
        "invariance": [asdict(curve) for curve in found.curves],
        "release": {"version": release.version, **_of_release(release.manifest)} if release else None,
    }


def _render(found: _Found, data: dict[str, Any], training: str | None) -> str:
    judged, labels = found.judged, tuple(data["labels"])
    drawn = {
        "filters": pictures.filters(found.filters),
        "invariance": [Markup(pictures.invariance(curve)) for curve in found.curves],  # noqa: S704  our own SVG
        "reliability": Markup(pictures.reliability(judged)) if judged else None,  # noqa: S704
        "mistakes": _thumbnails(judged, found.images, found.known) if judged else [],
    }
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            data=data,
            drawn=drawn,
            training=Markup(training) if training else None,  # noqa: S704
            confusions=top_confusions(judged, labels) if judged else [],
            matrix=judged is not None and len(labels) <= SMALL_MATRIX,
        )
    )


def _of_release(manifest: dict[str, Any]) -> dict[str, Any]:
    kept = ("precision", "created", "git_revision", "variants", "rewrites", "quantization", "machine", "tools")
    return {key: manifest.get(key) for key in kept}


def _thumbnails(judged: Judged, images: Images, known: npt.NDArray[np.bool_]) -> list[str]:
    pixels = images.pixels[known]
    return [pictures.png(pixels[mistake.index], side=THUMBNAIL) for mistake in judged.mistakes]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("alexnet_export.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share, digits=1: "–" if share is None else f"{100 * share:.{digits}f} %"  # noqa: RUF001  as it is printed
    environment.filters["thousands"] = lambda number: f"{number:,}".replace(",", "\u202f")
    environment.filters["sizes"] = lambda sizes: " × ".join(map(str, sizes))  # noqa: RUF001  as it is printed
    return environment
