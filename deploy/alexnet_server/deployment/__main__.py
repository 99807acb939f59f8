"""``make deploy-check``: every check in a table, every mistake with its place and remedy; exits 1 if there is one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from alexnet_server.deployment.finding import Check
from alexnet_server.deployment.inspection import inspect


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m alexnet_server.deployment", description=__doc__)
    parser.add_argument("deploy", type=Path, help="the directory with kubernetes/, compose/ and the Dockerfiles")
    parser.add_argument("--release", action="store_true", help="before an apply: refuse placeholders of images")
    options = parser.parse_args()
    if not (options.deploy / "kubernetes").is_dir():
        parser.error(f"{options.deploy}/kubernetes: no such directory")
    try:
        checks = list(inspect(options.deploy, release=options.release))
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"{options.deploy}: cannot be read: {error}")
    show(checks)
    return 1 if any(check.findings for check in checks) else 0


def show(checks: list[Check]) -> None:
    """A line for each check; below, what is wrong, and what must be known."""
    console = Console(highlight=False)
    table = Table("check", "looked at", "found")
    for check in checks:
        count = len(check.findings)
        found = "[green]nothing wrong[/]" if not count else f"[red]{count} mistake{'s' if count > 1 else ''}[/]"
        table.add_row(check.name, check.extent, found)
    console.print(table)
    for check in checks:
        for finding in check.findings:
            console.print(f"{check.name}: {finding}", style="red", soft_wrap=True, markup=False)
        for note in check.notes:
            console.print(f"Note: {note}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    sys.exit(main())
