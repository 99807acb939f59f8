"""``alexnet-export check``: lint the Triton configurations."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from alexnet_client.errors import BadInput
from alexnet_client.terminal import FAILED, console, print_json
from alexnet_export.commands.arguments import DEFAULT_REPOSITORY, reported


def check(
    repository: Annotated[Path, typer.Argument(help="Triton model repository")] = DEFAULT_REPOSITORY,
    target: Annotated[str, typer.Option(help="Triton release, such as 24.10 or 26.06")] = "24.10",
) -> None:
    """Lint config.pbtxt and configs/*.pbtxt of every model, and compare them with the newest release and a Triton release."""
    with reported():
        from alexnet_export.check import check_repository
        from alexnet_export.check_release import TARGETS

        if target not in TARGETS:
            raise BadInput(f"--target {target}: unknown; choose one of {', '.join(TARGETS)}")
        paths, findings = check_repository(repository, TARGETS[target])
    if findings:
        table = Table("file", "problem", "fix")
        for finding in findings:
            table.add_row(finding.path, finding.problem, finding.fix)
        console.print(table)
    console.print(f"{len(paths)} configurations checked for Triton {target}, {len(findings) or 'no'} problems found")
    print_json({"files": [str(path) for path in paths], "findings": [asdict(finding) for finding in findings]})
    if findings:
        raise typer.Exit(FAILED)
