"""From a checkpoint to a release: export, make the variants, judge, time, publish the winner; or publish nothing."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import onnxruntime
import torch

from alexnet_export import int8, quantize
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet
from alexnet_export.errors import GateFailed, UserError
from alexnet_export.gates import BUDGET_POINTS, PARITY_TOLERANCE
from alexnet_export.machine import cpu_description, git_revision
from alexnet_export.publish import check_publishable, publish
from alexnet_export.releases import Release
from alexnet_export.to_onnx import IR_VERSION, MAX_BATCH_SIZE, OPSET
from alexnet_export.variants import PRECISIONS, Precision, Variant, Worth, fastest
from alexnet_export.work import Progress, Report, Work


@dataclass(frozen=True)
class Exported:
    """What was made and what came of it; ``release`` is the published winner."""

    release: Release
    winner: Variant
    variants: tuple[Variant, ...]
    worth: tuple[Worth, ...]
    quantized: int8.Quantized | None
    unreadable: tuple[str, ...]


def export_release(
    checkpoint: Checkpoint,
    dataset: DataSet,
    repository: Path,
    *,
    precision: Precision = "auto",
    on_progress: Report = lambda progress: None,
    on_variants: Callable[[list[Variant]], None] = lambda variants: None,
) -> Exported:
    """Export a checkpoint, make and prove the variants, and publish the one asked for as the next version.

    Args:
        checkpoint: what to publish.
        dataset: the images to calibrate, choose and judge on.
        repository: the Triton model repository.
        precision: which variant to publish; "auto" is the fastest here of those that pass their gates.
        on_progress: called as the steps go on.
        on_variants: called with all that was made and judged, before anything is published or refused.

    Raises:
        GateFailed: the variant asked for failed its gate; nothing is published.
        UserError: too few images, or the disk refuses; the repository is as it was.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision}: unknown; choose one of {', '.join(PRECISIONS)}")
    check_publishable(repository, checkpoint.labels)  # now, not after minutes of work
    with tempfile.TemporaryDirectory(prefix="alexnet-export-") as scratch:
        work = Work(checkpoint, dataset, Path(scratch), on_progress)
        variants = work.make(precision)
        worth = work.worth() if precision in ("auto", "int8") else []
        variants = work.time(variants)
        on_variants(variants)
        winner = _winner(variants, precision)
        engine = work.engine(winner)
        on_progress(Progress("Publishing", 0, 1))
        manifest = describe(work, winner, variants, worth, engine)
        files = {"model.onnx": winner.path, **({"model.plan": engine.path} if engine else {})}
        release = publish(repository, files, checkpoint.labels, manifest)
        on_progress(Progress("Publishing", 1, 1))
        rows = tuple(variants)
        return Exported(release, winner, rows, tuple(worth), work.quantized, work.unreadable)


def _winner(variants: list[Variant], precision: Precision) -> Variant:
    broken = next((each for each in variants if each.failure and each.name in (precision, "fp32")), None)
    if broken is not None:  # a wrong fp32 file means that the export itself is wrong
        raise GateFailed(f"{broken.name}: {broken.failure}")
    return fastest(variants) if precision == "auto" else next(each for each in variants if each.name == precision)


def describe(
    work: Work, winner: Variant, variants: list[Variant], worth: list[Worth], engine: Variant | None
) -> dict[str, Any]:
    """What the release says beside the hashes of its files."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_revision": git_revision(),
        "precision": winner.name,
        "opset": OPSET,
        "ir_version": IR_VERSION,
        "max_batch_size": MAX_BATCH_SIZE,
        "checkpoint": {"sha256": work.checkpoint.sha256, "made_by": dict(work.checkpoint.made_by)},
        "normalization": asdict(work.checkpoint.normalization),
        "gates": {
            "images_from": work.dataset.name,
            "parity_tolerance": PARITY_TOLERANCE,
            "budget_points": BUDGET_POINTS,
            "unreadable": len(work.unreadable),
        },
        "variants": [each.row(published=each is winner) for each in variants],
        "engine": engine.row(published=True) if engine else None,
        "rewrites": [each.row() for each in worth],
        "quantization": _describe_quantization(work) if winner.name == "int8" else None,
        "machine": cpu_description(),
        "tools": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnx_ir": onnx_ir.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }


def _describe_quantization(work: Work) -> dict[str, Any]:
    assert work.quantized is not None
    layers = len(work.quantized.harm)
    return {
        "activations": "uint8" if work.scheme.unsigned else "int8, symmetric",
        "weights": "int8, a scale for each filter",
        "reduce_range": work.scheme is quantize.CPU_WITHOUT_VNNI,
        "method": work.quantized.trial.method,
        "integer_layers": layers - len(work.quantized.trial.float_layers),
        "layers": layers,
        "float_layers": list(work.quantized.trial.float_layers),
        "trials": [asdict(trial) for trial in work.quantized.trials],
        "sensitivity": [asdict(each) for each in work.quantized.harm],
    }
