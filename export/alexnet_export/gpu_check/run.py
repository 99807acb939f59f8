"""Run all checks: create the ONNX files, measure the peak rates, write JSON and a table."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from alexnet_client.files import check_writable, write_text
from alexnet_export import checkpoint as checkpoints
from alexnet_export.checkpoint import Checkpoint
from alexnet_export.gpu_check.checks import CHECKS, Machine, measure_peaks
from alexnet_export.gpu_check.roofline import Peaks, layers_of
from alexnet_export.gpu_check.rows import Row, as_markdown, run_checks
from alexnet_export.model import UNIFORM, AlexNet, initialize

CLASSES = 1000
IMAGES = 256
NO_GPU = "PyTorch finds no NVIDIA GPU"


def gpu_check(
    output: Path, *, checkpoint: Path | None = None, on_line: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """Run every check that this machine supports, and write ``gpu-check.json`` and ``gpu-check.md``.

    Args:
        output: directory; created if it is missing.
        checkpoint: the network; by default 1,000 classes with random weights.
        on_line: called with a line of text for each result.

    Raises:
        BadInput: the checkpoint cannot be read, or ``output`` is not writable.
    """
    check_writable(output / "gpu-check.json")
    network = checkpoints.load(checkpoint) if checkpoint else None
    peaks: Peaks | None = None
    if torch.cuda.is_available():
        device = f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
        peaks = measure_peaks()
        rows = _run(network or random_checkpoint(), peaks, on_line)
    else:
        device = "no GPU"
        rows = [Row(name, "skipped", NO_GPU) for name in CHECKS]
        for row in rows:
            on_line(_line(row))
    report = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "peaks": asdict(peaks) if peaks else None,
        "rows": [row.as_json() for row in rows],
    }
    write_text(output / "gpu-check.json", json.dumps(report, indent=2) + "\n")
    write_text(output / "gpu-check.md", as_markdown(rows, device))
    on_line(f"Wrote {output / 'gpu-check.json'} and gpu-check.md")
    return rows


def _run(network: Checkpoint, peaks: Peaks, on_line: Callable[[str], None]) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="alexnet-gpu-check-") as scratch:
        files = create_files(network, Path(scratch), on_line)
        pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 224, 224, 3)).astype(np.uint8)
        machine = Machine(network, files, pixels, Path(scratch), peaks, layers_of(network.network()))
        return run_checks(machine, CHECKS, on_row=lambda row: on_line(_line(row)))


def random_checkpoint() -> Checkpoint:
    """A network with random weights; speed does not depend on the weights."""
    torch.manual_seed(2012)
    network = AlexNet(CLASSES)
    initialize(network)
    return Checkpoint(network.state_dict(), tuple(f"class {number}" for number in range(CLASSES)), UNIFORM)


def create_files(checkpoint: Checkpoint, scratch: Path, on_line: Callable[[str], None]) -> dict[str, Path]:
    """Create fp32, fp16 and int8 files; none if onnx or its exporter is not installed."""
    missing = [
        name for name in ("onnx", "onnxscript", "onnx_ir", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if missing:
        on_line(f"no ONNX files are created: {', '.join(missing)} not installed")
        return {}
    import onnx

    from alexnet_export.image_sets import Images
    from alexnet_export.quantize import with_nncf
    from alexnet_export.to_fp16 import to_fp16
    from alexnet_export.to_onnx import export_onnx

    paths = {precision: scratch / f"{precision}.onnx" for precision in ("fp32", "fp16", "int8")}
    export_onnx(checkpoint, paths["fp32"])
    to_fp16(paths["fp32"], paths["fp16"])
    pixels = np.random.default_rng(1).integers(0, 256, (32, 224, 224, 3)).astype(np.uint8)
    calibration = Images(pixels, np.full(len(pixels), -1), ())
    int8 = with_nncf(onnx.load(paths["fp32"]), calibration, reduce_range=False, signed=True)
    onnx.save(int8, paths["int8"])
    return paths


def _line(row: Row) -> str:
    value = "" if row.value is None else f" {row.value:,.4g} {row.unit}"
    share = "" if row.fraction is None else f" ({row.fraction:.0%} of the roofline)"
    return f"{row.status:8}{row.check}:{value}{share} {row.reason}".rstrip()
