"""What the commands share: options and error reporting."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from alexnet_client.errors import BadInput, ClientError
from alexnet_client.terminal import FAILED, INTERRUPTED, USER_ERROR
from alexnet_server.errors import LaunchError

GrpcPort = Annotated[int, typer.Option(min=1, max=65535, help="TCP port for gRPC")]
MetricsPort = Annotated[int, typer.Option(min=1, max=65535, help="TCP port for Triton's metrics")]
ConfigName = Annotated[str, typer.Option(help="use configs/NAME.pbtxt of each model that has this file")]
TlsDirectory = Annotated[
    Path | None,
    typer.Option(
        "--tls",
        help="directory with ca.crt, tls.crt and tls.key: use mutual TLS for gRPC; clients without a certificate from this "
        "CA are rejected",
    ),
]


def existing(repository: Path) -> Path:
    """Return the path. Raises ``BadInput`` if there is no such directory."""
    if not repository.is_dir():
        raise BadInput(f"{repository}: no such model repository")
    return repository


@contextmanager
def errors_logged() -> Iterator[None]:
    """Log the errors of this project without a traceback, and exit with the code that ``--help`` documents.

    Unlike ``alexnet_client.terminal.errors_reported``, errors are log records: JSON unless stderr is a terminal.
    """
    try:
        yield
    except (LaunchError, ClientError) as error:
        logging.getLogger("alexnet_server").error("%s", error)  # noqa: TRY400  users need no traceback
        raise typer.Exit(USER_ERROR if isinstance(error, BadInput) else FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
