"""Entry point of ``alexnet-load``; reports missing packages with the command that installs them."""

from __future__ import annotations

from alexnet_client.terminal import USER_ERROR, complain


def main() -> None:
    """Run the command line."""
    try:
        from alexnet_load.cli import app
    except ImportError as error:
        complain("alexnet-load", f"{error}; run: pip install 'alexnet-client[load]'")
        raise SystemExit(USER_ERROR) from None
    app()


if __name__ == "__main__":
    main()
