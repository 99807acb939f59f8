"""From a checkpoint to a release: export, check, compare, publish. Nothing is published unless all went well."""

from __future__ import annotations

import platform
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet
from alexnet_export.publish import Release, publish
from alexnet_export.to_onnx import IR_VERSION, MAX_BATCH_SIZE, OPSET, export_onnx
from alexnet_export.verify import MINIMUM_IMAGES, Parity, verify


@dataclass(frozen=True)
class Exported:
    """A release and the proof it earned its place with."""

    release: Release
    parity: Parity
    model_bytes: int


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` units of a named step."""

    step: str
    done: int
    total: int


def export_release(
    checkpoint: Checkpoint,
    dataset: DataSet,
    repository: Path,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Exported:
    """Export a checkpoint to ONNX, prove that it gives PyTorch's answers, and publish it as the next version.

    Args:
        checkpoint: what to publish.
        dataset: the images to compare on.
        repository: the Triton model repository.
        on_progress: called as the steps go on.

    Raises:
        GateFailed: the export is not equal to its source; nothing is published.
        UserError: too few images, or the disk refuses; the repository is as it was.
    """
    with tempfile.TemporaryDirectory(prefix="alexnet-export-") as scratch:
        model = Path(scratch) / "model.onnx"
        on_progress(Progress("Exporting to ONNX", 0, 1))
        export_onnx(checkpoint, model, metadata={"git_revision": git_revision()})
        on_progress(Progress("Exporting to ONNX", 1, 1))
        done = 0

        def count(images: int) -> None:
            nonlocal done
            done += images
            on_progress(Progress("Comparing with PyTorch", min(done, MINIMUM_IMAGES), MINIMUM_IMAGES))

        parity = verify(checkpoint, model, dataset, on_batch=count)
        on_progress(Progress("Publishing", 0, 1))
        manifest = describe(checkpoint, dataset, parity)
        release = publish(repository, {model.name: model}, checkpoint.labels, manifest)
        on_progress(Progress("Publishing", 1, 1))
        return Exported(release, parity, model.stat().st_size)


def describe(checkpoint: Checkpoint, dataset: DataSet, parity: Parity) -> dict[str, Any]:
    """What a manifest says beside the hashes of its files."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_revision": git_revision(),
        "precision": "fp32",
        "opset": OPSET,
        "ir_version": IR_VERSION,
        "max_batch_size": MAX_BATCH_SIZE,
        "checkpoint": {"sha256": checkpoint.sha256, "made_by": dict(checkpoint.made_by)},
        "normalization": asdict(checkpoint.normalization),
        "gates": {"parity": {**asdict(parity), "images_from": dataset.name}},
        "tools": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }


def git_revision() -> str:
    """The commit of the source tree this package is run from, with ``-dirty`` if it was changed; else "unknown"."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
