"""Variants of a release: a model file and the engine that runs it. Run their gates, and compare their speeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from alexnet_client.errors import BadInput
from alexnet_client.golden import rms_error
from alexnet_export.errors import GateFailed
from alexnet_export.gates import Comparison, check_loss, check_parity, compare
from alexnet_export.image_sets import Images
from alexnet_export.runners import Runner, answers
from alexnet_export.speed import Speed
from alexnet_export.to_onnx import check_file

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


@dataclass(frozen=True)
class Variant:
    """A model file and an engine, with the result of the gate and the speed. It passed if ``failure`` is empty.

    Attributes:
        name: precision of the arithmetic: "fp32", "bf16", "fp16" or "int8". fp32 and bf16 share a file.
        engine: what computes, see ``alexnet_server.onnxruntime.settings.Settings.engine``.
        logits: of the images of the gate, float32 [N, classes].
    """

    name: str
    engine: str
    path: Path
    bytes: int | None = None
    comparison: Comparison | None = None
    rms_error: float | None = None
    failure: str = ""
    logits: npt.NDArray[np.float32] | None = None
    speed: Speed | None = None

    @property
    def title(self) -> str:
        """Precision and engine."""
        return f"{self.name}, {self.engine}"

    def row(self, *, published: bool) -> dict[str, Any]:
        """Row for tables, the manifest and the report: accuracies are shares, losses percentage points, times ms."""
        comparison, speed = self.comparison, self.speed
        return {
            "name": self.name,
            "engine": self.engine,
            "bytes": self.bytes,
            "images": comparison.images if comparison else 0,
            "labelled": comparison.labelled if comparison else 0,
            "top1": comparison.top1 if comparison else None,
            "loss_points": asdict(comparison.loss_points) if comparison else None,
            "agreement": comparison.agreement if comparison else None,
            "max_logit_difference": comparison.max_logit_difference if comparison else None,
            "rms_error": self.rms_error,
            "batch1_ms": 1000 * speed.median(1) if speed else None,
            "images_per_second": speed.images_per_second if speed else None,
            "best_batch": speed.best_batch if speed else None,
            "gate": self.failure or "passed",
            "published": published,
        }


def validate(
    name: str,
    engine: str,
    path: Path,
    images: Images,
    reference: npt.NDArray[np.float32],
    runner: Callable[[Path], Runner],
    *,
    check: Callable[[Path], None] = check_file,
    on_images: Callable[[int], None] = lambda images: None,
) -> Variant:
    """Run the gate of a file; a failure is stored as text.

    Args:
        name: "fp32" must pass the parity gate, any other name the accuracy gate.
        engine: name of the engine.
        path: of the file.
        images: for the gate.
        reference: PyTorch's logits [N, classes] of the images.
        runner: creates a runner of the file with this engine.
        check: raises if the file violates the model contract.
        on_images: called with the number of images of each batch.
    """
    size = path.stat().st_size
    comparison, logits, error = None, None, None
    try:
        check(path)
        logits = answers(runner(path), images.pixels, on_images=on_images)
        comparison = compare(reference, logits, images.labels)
        error = rms_error(reference, logits)
        (check_parity if name == "fp32" else check_loss)(comparison)
    except (GateFailed, BadInput) as failed:
        return Variant(name, engine, path, size, comparison, error, str(failed))
    return Variant(name, engine, path, size, comparison, error, logits=logits)


def fastest(variants: Sequence[Variant]) -> Variant:
    """The variant with the highest throughput among those that passed their gate."""
    passed = [variant for variant in variants if not variant.failure and variant.speed]
    return max(passed, key=lambda variant: variant.speed.images_per_second if variant.speed else 0)
