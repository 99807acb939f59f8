"""From a checkpoint to a release: export, create the variants, run the gates, measure speed, publish the winner."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import onnxruntime
import torch

from alexnet_client.cpus import has_int8_instructions
from alexnet_client.errors import BadInput
from alexnet_client.files import cache_directory
from alexnet_export import int8, quantize, rewrites
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet
from alexnet_export.errors import GateFailed
from alexnet_export.gates import BUDGET_POINTS, PARITY_TOLERANCE
from alexnet_export.graph import copy, read_model, write_model
from alexnet_export.image_sets import (
    MAXIMUM_IMAGES,
    MINIMUM_IMAGES,
    Images,
    calibration_images,
    gate_images,
    selection_images,
)
from alexnet_export.machine import describe_cpu, git_revision
from alexnet_export.publish import check_publishable, publish
from alexnet_export.releases import Release
from alexnet_export.runners import CPU, CUDA, answers, fastest_provider, onnx_runner, torch_runner
from alexnet_export.speed import BATCH_SIZES, REPEATS_OF_ONE, measure
from alexnet_export.to_fp16 import to_fp16
from alexnet_export.to_onnx import IR_VERSION, MAX_BATCH_SIZE, OPSET, export_onnx
from alexnet_export.to_tensorrt import Engine, build_engine, tensorrt_missing
from alexnet_export.variants import (
    PRECISIONS,
    Precision,
    Variant,
    create_variant,
    fastest,
)


@dataclass(frozen=True)
class ExportOptions:
    """Effort of an export.

    Attributes:
        rounds: of each speed measurement.
        batch_sizes: at which the variants are measured; must contain 1.
        repeats_of_one: runs of a batch of one in each round.
        minimum_images: smallest number of images for the gates.
        maximum_images: largest number of test images for the gates.
        sensitivity_images: images to measure the error of each quantised layer on.
    """

    rounds: int = 7
    batch_sizes: Sequence[int] = BATCH_SIZES
    repeats_of_one: int = REPEATS_OF_ONE
    minimum_images: int = MINIMUM_IMAGES
    maximum_images: int = MAXIMUM_IMAGES
    sensitivity_images: int = int8.SENSITIVITY_IMAGES


DEFAULT_OPTIONS = ExportOptions()


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` units of a named step."""

    step: str
    done: int
    total: int


@dataclass(frozen=True)
class Exported:
    """Result of an export; ``release`` contains the file of ``winner``."""

    release: Release
    winner: Variant
    variants: tuple[Variant, ...]
    quantized: int8.Quantized | None
    unreadable: tuple[str, ...]


def export_release(
    checkpoint: Checkpoint,
    dataset: DataSet,
    repository: Path,
    *,
    precision: Precision = "auto",
    options: ExportOptions = DEFAULT_OPTIONS,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_variants: Callable[[list[Variant]], None] = lambda variants: None,
) -> Exported:
    """Export a checkpoint, validate the variants, and publish one as the next version.

    Args:
        checkpoint: the network.
        dataset: images for calibration, for choosing a quantisation and for the gates.
        repository: the Triton model repository.
        precision: the variant to publish; "auto" is the fastest on this machine that passes its gate.
        options: effort of the export.
        on_progress: called during each step.
        on_variants: called with all variants before one is published or the export fails.

    Raises:
        GateFailed: the requested variant failed its gate; nothing is published.
        BadInput: there are too few images, or the repository cannot be written; it is unchanged.
    """
    if precision not in PRECISIONS:
        raise BadInput(f"--precision {precision}: unknown; choose one of {', '.join(PRECISIONS)}")
    check_publishable(repository, checkpoint.labels)  # before minutes of work
    with tempfile.TemporaryDirectory(prefix="alexnet-export-") as scratch:
        run = _Run(checkpoint, dataset, Path(scratch), options, on_progress)
        variants = run.create_variants(precision)
        variants = run.measure_speed(variants)
        on_variants(variants)
        winner = _winner(variants, precision)
        engine = run.build_engine(winner)
        on_progress(Progress("Publishing", 0, 1))
        manifest = _manifest(run, winner, variants, engine)
        files = {"model.onnx": winner.path, **({"model.plan": engine.path} if engine else {})}
        release = publish(repository, files, checkpoint.labels, manifest)
        on_progress(Progress("Publishing", 1, 1))
        return Exported(release, winner, tuple(variants), run.quantized, run.unreadable)


