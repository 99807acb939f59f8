"""Results of checks, one row for each metric, and the loop that runs checks independently of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar


class Skip(Exception):
    """A requirement of the check is missing on this machine; the text names it."""


@dataclass(frozen=True)
class Row:
    """One result of one check; ``bound`` is the limit of the hardware in the same unit."""

    check: str
    status: Literal["passed", "failed", "skipped"]
    reason: str = ""
    value: float | None = None
    unit: str = ""
    bound: float | None = None

    @property
    def fraction(self) -> float | None:
        """Value as a share of the bound; above 1, the bound or the measurement is wrong."""
        return self.value / self.bound if self.value and self.bound else None

    def as_json(self) -> dict[str, Any]:
        """Content for gpu-check.json."""
        return {**asdict(self), "roofline_fraction": self.fraction}


Context = TypeVar("Context")
Check = Callable[[Context], Iterator[Row]]


def run_checks(
    context: Context, checks: Mapping[str, Check[Context]], *, on_row: Callable[[Row], None] = lambda row: None
) -> list[Row]:
    """Run every check. A missing requirement skips a check, an exception fails it; the others run nevertheless."""
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
        except Exception as error:  # noqa: BLE001  drivers and libraries raise many types
            first = str(error).strip().splitlines() or [""]
            add(Row(name, "failed", f"{type(error).__name__}: {first[0]}"))
    return rows


def as_markdown(rows: list[Row], title: str) -> str:
    """The rows as a Markdown table."""
    lines = [f"# {title}", "", "| check | value | bound | share of bound | status |", "|---|---|---|---|---|"]
    for row in rows:
        value = "" if row.value is None else f"{row.value:,.4g} {row.unit}"
        bound = "" if row.bound is None else f"{row.bound:,.4g}"
        share = "" if row.fraction is None else f"{row.fraction:.0%}"
        status = row.status + (f": {row.reason}" if row.reason else "")
        lines.append(f"| {row.check} | {value} | {bound} | {share} | {status.replace('|', '/')} |")
    return "\n".join(lines) + "\n"
