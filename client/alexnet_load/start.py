"""The console script: says what to install where the packages of the load tester are missing."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of ``alexnet-load``."""
    try:
        from alexnet_load.__main__ import app
    except ImportError as error:
        print(f"alexnet-load: {error}; install what it needs: pip install 'alexnet-client[load]'", file=sys.stderr)
        raise SystemExit(2) from None
    app()
