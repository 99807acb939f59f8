"""Variants of a model (fp32, fp16, int8): create the file, run its gate, measure its speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from alexnet_client.errors import BadInput
from alexnet_export.errors import GateFailed
from alexnet_export.gates import Comparison, check_loss, check_parity, compare
from alexnet_export.image_sets import Images
from alexnet_export.runners import Runner, answers, onnx_runner
from alexnet_export.speed import Speed
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
