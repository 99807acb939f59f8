"""What a service promises, as people write it, and what a trial of it came to. Pure: it knows no search and no run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from alexnet_client.errors import BadInput
from alexnet_load.figures import positive

UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
GRAMMAR = "it is such as p99=50ms or p99.9=0.2s,errors=0.1%"
SHORTFALL = 3.0
"""Standard deviations of a Poisson count by which answers must fall short of arrivals to be a sign of overload."""


@dataclass(frozen=True)
class Objective:
    """A percentile of the response time up to a limit, and errors up to a share of the requests.

    Attributes:
        percentile: such as 99.
        limit_ms: milliseconds.
        max_errors: share of all requests, from 0 to 1.
    """

    percentile: float
    limit_ms: float
    max_errors: float = 0.0

    def kept(self, value_ms: float, errors: float) -> bool:
        """Whether a run with such a percentile and such a share of errors keeps it."""
        return value_ms <= self.limit_ms and errors <= self.max_errors

    @property
    def least_requests(self) -> int:
        """Requests below which the percentile is rough: ten must lie beyond it."""
        return math.ceil(round(1000 / (100 - self.percentile), 3))  # rounded: 100 - 99.9 is a little too small

    def __str__(self) -> str:
        return f"p{self.percentile:g} up to {self.limit_ms:g} ms, errors up to {100 * self.max_errors:g} %"


@dataclass(frozen=True)
class Trial:
    """What a run at a rate came to.

    Attributes:
        rate: planned, requests a second.
        value_ms: the objective's percentile of the response time, milliseconds; infinite if nothing was answered.
        errors: share of the requests.
        requests: how many were measured.
        achieved: answers a second.
        sender_limited: why the sender and not the server was the limit; empty if it was not.
        steady: whether response times came to rest.
    """

    rate: float
    value_ms: float
    errors: float
    requests: int
    achieved: float
    sender_limited: str = ""
    steady: bool = True

    @property
    def overloaded(self) -> bool:
        """Answers fell behind and response times did not come to rest: a longer trial would break any limit."""
        noise = SHORTFALL / math.sqrt(self.requests) if self.requests else 1.0
        return not self.steady and self.achieved < self.rate * (1 - noise)

    def keeps(self, objective: Objective) -> bool:
        """Whether the objective is kept, and would be if the trial went on."""
        return objective.kept(self.value_ms, self.errors) and not self.overloaded


def parse_objective(text: str) -> Objective:
    """Read such as ``p99=50ms,errors=0.1%``; no errors are allowed if none are named.

    Raises:
        BadInput: it says something else.
    """
    limits: list[tuple[float, float]] = []
    errors: list[float] = []
    for part in text.split(","):
        try:
            if found := re.fullmatch(r"\s*p([0-9.]+)\s*=\s*([0-9.]+)\s*(us|ms|s)\s*", part):
                limits.append((positive(found[1]), positive(found[2]) * UNITS_MS[found[3]]))
            elif found := re.fullmatch(r"\s*errors\s*=\s*([0-9.]+)\s*(%?)\s*", part):
                errors.append(positive(found[1], zero=True) / (100 if found[2] else 1))
            else:
                raise ValueError(f"{part.strip()!r} is no limit")
        except ValueError as error:
            raise BadInput(f"objective {text!r}: {error}; {GRAMMAR}") from None
    if len(limits) != 1 or limits[0][0] >= 100 or len(errors) > 1 or max(errors, default=0) > 1:
        raise BadInput(f"objective {text!r}: one percentile below 100, and at most one share of errors; {GRAMMAR}")
    return Objective(*limits[0], *errors)
