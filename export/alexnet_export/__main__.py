"""``alexnet-export``: train, export, validate and publish. The commands are in ``commands``."""

from __future__ import annotations

import logging
import os

import typer

from alexnet_client.terminal import EXIT_CODES
from alexnet_export.commands.check import check
from alexnet_export.commands.export import export
from alexnet_export.commands.gpu_check import gpu_check
from alexnet_export.commands.releases import list_releases, prune, rollback
from alexnet_export.commands.report import report
from alexnet_export.commands.train import samples, train
from alexnet_export.commands.verify import verify

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Train an AlexNet, export it to ONNX and publish it to a Triton model repository.",
    epilog=EXIT_CODES,
)
for command in (train, export, verify, report, check, rollback, prune, samples):
    app.command(epilog=EXIT_CODES)(command)
app.command("list", epilog=EXIT_CODES)(list_releases)
app.command("gpu-check", epilog=EXIT_CODES)(gpu_check)


def main() -> None:
    """Entry point."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # It warns that torchvision's operators are missing; this network does not use them.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    app()


if __name__ == "__main__":
    main()
