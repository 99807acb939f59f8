"""Results of the benchmarks: median and quartiles over all rounds, compared with a goal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from rich.table import Table
from rich.text import Text

COLORS = {"missed": "red", "met": "green", "undecided": "yellow"}


@dataclass(frozen=True)
class Result:
    """One measured value.

    Attributes:
        name: what was measured.
        median, low, high: median and quartiles over the rounds.
        rounds: number of rounds.
        unit: "x" for a ratio of two sides that were measured alternately.
        goal: the value should be at least this, or at most if ``at_most``; None for no goal.
        at_most: see ``goal``.
        details: further numbers for the reader, such as both sides of a ratio.
    """

    name: str
    median: float
    low: float
    high: float
    rounds: int
    unit: str = "x"
    goal: float | None = None
    at_most: bool = False
    details: str = ""

    @classmethod
    def of(cls, name: str, values: Sequence[float], **more: Any) -> Self:
        """The result of one value per round."""
        low, median, high = (float(each) for each in np.percentile(values, (25, 50, 75)))
        return cls(name, median, low, high, len(values), **more)

    @classmethod
    def ratio(
        cls, name: str, ours: Sequence[float], theirs: Sequence[float], *, unit: str = "images/s", **more: Any
    ) -> Self:
        """The ratio of two sides that were measured alternately; the details are the medians of both sides."""
        details = f"{statistics.median(ours):.4g} and {statistics.median(theirs):.4g} {unit}"
        return cls.of(name, [one / other for one, other in zip(ours, theirs, strict=True)], details=details, **more)

    @property
    def verdict(self) -> str:
        """ "met", "missed", or "undecided" if the goal lies between the quartiles; empty without a goal."""
        if self.goal is None:
            return ""
        if self.low < self.goal < self.high:
            return "undecided"
        return "met" if (self.median <= self.goal if self.at_most else self.median >= self.goal) else "missed"

    @property
    def text(self) -> str:
        """The median with unit and quartiles."""
        quartiles = f" ({self.low:.2f} - {self.high:.2f})" if self.rounds > 1 else ""
        return f"{self.median:.2f} {self.unit}{quartiles}"


def table_of(results: Sequence[Result], title: str) -> Table:
    """All results for the terminal."""
    table = Table("benchmark", "median (quartiles)", "goal", "verdict", title=title)
    for each in results:
        goal = "" if each.goal is None else f"{'at most' if each.at_most else 'at least'} {each.goal:g}"
        name = f"{each.name}\n  {each.details}" if each.details else each.name
        table.add_row(name, each.text, goal, Text(each.verdict, style=COLORS.get(each.verdict, "")))
    return table


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """All results for ``bench.json``."""
    return [{**asdict(each), "verdict": each.verdict} for each in results]