class _Run:
    """One export in a scratch directory."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dataset: DataSet,
        scratch: Path,
        options: ExportOptions,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.checkpoint, self.dataset, self.scratch = checkpoint, dataset, scratch
        self.options, self.on_progress = options, on_progress
        self.quantized: int8.Quantized | None = None
        self.unreadable: tuple[str, ...] = ()
        self.provider = fastest_provider()
        self.scheme = quantize.CPU if has_int8_instructions() else quantize.CPU_WITHOUT_VNNI
        if self.provider == CUDA:
            self.scheme = quantize.TENSORRT

    def create_variants(self, precision: Precision) -> list[Variant]:
        """Export, and create and validate the variants for ``precision``; fp32 is always one of them."""
        report = self._counter("Exporting to ONNX", 1)
        exported = self._path("exported")
        export_onnx(self.checkpoint, exported, metadata={"git_revision": git_revision()})
        self.exported = read_model(exported)
        report(1)
        self.folded = copy(self.exported)
        for rewrite in rewrites.FLOAT:
            rewrite(self.folded)
        minimum, maximum = self.options.minimum_images, self.options.maximum_images
        self.images = gate_images(self.dataset, self.checkpoint.labels, minimum=minimum, maximum=maximum)
        report = self._counter("Running PyTorch", len(self.images))
        self.reference = answers(torch_runner(self.checkpoint), self.images.pixels, on_images=report)
        self._add_unreadable(self.images)
        variants = [self._create("fp32", lambda: write_model(self.folded, self._path("fp32")))]
        # On a GPU, fp16 is the fast variant; int8 needs TensorRT to run as integers.
        if precision == "fp16" or (precision == "auto" and self.provider == CUDA):
            variants.append(self._create("fp16", lambda: to_fp16(self._path("exported"), self._path("fp16"))))
        if precision == "int8" or (precision == "auto" and self.provider == CPU):
            variants.append(self._create("int8", self._write_int8))
        return variants

    def measure_speed(self, variants: list[Variant]) -> list[Variant]:
        """Add the speeds to the variants that passed."""
        report = self._counter("Measuring the variants", self.options.rounds + 1)
        passed = [each for each in variants if not each.failure]
        speeds = measure(
            {each.name: onnx_runner(each.path, provider=self.provider) for each in passed},
            rounds=self.options.rounds,
            batch_sizes=self.options.batch_sizes,
            repeats_of_one=self.options.repeats_of_one,
            on_round=lambda: report(1),
        )
        return [replace(each, speed=speeds.get(each.name)) for each in variants]

    def build_engine(self, winner: Variant) -> Variant | None:
        """Build the TensorRT engine of the winner and run its gate; None without TensorRT.

        Raises:
            GateFailed: the engine cannot be built, or fails its gate.
        """
        if tensorrt_missing():
            return None
        plan = self.scratch / "model.plan"
        engine = create_variant(
            winner.name if winner.name != "fp32" else "tensorrt fp32",
            plan,
            lambda: self._write_engine(winner.path, plan),
            self.images,
            self.reference,
            runner=Engine,
            check=lambda path: None,
        )
        if engine.failure:
            raise GateFailed(f"model.plan: {engine.failure}")
        return engine

    def _write_engine(self, source: Path, plan: Path) -> None:
        build_engine(source, plan, cache=cache_directory() / "tensorrt")

    def _write_int8(self) -> None:
        calibration = calibration_images(self.dataset)
        selection = selection_images(self.dataset, self.checkpoint.labels)
        self._add_unreadable(calibration, selection)
        report = self._counter("Choosing the quantisation", int8.steps(self.folded))
        self.quantized = int8.choose(
            self.folded,
            calibration,
            selection,
            self.scheme,
            sensitivity_images=self.options.sensitivity_images,
            on_step=lambda: report(1),
        )
        write_model(int8.finish(self.quantized, self.scheme), self._path("int8"))

    def _create(self, name: str, write: Callable[[], None]) -> Variant:
        report = self._counter(f"Validating {name}", len(self.images))
        return create_variant(name, self._path(name), write, self.images, self.reference, on_images=report)

    def _path(self, name: str) -> Path:
        return self.scratch / f"{name}.onnx"

    def _add_unreadable(self, *images: Images) -> None:
        lines = [line for each in images for line in each.unreadable]
        self.unreadable += tuple(line for line in lines if line not in self.unreadable)

    def _counter(self, step: str, total: int) -> Callable[[int], None]:
        done = 0
        self.on_progress(Progress(step, 0, total))

        def count(more: int) -> None:
            nonlocal done
            done = min(total, done + more)
            self.on_progress(Progress(step, done, total))

        return count


def _winner(variants: list[Variant], precision: Precision) -> Variant:
    failed = next((each for each in variants if each.failure and each.name in (precision, "fp32")), None)
    if failed is not None:  # an fp32 file that fails means that the export itself is wrong
        raise GateFailed(f"{failed.name}: {failed.failure}")
    return fastest(variants) if precision == "auto" else next(each for each in variants if each.name == precision)


def _manifest(run: _Run, winner: Variant, variants: list[Variant], engine: Variant | None) -> dict[str, Any]:
    """The manifest of the release, without the hashes of its files."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_revision": git_revision(),
        "precision": winner.name,
        "opset": OPSET,
        "ir_version": IR_VERSION,
        "max_batch_size": MAX_BATCH_SIZE,
        "checkpoint": {"sha256": run.checkpoint.sha256, "made_by": dict(run.checkpoint.made_by)},
        "normalization": asdict(run.checkpoint.normalization),
        "gates": {
            "images_from": run.dataset.name,
            "parity_tolerance": PARITY_TOLERANCE,
            "budget_points": BUDGET_POINTS,
            "unreadable": len(run.unreadable),
        },
        "variants": [each.row(published=each is winner) for each in variants],
        "engine": engine.row(published=True) if engine else None,
        "quantization": _quantization(run) if winner.name == "int8" else None,
        "machine": describe_cpu(),
        "tools": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnx_ir": onnx_ir.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }


def _quantization(run: _Run) -> dict[str, Any]:
    assert run.quantized is not None
    layers = len(run.quantized.harm)
    return {
        "activations": "uint8" if run.scheme.unsigned else "int8, symmetric",
        "weights": "int8, one scale per filter",
        "reduce_range": run.scheme is quantize.CPU_WITHOUT_VNNI,
        "method": run.quantized.trial.method,
        "integer_layers": layers - len(run.quantized.trial.float_layers),
        "layers": layers,
        "float_layers": list(run.quantized.trial.float_layers),
        "trials": [asdict(trial) for trial in run.quantized.trials],
        "sensitivity": [asdict(each) for each in run.quantized.harm],
    }
