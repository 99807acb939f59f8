"""One run of all checks: files made, peaks measured, JSON and table written."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from alexnet_export import checkpoint as checkpoints
from alexnet_export.atomic import write_text, writing
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.errors import UserError
from alexnet_export.gpu_check.checks import CHECKS, Machine, measure_peaks
from alexnet_export.gpu_check.roofline import layers_of
from alexnet_export.gpu_check.rows import Row, as_markdown, run_checks
from alexnet_export.model import UNIFORM, AlexNet, initialize

CLASSES = 1000
IMAGES = 256


def gpu_check(
    output: Path,
    *,
    checkpoint: Path | None = None,
    files: Mapping[str, Path] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Run every check that this machine can, and write ``gpu-check.json`` and ``gpu-check.md``.

    Args:
        output: directory, made if it is missing.
        checkpoint: the network; random weights of 1,000 classes without.
        files: ONNX files by precision, made elsewhere; those missing are made here if onnx is installed.
        say: called with a line for each figure.

    Raises:
        UserError: there is no NVIDIA GPU at all, a file is no ONNX file of this network's interface, or the disk
            refuses.
    """
    if not torch.cuda.is_available():
        raise UserError("gpu-check needs an NVIDIA GPU, and PyTorch finds none here; run it on a machine that has one")
    if files and importlib.util.find_spec("onnx"):
        from alexnet_export.to_onnx import check_file

        for path in files.values():
            check_file(path)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    network = checkpoints.load(checkpoint) if checkpoint else random_checkpoint()
    with tempfile.TemporaryDirectory(prefix="alexnet-gpu-check-") as scratch:
        made = {**make_files(network, Path(scratch), say), **(files or {})}
        peaks = measure_peaks()
        pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 224, 224, 3)).astype(np.uint8)
        machine = Machine(network, made, pixels, Path(scratch), peaks, layers_of(len(network.labels)))
        rows = run_checks(machine, CHECKS, on_row=lambda row: say(_line(row)))
    device = f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
    report = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "peaks": {"operations": peaks.operations, "memory": peaks.memory, "link": peaks.link},
        "rows": [row.as_json() for row in rows],
    }
    write_text(output / "gpu-check.json", json.dumps(report, indent=2) + "\n")
    write_text(output / "gpu-check.md", as_markdown(rows, device))
    say(f"Written: {output / 'gpu-check.json'} and gpu-check.md")
    return rows


def random_checkpoint() -> Checkpoint:
    """A network with random weights: speed does not depend on what it has learned."""
    torch.manual_seed(2012)
    network = AlexNet(CLASSES)
    initialize(network)
    return Checkpoint(network.state_dict(), tuple(f"class {number}" for number in range(CLASSES)), UNIFORM)


def make_files(checkpoint: Checkpoint, scratch: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """fp32, fp16 and symmetric int8 files for the GPU; none where onnx or its exporter is missing."""
    missing = [
        name for name in ("onnx", "onnxscript", "onnx_ir", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if missing:
        say(f"no ONNX files are made here: {', '.join(missing)} not installed")
        return {}
    from alexnet_export import quantize, rewrites
    from alexnet_export.calibrate import limits, observe
    from alexnet_export.graph import copy, read_model, write_model
    from alexnet_export.to_fp16 import to_fp16
    from alexnet_export.to_onnx import export_onnx

    paths = {precision: scratch / f"{precision}.onnx" for precision in ("fp32", "fp16", "int8")}
    export_onnx(checkpoint, paths["fp32"])
    to_fp16(paths["fp32"], paths["fp16"])
    folded = copy(read_model(paths["fp32"]))
    for rewrite in rewrites.FLOAT:
        rewrite.apply(folded)
    pixels = np.random.default_rng(1).integers(0, 256, (32, 224, 224, 3)).astype(np.uint8)
    scheme = quantize.TENSORRT
    ranges = limits(observe(folded, pixels), "minmax")
    write_model(quantize.quantize(folded, quantize.quantize_weights(folded, scheme), ranges, scheme), paths["int8"])
    return paths


def _line(row: Row) -> str:
    figure = "" if row.value is None else f" {row.value:,.4g} {row.unit}"
    share = "" if row.fraction is None else f" ({row.fraction:.0%} of the roofline)"
    return f"{row.status:8}{row.check}:{figure}{share} {row.reason}".rstrip()
