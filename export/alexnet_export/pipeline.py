"""From a checkpoint to a release: export, create the variants, run the gates, measure speed, publish the winner."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import onnxruntime
import torch
from onnx_ir import from_proto

from alexnet_client.cpus import has_int8_instructions
from alexnet_client.errors import BadInput
from alexnet_client.files import cache_directory
from alexnet_client.golden import GOLDEN, IMAGES, Golden
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet
from alexnet_export.errors import GateFailed
from alexnet_export.gates import BUDGET_POINTS, PARITY_TOLERANCE
from alexnet_export.graph import write_model
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
from alexnet_export.quantize import Quantized, quantize
from alexnet_export.releases import Release
from alexnet_export.runners import answers, engine_settings, gpu_usable, onnx_runner, openvino_engines, torch_runner
from alexnet_export.speed import BATCH_SIZES, REPEATS_OF_ONE, measure
from alexnet_export.to_fp16 import to_fp16
from alexnet_export.to_onnx import IR_VERSION, MAX_BATCH_SIZE, OPSET, export_onnx
from alexnet_export.to_tensorrt import Engine, build_engine, tensorrt_missing
from alexnet_export.triton_config import CUDA, ONNXRUNTIME, OPENVINO_BF16
from alexnet_export.variants import PRECISIONS, Precision, Variant, fastest, validate
from alexnet_server.onnxruntime.providers import ConfigError


@dataclass(frozen=True)
class ExportOptions:
    """Effort of an export.

    Attributes:
        rounds: of each speed measurement.
        batch_sizes: at which the variants are measured; must contain 1.
        repeats_of_one: runs of a batch of one in each round.
        minimum_images: smallest number of images for the gates.
        maximum_images: largest number of test images for the gates.
    """

    rounds: int = 7
    batch_sizes: Sequence[int] = BATCH_SIZES
    repeats_of_one: int = REPEATS_OF_ONE
    minimum_images: int = MINIMUM_IMAGES
    maximum_images: int = MAXIMUM_IMAGES


DEFAULT_OPTIONS = ExportOptions()
IN_NVIDIA_CONTAINER = (
    "its C++ backend ignores engine_options and computes operators that are not quantised in bf16 if the CPU can; "
    "`alexnet-server probe --golden` compares its answers"
)
"""In the manifest: what the container does differently (https://github.com/triton-inference-server/onnxruntime_backend/issues/260)."""


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` units of a named step."""

    step: str
    done: int
    total: int


@dataclass(frozen=True)
class Exported:
    """Result of an export; ``release`` contains the file of ``winner``. ``without_openvino``: why OpenVINO was not used."""

    release: Release
    winner: Variant
    variants: tuple[Variant, ...]
    quantized: Quantized | None
    unreadable: tuple[str, ...]
    without_openvino: str


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
        files = {"model.onnx": winner.path, GOLDEN: run.write_golden(winner)}
        release = publish(
            repository, files | ({"model.plan": engine.path} if engine else {}), checkpoint.labels, manifest
        )
        on_progress(Progress("Publishing", 1, 1))
        return Exported(release, winner, tuple(variants), run.quantized, run.unreadable, run.without_openvino)


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
        self.quantized: Quantized | None = None
        self.unreadable: tuple[str, ...] = ()
        self.without_openvino = ""
        if gpu_usable():
            self.engines = [CUDA]
        else:
            self.engines = [ONNXRUNTIME]
            try:
                self.engines += openvino_engines()
            except ConfigError as error:
                self.without_openvino = str(error)

    def create_variants(self, precision: Precision) -> list[Variant]:
        """Export, and create and validate the variants for ``precision``; fp32 is always one of them."""
        if precision == "bf16" and OPENVINO_BF16 not in self.engines:
            why = self.without_openvino or "it needs a CPU with bfloat16 instructions, and no GPU"
            raise BadInput(f"--precision bf16: not available on this machine: {why}")
        report = self._counter("Exporting to ONNX", 1)
        export_onnx(self.checkpoint, self._path("fp32"), metadata={"git_revision": git_revision()})
        report(1)
        minimum, maximum = self.options.minimum_images, self.options.maximum_images
        self.images = gate_images(self.dataset, self.checkpoint.labels, minimum=minimum, maximum=maximum)
        report = self._counter("Running PyTorch", len(self.images))
        self.reference = answers(torch_runner(self.checkpoint), self.images.pixels, on_images=report)
        self._add_unreadable(self.images)
        on_gpu, auto = self.engines == [CUDA], precision == "auto"
        variants = [self._validate("fp32", self.engines[0])]
        if OPENVINO_BF16 in self.engines and (auto or precision == "bf16"):
            variants.append(self._validate("bf16", OPENVINO_BF16, "fp32"))
        # On a GPU, fp16 is the fast variant; int8 needs TensorRT to run as integers.
        if precision == "fp16" or (auto and on_gpu):
            to_fp16(self._path("fp32"), self._path("fp16"))
            variants.append(self._validate("fp16", self.engines[0]))
        if precision == "int8" or (auto and not on_gpu):
            variants += self._int8_variants()
        return variants

    def measure_speed(self, variants: list[Variant]) -> list[Variant]:
        """Add the speeds to the variants that passed."""
        report = self._counter("Measuring the variants", self.options.rounds + 1)
        passed = [each for each in variants if not each.failure]
        speeds = measure(
            {each.title: onnx_runner(each.path, engine=each.engine) for each in passed},
            rounds=self.options.rounds,
            batch_sizes=self.options.batch_sizes,
            repeats_of_one=self.options.repeats_of_one,
            on_round=lambda: report(1),
        )
        return [replace(each, speed=speeds.get(each.title)) for each in variants]

    def build_engine(self, winner: Variant) -> Variant | None:
        """Build the TensorRT engine of the winner and run its gate; None without TensorRT.

        Raises:
            GateFailed: the engine cannot be built, or fails its gate.
        """
        if tensorrt_missing():
            return None
        plan = self.scratch / "model.plan"
        build_engine(winner.path, plan, cache=cache_directory() / "tensorrt")
        name = winner.name if winner.name != "fp32" else "tensorrt fp32"
        built = validate(name, "tensorrt", plan, self.images, self.reference, Engine, check=lambda path: None)
        if built.failure:
            raise GateFailed(f"model.plan: {built.failure}")
        return built

    def write_golden(self, winner: Variant) -> Path:
        """The first images of the gate with the answers of the winner, which ran them in batches of 1, 2 and 7."""
        assert winner.logits is not None
        path = self.scratch / GOLDEN
        Golden(self.images.pixels[:IMAGES], winner.logits[:IMAGES]).write(path)
        return path

    def _int8_variants(self) -> list[Variant]:
        on_gpu = self.engines == [CUDA]
        calibration = calibration_images(self.dataset)
        selection = selection_images(self.dataset, self.checkpoint.labels)
        self._add_unreadable(calibration, selection)
        try:
            self.quantized = quantize(
                self._path("fp32"),
                calibration,
                selection,
                reduce_range=not on_gpu and not has_int8_instructions(),
                signed=on_gpu,
                on_images=self._counter("Quantising", len(calibration)),
            )
        except GateFailed as error:
            return [Variant("int8", self.engines[0], self._path("int8"), failure=str(error))]
        write_model(from_proto(self.quantized.model), self._path("int8"))
        return [self._validate("int8", engine) for engine in self.engines if engine != OPENVINO_BF16]

    def _validate(self, name: str, engine: str, file: str = "") -> Variant:
        report = self._counter(f"Validating {name}, {engine}", len(self.images))
        runner = partial(onnx_runner, engine=engine)
        return validate(name, engine, self._path(file or name), self.images, self.reference, runner, on_images=report)

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
    fp32 = next(each for each in variants if each.name == "fp32")
    if fp32.failure:  # the export itself is wrong
        raise GateFailed(f"fp32: {fp32.failure}")
    wanted = [each for each in variants if precision in ("auto", each.name)]
    if all(each.failure for each in wanted):
        raise GateFailed("; ".join(f"{each.title}: {each.failure}" for each in wanted))
    return fastest(wanted)


def _manifest(run: _Run, winner: Variant, variants: list[Variant], engine: Variant | None) -> dict[str, Any]:
    """The manifest of the release, without the hashes of its files."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_revision": git_revision(),
        "precision": winner.name,
        "engine": winner.engine,
        "engine_options": dict(engine_settings(winner.engine).providers[0][1]),
        "in_nvidia_container": IN_NVIDIA_CONTAINER if "openvino" in winner.engine else "",
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
        "tensorrt": engine.row(published=True) if engine else None,
        "quantization": _quantization(run.quantized) if winner.name == "int8" and run.quantized else None,
        "machine": describe_cpu(),
        "tools": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnx_ir": onnx_ir.__version__,
            "onnxruntime": onnxruntime.__version__,
            **({"onnxruntime-ep-openvino": version("onnxruntime-ep-openvino")} if "openvino" in winner.engine else {}),
        },
    }


def _quantization(quantized: Quantized) -> dict[str, Any]:
    return {
        "by": f"NNCF {version('nncf')}",
        "activations": "int8" if quantized.signed else "uint8",
        "weights": "int8, one scale per filter",
        "reduce_range": quantized.reduce_range,
        "calibration_images": quantized.calibration_images,
        "integer_layers": quantized.layers - len(quantized.float_layers),
        "layers": quantized.layers,
        "float_layers": list(quantized.float_layers),
        "rms_error": quantized.error,
    }
