"""``python -m alexnet_export.gpu_check``: the checks without typer and rich, for machines that have little installed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alexnet_export.errors import UserError
from alexnet_export.gpu_check.run import gpu_check


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/gpu-check"))
    parser.add_argument("--checkpoint", type=Path, help="directory of a trained checkpoint; random weights without")
    for precision in ("fp32", "fp16", "int8"):
        parser.add_argument(f"--onnx-{precision}", type=Path, help="made elsewhere; exported here without")
    arguments = parser.parse_args()
    given = {"fp32": arguments.onnx_fp32, "fp16": arguments.onnx_fp16, "int8": arguments.onnx_int8}
    files = {precision: path for precision, path in given.items() if path}
    try:
        rows = gpu_check(arguments.output, checkpoint=arguments.checkpoint, files=files, say=print)
    except UserError as error:
        print(f"alexnet-export: {error}", file=sys.stderr)
        return 2
    return 1 if any(row.status == "failed" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
