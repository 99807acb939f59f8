"""From a checkpoint to a release: export, make the variants, judge, time, publish the winner; or publish nothing."""

from __future__ import annotations

import platform
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import onnxruntime
import torch

from alexnet_export import int8, quantize, rewrites
from alexnet_export.atomic import user_cache
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet
from alexnet_export.errors import GateFailed, UserError
from alexnet_export.gates import BUDGET_POINTS, PARITY_TOLERANCE
from alexnet_export.gateset import Images, calibration_images, choice_images, gate_images
from alexnet_export.graph import copy, read_model, write_model
from alexnet_export.machine import cpu_description, has_vnni
from alexnet_export.publish import Release, check_publishable, publish
from alexnet_export.runners import CPU, CUDA, fastest_provider, onnx_runner, torch_runner
from alexnet_export.speed import BATCH_SIZES, measure
from alexnet_export.to_fp16 import to_fp16
from alexnet_export.to_onnx import IR_VERSION, MAX_BATCH_SIZE, OPSET, export_onnx
from alexnet_export.to_tensorrt import Engine, build_engine, tensorrt_missing
from alexnet_export.variants import PRECISIONS, ROUNDS, Precision, Variant, Worth, attempt, fastest, rewrites_worth
from alexnet_export.verify import answers


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` units of a named step."""

    step: str
    done: int
    total: int


@dataclass(frozen=True)
class Exported:
    """What was made and what came of it; ``release`` is the published winner."""

    release: Release
    winner: Variant
    variants: tuple[Variant, ...]
    worth: tuple[Worth, ...]
    quantized: int8.Quantized | None
    unreadable: tuple[str, ...]


Report = Callable[[Progress], None]


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
        work = _Work(checkpoint, dataset, Path(scratch), on_progress)
        variants = work.make(precision)
        worth = work.worth() if precision in ("auto", "int8") else []
        variants = work.time(variants)
        on_variants(variants)
        winner = _winner(variants, precision)
        engine = work.engine(winner)
        on_progress(Progress("Publishing", 0, 1))
        manifest = work.manifest(winner, variants, worth, engine)
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


class _Work:
    """The files of one export in a scratch directory, and what was found on the way."""

    def __init__(self, checkpoint: Checkpoint, dataset: DataSet, scratch: Path, report: Report) -> None:
        self.checkpoint, self.dataset, self.scratch, self.report = checkpoint, dataset, scratch, report
        self.quantized: int8.Quantized | None = None
        self.unreadable: tuple[str, ...] = ()
        self.provider = fastest_provider()
        self.scheme = quantize.CPU if has_vnni() else quantize.CPU_WITHOUT_VNNI
        if self.provider == CUDA:
            self.scheme = quantize.TENSORRT

    def make(self, precision: Precision) -> list[Variant]:
        """Export, and make and judge the variants that ``precision`` needs: fp32 always, the others stand on it."""
        report = self._counter("Exporting to ONNX", 1)
        exported = self._path("exported")
        export_onnx(self.checkpoint, exported, metadata={"git_revision": git_revision()})
        self.exported = read_model(exported)
        report(1)
        self.folded = copy(self.exported)
        for rewrite in rewrites.FLOAT:
            rewrite.apply(self.folded)
        self.images = gate_images(self.dataset, self.checkpoint.labels)
        report = self._counter("Asking PyTorch", len(self.images))
        self.reference = answers(torch_runner(self.checkpoint), self.images.pixels, on_images=report)
        self._skipped(self.images)
        variants = [self._attempt("fp32", lambda: write_model(self.folded, self._path("fp32")))]
        # On a GPU half precision is the fast one, and integers need TensorRT to run as integers.
        if precision == "fp16" or (precision == "auto" and self.provider == CUDA):
            variants.append(self._attempt("fp16", lambda: to_fp16(self._path("exported"), self._path("fp16"))))
        if precision == "int8" or (precision == "auto" and self.provider == CPU):
            variants.append(self._attempt("int8", self._write_int8))
        return variants

    def worth(self) -> list[Worth]:
        """What each rewrite is worth on this machine."""
        sides = 1 if self.quantized is None else 2
        report = self._counter("Timing the rewrites", sides * (ROUNDS + 1))
        return rewrites_worth(self.exported, self.quantized, on_round=lambda: report(1))

    def time(self, variants: list[Variant]) -> list[Variant]:
        """The variants with their speeds, taken in turns."""
        report = self._counter("Timing the variants", ROUNDS + 1)
        passed = [each for each in variants if not each.failure]
        runners = {each.name: onnx_runner(each.path, provider=self.provider) for each in passed}
        speeds = measure(runners, rounds=ROUNDS, batch_sizes=BATCH_SIZES, on_round=lambda: report(1))
        return [replace(each, speed=speeds.get(each.name)) for each in variants]

    def engine(self, winner: Variant) -> Variant | None:
        """TensorRT's engine of the winner where there is TensorRT, judged by the winner's gate; None elsewhere.

        Raises:
            GateFailed: it cannot be built, or answers otherwise than it may.
        """
        if tensorrt_missing():
            return None
        plan = self.scratch / "model.plan"
        made = attempt(
            winner.name if winner.name != "fp32" else "tensorrt fp32",
            plan,
            lambda: self._build(winner.path, plan),
            self.images,
            self.reference,
            runner=Engine,
            check=lambda path: None,
        )
        if made.failure:
            raise GateFailed(f"model.plan: {made.failure}")
        return made

    def _build(self, source: Path, plan: Path) -> None:
        build_engine(source, plan, cache=user_cache() / "tensorrt")

    def manifest(
        self, winner: Variant, variants: list[Variant], worth: list[Worth], engine: Variant | None
    ) -> dict[str, Any]:
        """What the release says beside the hashes of its files."""
        return {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "git_revision": git_revision(),
            "precision": winner.name,
            "opset": OPSET,
            "ir_version": IR_VERSION,
            "max_batch_size": MAX_BATCH_SIZE,
            "checkpoint": {"sha256": self.checkpoint.sha256, "made_by": dict(self.checkpoint.made_by)},
            "normalization": asdict(self.checkpoint.normalization),
            "gates": {
                "images_from": self.dataset.name,
                "parity_tolerance": PARITY_TOLERANCE,
                "budget_points": BUDGET_POINTS,
                "unreadable": len(self.unreadable),
            },
            "variants": [each.row(published=each is winner) for each in variants],
            "engine": engine.row(published=True) if engine else None,
            "rewrites": [each.row() for each in worth],
            "quantization": self._quantization() if winner.name == "int8" else None,
            "machine": cpu_description(),
            "tools": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "onnx": onnx.__version__,
                "onnx_ir": onnx_ir.__version__,
                "onnxruntime": onnxruntime.__version__,
            },
        }

    def _quantization(self) -> dict[str, Any]:
        assert self.quantized is not None
        layers = len(self.quantized.harm)
        return {
            "activations": "uint8" if self.scheme.unsigned else "int8, symmetric",
            "weights": "int8, a scale for each filter",
            "reduce_range": self.scheme is quantize.CPU_WITHOUT_VNNI,
            "method": self.quantized.trial.method,
            "integer_layers": layers - len(self.quantized.trial.float_layers),
            "layers": layers,
            "float_layers": list(self.quantized.trial.float_layers),
            "trials": [asdict(trial) for trial in self.quantized.trials],
            "sensitivity": [asdict(each) for each in self.quantized.harm],
        }

    def _write_int8(self) -> None:
        calibration = calibration_images(self.dataset)
        choice = choice_images(self.dataset, self.checkpoint.labels)
        self._skipped(calibration, choice)
        report = self._counter("Choosing how to quantise", int8.steps(self.folded))
        self.quantized = int8.choose(self.folded, calibration, choice, self.scheme, on_step=lambda: report(1))
        write_model(int8.finish(self.quantized, self.scheme), self._path("int8"))

    def _attempt(self, name: str, make: Callable[[], None]) -> Variant:
        report = self._counter(f"Judging {name}", len(self.images))
        return attempt(name, self._path(name), make, self.images, self.reference, on_images=report)

    def _path(self, name: str) -> Path:
        return self.scratch / f"{name}.onnx"

    def _skipped(self, *images: Images) -> None:
        lines = [line for each in images for line in each.unreadable]
        self.unreadable += tuple(line for line in lines if line not in self.unreadable)

    def _counter(self, step: str, total: int) -> Callable[[int], None]:
        done = 0
        self.report(Progress(step, 0, total))

        def count(more: int) -> None:
            nonlocal done
            done = min(total, done + more)
            self.report(Progress(step, done, total))

        return count


def git_revision() -> str:
    """The commit of the source tree this package is run from, with ``-dirty`` if it was changed; else "unknown"."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
