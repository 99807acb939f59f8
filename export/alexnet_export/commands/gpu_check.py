"""``alexnet-export gpu-check``: run every GPU path of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alexnet_client.terminal import FAILED, console, print_json
from alexnet_export.commands.arguments import CheckpointDir, reported


def gpu_check(
    output: Annotated[Path, typer.Option("--output", "-o", help="directory for gpu-check.json and gpu-check.md")],
    checkpoint: CheckpointDir = None,
) -> None:
    """Run training, PyTorch, ONNX Runtime, CUDA graphs, TensorRT and Triton on the GPU, and compare with its roofline.

    Checks whose requirements are missing are skipped.
    """
    with reported():
        from alexnet_export.gpu_check.run import gpu_check as run_gpu_check

        rows = run_gpu_check(output, checkpoint=checkpoint, on_line=console.print)
    print_json({"rows": [row.as_json() for row in rows]})
    if any(row.status == "failed" for row in rows):
        raise typer.Exit(FAILED)
