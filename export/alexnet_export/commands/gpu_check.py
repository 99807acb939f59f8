"""``alexnet-export gpu-check``: every GPU path that this machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alexnet_export.commands.arguments import CheckpointDir, print_json, run
from alexnet_export.terminal import console


def gpu_check(
    output: Annotated[Path, typer.Option("--output", "-o", help="directory for gpu-check.json and gpu-check.md")],
    checkpoint: CheckpointDir = None,
) -> None:
    """Run training, ONNX Runtime, CUDA graphs, TensorRT and Triton on the GPU, with the roofline fraction of each figure."""
    from alexnet_export.gpu_check.run import gpu_check as check

    rows = run(lambda: check(output, checkpoint=checkpoint, say=console.print))
    print_json([row.as_json() for row in rows])
    raise typer.Exit(1 if any(row.status == "failed" for row in rows) else 0)
