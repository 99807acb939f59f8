"""Shared parts of all command lines: exit codes, console, error messages, JSON output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from alexnet_client.errors import BadInput

FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130
EXIT_CODES = "Exit codes: 0 success, 1 a check or the run failed, 2 usage or user error, 130 interrupted."
"""Epilog of every ``--help`` page."""

console = Console(markup=False, highlight=False)  # paths and class names may contain brackets


def complain(program: str, text: str) -> None:
    """Print an error or a warning to stderr."""
    print(f"{program}: {text}", file=sys.stderr)


@contextmanager
def errors_reported(program: str, *kinds: type[Exception]) -> Iterator[None]:
    """Report exceptions of these kinds without a traceback, and exit: 2 for a user error (``BadInput``), 1 for others."""
    try:
        yield
    except kinds as error:
        complain(program, str(error))
        raise typer.Exit(USER_ERROR if isinstance(error, BadInput) else FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def print_json(content: dict[str, Any]) -> None:
    """Print one line of JSON, for programs."""
    print(json.dumps(content), flush=True)
