"""``alexnet-export check``: lint the Triton configurations."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from alexnet_export.commands.arguments import DEFAULT_REPOSITORY, print_json, run
from alexnet_export.errors import UserError
from alexnet_export.terminal import console

if TYPE_CHECKING:
    from alexnet_export.check import Finding


def check(
    repository: Annotated[Path, typer.Argument(help="the Triton model repository")] = DEFAULT_REPOSITORY,
    target: Annotated[str, typer.Option(help="the Triton release it shall run in, such as 24.10 or 26.06")] = "24.10",
) -> None:
    """Lint every config.pbtxt and configs/*.pbtxt against itself, its newest release and a Triton release."""

    def work() -> tuple[list[Path], list[Finding]]:
        from alexnet_export.check import check_repository
        from alexnet_export.check_subject import TARGETS

        if target not in TARGETS:
            raise UserError(f"--target {target}: unknown; choose one of {', '.join(TARGETS)}")
        return check_repository(repository, TARGETS[target])

    paths, findings = run(work)
    if findings:
        table = Table("file", "problem", "fix")
        for finding in findings:
            table.add_row(finding.path, finding.problem, finding.fix)
        console.print(table)
    console.print(f"{len(paths)} configurations for Triton {target}: {len(findings) or 'no'} findings")
    print_json({"files": [str(path) for path in paths], "findings": [asdict(finding) for finding in findings]})
    raise typer.Exit(1 if findings else 0)
