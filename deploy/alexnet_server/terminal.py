"""What the commands share: the terminal, how they fail, and the options that several have."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Never

import typer
from rich.console import Console

console = Console(markup=False, highlight=False)
DEFAULT_REPOSITORY = Path("model_repository")

Repository = Annotated[Path, typer.Option("--repository", "-r", help="the Triton model repository")]
GrpcPort = Annotated[int, typer.Option(min=1, max=65535)]
MetricsPort = Annotated[int, typer.Option(min=1, max=65535)]
ConfigName = Annotated[str, typer.Option(help="serve configs/NAME.pbtxt of each model that has one")]
TlsDirectory = Annotated[
    Path | None,
    typer.Option(
        "--tls",
        help="mutual TLS on gRPC with the files ca.crt, tls.crt and tls.key of this directory: who has no certificate of that "
        "authority is refused",
    ),
]


def fail(error: Exception) -> Never:
    """Say what is wrong, and exit with 1."""
    logging.getLogger("alexnet_server").error("%s", error)
    raise typer.Exit(1) from None
