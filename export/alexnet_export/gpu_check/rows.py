"""What a check found, one row a figure; how checks are run so that one failure leaves the others alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar


class Skip(Exception):
    """This machine lacks what the check needs; the text says what."""


@dataclass(frozen=True)
class Row:
    """One figure of one check.

    ``bound`` is what the hardware leaves at most, in the same unit; ``fraction`` is the share of it that was reached.
    """

    check: str
    status: Literal["passed", "failed", "skipped"]
    reason: str = ""
    value: float | None = None
    unit: str = ""
    bound: float | None = None

    @property
    def fraction(self) -> float | None:
        """The roofline fraction; above 1 the bound or the measurement is wrong."""
        return self.value / self.bound if self.value and self.bound else None

    def as_json(self) -> dict[str, Any]:
        """For gpu-check.json."""
        return {**asdict(self), "roofline_fraction": self.fraction}


Context = TypeVar("Context")
Check = Callable[[Context], Iterator[Row]]


def run_checks(
    context: Context, checks: Mapping[str, Check[Context]], *, on_row: Callable[[Row], None] = lambda row: None
) -> list[Row]:
    """Run every check; what is missing is skipped, what raises has failed, and the rest goes on."""
    rows: list[Row] = []

    def add(row: Row) -> None:
        if row.fraction is not None and row.fraction > 1:
            share = f"{row.fraction:.2f} of the bound: the bound or the measurement is wrong"
            row = Row(row.check, "failed", share, row.value, row.unit, row.bound)
        rows.append(row)
        on_row(row)

    for name, check in checks.items():
        try:
            for row in check(context):
                add(row)
        except Skip as reason:
            add(Row(name, "skipped", str(reason)))
        except Exception as error:  # noqa: BLE001  whatever a driver or a library raises, the others go on
            first = str(error).strip().splitlines() or [""]
            add(Row(name, "failed", f"{type(error).__name__}: {first[0]}"))
    return rows


def as_markdown(rows: list[Row], title: str) -> str:
    """The rows as a table for a README."""
    lines = [f"# {title}", "", "| check | found | bound | roofline | status |", "|---|---|---|---|---|"]
    for row in rows:
        found = "" if row.value is None else f"{row.value:,.4g} {row.unit}"
        bound = "" if row.bound is None else f"{row.bound:,.4g}"
        share = "" if row.fraction is None else f"{row.fraction:.0%}"
        status = row.status + (f": {row.reason}" if row.reason else "")
        lines.append(f"| {row.check} | {found} | {bound} | {share} | {status.replace('|', '/')} |")
    return "\n".join(lines) + "\n"
