"""A figure of the bench: two sides that alternated in one run, their ratio and its spread; the table and the JSON of all."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Row:
    """One ratio.

    Attributes:
        name: what it says.
        sides: what is divided by what.
        ratio: the median over the runs.
        low: lower quartile.
        high: upper quartile.
        runs: how often both sides were taken.
        unit: "x" for a ratio of speeds, else what the figure is in.
        goal: what the project wants of it: at least so much, or at most if ``at_most``.
        at_most: see ``goal``.
        figures: what the sides were, for the reader.
    """

    name: str
    sides: str
    ratio: float
    low: float
    high: float
    runs: int
    unit: str = "x"
    goal: float | None = None
    at_most: bool = False
    figures: str = ""

    @property
    def verdict(self) -> str:
        """Whether the goal is reached; undecided where the spread holds the goal, or swallows the ratio itself."""
        edge = self.goal if self.goal is not None else 1.0 if self.unit == "x" else None
        if edge is None:
            return ""
        if self.low < edge < self.high:
            return "undecided"
        if self.goal is None:
            more, less = ("more", "less") if self.at_most else ("faster", "slower")
            return more if self.ratio > 1 else less
        return "reached" if (self.ratio <= edge if self.at_most else self.ratio >= edge) else "missed"

    @property
    def found(self) -> str:
        """The figure with its middle half; not the figure of a ratio that may be more or less than 1."""
        spread = f"({self.low:.2f} - {self.high:.2f})"
        if self.goal is None and self.verdict == "undecided":
            return f"undecided {spread}"
        return f"{self.ratio:.2f} {self.unit}{f' {spread}' if self.runs > 1 else ''}"

    def as_json(self) -> dict[str, Any]:
        """For bench.json."""
        return {**asdict(self), "verdict": self.verdict}


def ratio_row(name: str, sides: str, ours: Sequence[float], theirs: Sequence[float], **more: Any) -> Row:
    """How many times as fast ``ours`` is, from the seconds of runs that alternated."""
    ratios = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Row(name, sides, middle, low, high, len(ratios), **more)


def spread(name: str, sides: str, ratios: Sequence[float], **more: Any) -> Row:
    """A row from the ratio of each round."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Row(name, sides, middle, low, high, len(ratios), **more)


def table_of(rows: Sequence[Row], title: str) -> Table:
    """The rows for a person."""
    table = Table("figure", "found (middle half)", "goal", "verdict", title=title)
    for row in rows:
        goal = "" if row.goal is None else f"{'at most' if row.at_most else 'at least'} {row.goal:g}"
        colour = {"missed": "red", "reached": "green", "undecided": "yellow"}.get(row.verdict, "")
        table.add_row(
            f"{row.name}\n  {row.figures or row.sides}".rstrip(), row.found, goal, Text(row.verdict, style=colour)
        )
    return table


def markdown_of(rows: Sequence[Row], title: str) -> str:
    """The rows as README shows them."""
    lines = [
        f"{title}; medians of alternating runs, with their middle half.",
        "",
        "| what | found | goal |",
        "|---|---|---|",
    ]
    for row in rows:
        goal = "" if row.goal is None else f"{row.goal:g}"
        if row.verdict in ("missed", "undecided") and goal:
            goal += f", {row.verdict}"
        lines.append(f"| {row.name} | {row.found} | {goal} |")
    return "\n".join(lines) + "\n"
