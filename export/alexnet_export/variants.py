"""Variants of a model (fp32, fp16, int8): create the file, run its gate, measure its speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexnet_client.errors import BadInput
from alexnet_export import rewrites
from alexnet_export.errors import GateFailed
from alexnet_export.gates import Comparison, check_loss, check_parity, compare
from alexnet_export.graph import copy, to_bytes
from alexnet_export.image_sets import Images
from alexnet_export.int8 import Quantized
from alexnet_export.runners import Runner, answers, onnx_runner
from alexnet_export.speed import REPEATS_OF_ONE, Ratio, Speed, measure, ratio
from alexnet_export.to_onnx import check_file

Precision = Literal["auto", "fp32", "fp16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


@dataclass(frozen=True)
class Variant:
    """A model file with the result of its gate and its speed. It passed if ``failure`` is empty."""

    name: str
    path: Path
    bytes: int | None = None
    comparison: Comparison | None = None
    failure: str = ""
    speed: Speed | None = None

    def row(self, *, published: bool) -> dict[str, Any]:
        """Row for tables, the manifest and the report: accuracies are shares, losses percentage points, times ms."""
        comparison, speed = self.comparison, self.speed
        return {
            "name": self.name,
            "bytes": self.bytes,
            "images": comparison.images if comparison else 0,
            "labelled": comparison.labelled if comparison else 0,
            "top1": comparison.top1 if comparison else None,
            "loss_points": asdict(comparison.loss_points) if comparison else None,
            "agreement": comparison.agreement if comparison else None,
            "max_logit_difference": comparison.max_logit_difference if comparison else None,
            "batch1_ms": 1000 * speed.median(1) if speed else None,
            "images_per_second": speed.images_per_second if speed else None,
            "best_batch": speed.best_batch if speed else None,
            "gate": self.failure or "passed",
            "published": published,
        }


@dataclass(frozen=True)
class SpeedUp:
    """Speed-up of a variant by one rewrite of its graph, by batch size."""

    rewrite: rewrites.Rewrite
    variant: str
    ratios: Mapping[int, Ratio]

    def row(self) -> dict[str, Any]:
        """Row for the manifest and the report."""
        return {
            "name": self.rewrite.name,
            "variant": self.variant,
            "description": self.rewrite.description,
            **{f"batch{batch}_speed_up": found.median for batch, found in self.ratios.items()},
            **{f"batch{batch}_quartiles": [found.low, found.high] for batch, found in self.ratios.items()},
        }


def create_variant(
    name: str,
    path: Path,
    write: Callable[[], None],
    images: Images,
    reference: npt.NDArray[np.float32],
    *,
    runner: Callable[[Path], Runner] = onnx_runner,
    check: Callable[[Path], None] = check_file,
    on_images: Callable[[int], None] = lambda images: None,
) -> Variant:
    """Write a file and run its gate; a failure is stored as text.

    Args:
        name: "fp32" must pass the parity gate, any other name the accuracy gate.
        path: of the file that ``write`` writes.
        write: writes it.
        images: for the gate.
        reference: PyTorch's logits [N, classes] of the images.
        runner: creates a runner of the file.
        check: raises if the file violates the model contract.
        on_images: called with the number of images of each batch.
    """
    comparison = None
    try:
        write()
        check(path)
        comparison = compare(reference, answers(runner(path), images.pixels, on_images=on_images), images.labels)
        (check_parity if name == "fp32" else check_loss)(comparison)
    except (GateFailed, BadInput) as error:
        return Variant(name, path, _size(path), comparison, str(error))
    return Variant(name, path, _size(path), comparison)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def fastest(variants: list[Variant]) -> Variant:
    """The variant with the highest throughput among those that passed their gate."""
    passed = [variant for variant in variants if not variant.failure and variant.speed]
    return max(passed, key=lambda variant: variant.speed.images_per_second if variant.speed else 0)


def measure_rewrites(
    exported: ir.Model,
    quantized: Quantized | None,
    *,
    rounds: int,
    repeats_of_one: int = REPEATS_OF_ONE,
    on_round: Callable[[], None] = lambda: None,
) -> list[SpeedUp]:
    """Measure the graph before and after each rewrite, in the order of their application.

    The float rewrites are measured on the float graph. Those that do not change the inputs of the layers are also
    measured on the integer graph, where they are a larger share of the time.
    """
    stages = {"fp32": _stages(exported, rewrites.FLOAT)}
    if quantized is not None:
        with_pool = copy(exported)
        rewrites.fold_normalization(with_pool)
        integer = _stages(quantized.again(with_pool), ())
        without = quantized.model
        stages["int8"] = [*integer, (rewrites.FLOAT[0], without), *_stages(without, rewrites.QUANTISED)[1:]]
    found = []
    for variant, models in stages.items():
        runners = {str(place): onnx_runner(to_bytes(model)) for place, (_, model) in enumerate(models)}
        speeds = measure(runners, rounds=rounds, batch_sizes=(1, 32), repeats_of_one=repeats_of_one, on_round=on_round)
        for place, (rewrite, _) in enumerate(models):
            if rewrite is None:
                continue
            before, after = speeds[str(place - 1)].seconds, speeds[str(place)].seconds
            found.append(SpeedUp(rewrite, variant, {batch: ratio(after[batch], before[batch]) for batch in after}))
    return found


def _stages(model: ir.Model, passes: tuple[rewrites.Rewrite, ...]) -> list[tuple[rewrites.Rewrite | None, ir.Model]]:
    """The graph, and the graph after each pass that finds its pattern."""
    stages: list[tuple[rewrites.Rewrite | None, ir.Model]] = [(None, model)]
    for rewrite in passes:
        after = copy(stages[-1][1])
        if rewrite.apply(after):
            stages.append((rewrite, after))
    return stages
