"""Service level objectives (SLOs): their syntax, and whether a trial meets one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from alexnet_client.errors import BadInput

UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
SYNTAX = "use a form such as p99=50ms or p99.9=0.2s,errors=0.1%"
SHORTFALL = 3.0
"""Answers indicate overload if they are this many standard deviations of a Poisson count below the arrivals."""


@dataclass(frozen=True)
class Slo:
    """A limit for a percentile of the response time, and a limit for the share of errors.

    Attributes:
        percentile: such as 99.
        limit_ms: milliseconds.
        max_errors: share of all requests, from 0 to 1.
    """

    percentile: float
    limit_ms: float
    max_errors: float = 0.0

    def met(self, value_ms: float, errors: float) -> bool:
        """Whether a run with this percentile and this share of errors meets the SLO."""
        return value_ms <= self.limit_ms and errors <= self.max_errors

    @property
    def min_requests(self) -> int:
        """Number of requests from which the percentile is reliable: ten are above it."""
        return math.ceil(round(1000 / (100 - self.percentile), 3))  # rounded, because 100 - 99.9 is slightly below 0.1

    def __str__(self) -> str:
        return f"p{self.percentile:g} <= {self.limit_ms:g} ms, errors <= {100 * self.max_errors:g} %"


@dataclass(frozen=True)
class Trial:
    """Result of one run at one rate.

    Attributes:
        rate: planned requests per second.
        value_ms: percentile of the response time, milliseconds; infinite without answers.
        errors: share of failed requests.
        requests: number of measured requests.
        achieved: answers per second.
        generator_limited: why the load generator was the bottleneck; empty if it was not.
        steady: whether the run reached a steady state.
    """

    rate: float
    value_ms: float
    errors: float
    requests: int
    achieved: float
    generator_limited: str = ""
    steady: bool = True

    @property
    def overloaded(self) -> bool:
        """Whether the answers fell behind without a steady state: a longer trial would violate any limit."""
        noise = SHORTFALL / math.sqrt(self.requests) if self.requests else 1.0
        return not self.steady and self.achieved < self.rate * (1 - noise)

    def meets(self, slo: Slo) -> bool:
        """Whether the trial meets the SLO, and a longer trial would, too."""
        return slo.met(self.value_ms, self.errors) and not self.overloaded


def parse_slo(text: str) -> Slo:
    """Parse an SLO such as ``p99=50ms,errors=0.1%``; without ``errors`` no request may fail.

    Raises:
        BadInput: the syntax is wrong or a number is out of range.
    """
    limits: list[tuple[float, float]] = []
    errors: list[float] = []
    for part in text.split(","):
        try:
            if match := re.fullmatch(r"\s*p([0-9.]+)\s*=\s*([0-9.]+)\s*(us|ms|s)\s*", part):
                limits.append((float(match[1]), float(match[2]) * UNITS_MS[match[3]]))
            elif match := re.fullmatch(r"\s*errors\s*=\s*([0-9.]+)\s*(%?)\s*", part):
                errors.append(float(match[1]) / (100 if match[2] else 1))
            else:
                raise ValueError(f"{part.strip()!r} is not a limit")
        except ValueError as error:
            raise BadInput(f"invalid SLO {text!r}: {error}; {SYNTAX}") from None
    valid = len(limits) == 1 and 0 < limits[0][0] < 100 and 0 < limits[0][1] < math.inf
    if not valid or len(errors) > 1 or max(errors, default=0) > 1:
        raise BadInput(
            f"invalid SLO {text!r}: it needs one percentile between 0 and 100 with a positive limit, and at most one share "
            f"of errors; {SYNTAX}"
        )
    return Slo(*limits[0], *errors)
