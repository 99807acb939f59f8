"""The files that could be published: each made, judged by its gate and timed beside the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexnet_export import rewrites
from alexnet_export.errors import GateFailed, UserError
from alexnet_export.gates import Judgement, check_loss, check_parity, judge
from alexnet_export.gateset import Images
from alexnet_export.graph import copy, to_bytes
from alexnet_export.int8 import Quantized
from alexnet_export.runners import Runner, onnx_runner
from alexnet_export.speed import Ratio, Speed, measure, ratio
from alexnet_export.to_onnx import check_file
from alexnet_export.verify import answers

Precision = Literal["auto", "fp32", "fp16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
ROUNDS = 7


@dataclass(frozen=True)
class Variant:
    """A file of so many bytes, what its gate found, and its speed. ``failure`` is empty if it may be published."""

    name: str
    path: Path
    bytes: int | None = None
    judgement: Judgement | None = None
    failure: str = ""
    speed: Speed | None = None

    def row(self, *, published: bool) -> dict[str, Any]:
        """For tables, the manifest and the report: bytes, accuracies as shares, losses in points, seconds as ms."""
        judgement, speed = self.judgement, self.speed
        return {
            "name": self.name,
            "bytes": self.bytes,
            "images": judgement.images if judgement else 0,
            "labelled": judgement.labelled if judgement else 0,
            "top1": judgement.top1 if judgement else None,
            "loss_points": asdict(judgement.loss_points) if judgement else None,
            "agreement": judgement.agreement if judgement else None,
            "max_logit_difference": judgement.max_logit_difference if judgement else None,
            "batch1_ms": 1000 * speed.median(1) if speed else None,
            "images_per_second": speed.images_per_second if speed else None,
            "best_batch": speed.best_batch if speed else None,
            "verdict": self.failure or "passed",
            "published": published,
        }


@dataclass(frozen=True)
class Worth:
    """What a rewrite did for the speed of a variant: how many times as fast it made it, by batch size."""

    rewrite: rewrites.Rewrite
    variant: str
    ratios: Mapping[int, Ratio]

    def row(self) -> dict[str, Any]:
        """For the manifest and the report."""
        return {
            "name": self.rewrite.name,
            "variant": self.variant,
            "does": self.rewrite.does,
            **{f"batch{batch}_ratio": found.median for batch, found in self.ratios.items()},
            **{f"batch{batch}_spread": [found.low, found.high] for batch, found in self.ratios.items()},
        }


def attempt(
    name: str,
    path: Path,
    make: Callable[[], None],
    images: Images,
    reference: npt.NDArray[np.float32],
    *,
    runner: Callable[[Path], Runner] = onnx_runner,
    check: Callable[[Path], None] = check_file,
    on_images: Callable[[int], None] = lambda images: None,
) -> Variant:
    """Make a file and let its gate judge it; a failure is kept as text, whatever it was.

    Args:
        name: "fp32" must give the reference's answers, anything else may lose a little accuracy.
        path: of the file that ``make`` writes.
        make: writes it.
        images: to judge on.
        reference: PyTorch's logits [N, classes] of them.
        runner: gives the answers of the file.
        check: refuses a file that breaks a promise.
        on_images: called with the count of images done.
    """
    judgement = None
    try:
        make()
        check(path)
        judgement = judge(reference, answers(runner(path), images.pixels, on_images=on_images), images.labels)
        (check_parity if name == "fp32" else check_loss)(judgement)
    except (GateFailed, UserError) as error:
        return Variant(name, path, _size(path), judgement, str(error))
    return Variant(name, path, _size(path), judgement)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def fastest(variants: list[Variant]) -> Variant:
    """The one to publish: of those that passed, the one with the most images a second."""
    passed = [variant for variant in variants if not variant.failure and variant.speed]
    return max(passed, key=lambda variant: variant.speed.images_per_second if variant.speed else 0)


def rewrites_worth(
    exported: ir.Model, quantized: Quantized | None, *, on_round: Callable[[], None] = lambda: None
) -> list[Worth]:
    """Time the graph before and after each rewrite, in the order they are applied.

    The float rewrites are timed on the float graph, and those of them that leave the layers' inputs alone on the integer
    graph too, where less other work hides them.
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
        speeds = measure(runners, rounds=ROUNDS, batch_sizes=(1, 32), on_round=on_round)
        for place, (rewrite, _) in enumerate(models):
            if rewrite is None:
                continue
            before, after = speeds[str(place - 1)].seconds, speeds[str(place)].seconds
            found.append(Worth(rewrite, variant, {batch: ratio(after[batch], before[batch]) for batch in after}))
    return found


def _stages(model: ir.Model, passes: tuple[rewrites.Rewrite, ...]) -> list[tuple[rewrites.Rewrite | None, ir.Model]]:
    """The graph as it is, and after each pass that finds its pattern."""
    stages: list[tuple[rewrites.Rewrite | None, ir.Model]] = [(None, model)]
    for rewrite in passes:
        after = copy(stages[-1][1])
        if rewrite.apply(after):
            stages.append((rewrite, after))
    return stages
