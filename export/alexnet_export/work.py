"""One export in a scratch directory: the files it makes, how they are judged and timed, and what was found on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from alexnet_export import int8, quantize, rewrites
from alexnet_export.atomic import user_cache
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.data import DataSet
from alexnet_export.errors import GateFailed
from alexnet_export.gateset import Images, calibration_images, choice_images, gate_images
from alexnet_export.graph import copy, read_model, write_model
from alexnet_export.machine import git_revision, has_vnni
from alexnet_export.runners import CPU, CUDA, fastest_provider, onnx_runner, torch_runner
from alexnet_export.speed import BATCH_SIZES, measure
from alexnet_export.to_fp16 import to_fp16
from alexnet_export.to_onnx import export_onnx
from alexnet_export.to_tensorrt import Engine, build_engine, tensorrt_missing
from alexnet_export.variants import ROUNDS, Precision, Variant, Worth, attempt, rewrites_worth
from alexnet_export.verify import answers


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` units of a named step."""

    step: str
    done: int
    total: int


Report = Callable[[Progress], None]


class Work:
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
