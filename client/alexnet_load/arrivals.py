"""When requests come: schedules made before a run, with seeded dice.

Owns the grammar of arrivals. Pure but for a trace's file: it knows neither clock nor event loop.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from alexnet_client.errors import BadInput
from alexnet_load.figures import exact, positive, whole
from alexnet_load.sizes import draw_sizes, parse_sizes
from alexnet_load.trace import MOST_REQUESTS, Schedule, Sizes, Times, read_trace

__all__ = ["draw_sizes", "parse_arrivals", "parse_sizes", "schedule", "share_of", "with_rate"]

Column = TypeVar("Column", Times, Sizes)
GRAMMAR = "it is constant:RATE, poisson:RATE, ramp:FROM-TO, steps:RATE,RATE,..., burst:SIZE/SECONDS, trace:FILE or closed:CALLERS"


@dataclass(frozen=True)
class Constant:
    """One request every 1/rate seconds."""

    rate: float

    def __str__(self) -> str:
        return f"constant:{exact(self.rate)}"


@dataclass(frozen=True)
class Poisson:
    """Independent callers without number: gaps are exponential with mean 1/rate seconds."""

    rate: float

    def __str__(self) -> str:
        return f"poisson:{exact(self.rate)}"


@dataclass(frozen=True)
class Ramp:
    """A Poisson process whose rate goes in a straight line from the begin of the run to its end."""

    first: float
    last: float

    def __str__(self) -> str:
        return f"ramp:{exact(self.first)}-{exact(self.last)}"


@dataclass(frozen=True)
class Steps:
    """Poisson processes one after the other, each for an equal part of the run."""

    rates: tuple[float, ...]

    def __str__(self) -> str:
        return f"steps:{','.join(map(exact, self.rates))}"


@dataclass(frozen=True)
class Burst:
    """``size`` requests in the same moment, every ``period_s`` seconds."""

    size: int
    period_s: float

    def __str__(self) -> str:
        return f"burst:{self.size}/{exact(self.period_s)}"


@dataclass(frozen=True)
class Trace:
    """What was recorded: a line a request, seconds since the begin and perhaps ``,images``; or the file of a run."""

    path: Path

    def __str__(self) -> str:
        return f"trace:{self.path}"


@dataclass(frozen=True)
class ClosedLoop:
    """Callers who each send the next request when the last one is answered: they slow down with the server."""

    callers: int

    def __str__(self) -> str:
        return f"closed:{self.callers}"


Arrivals = Constant | Poisson | Ramp | Steps | Burst | Trace | ClosedLoop


def _rates(texts: Iterable[str]) -> tuple[float, ...]:
    found = tuple(positive(each, zero=True) for each in texts)
    if not any(found):
        raise ValueError("one rate at least must be more than 0")
    return found


def _ramp_of(text: str) -> Ramp:
    ends = re.fullmatch("(.*[^-eE])-(.+)", text)  # 1e-5-2e-5 is a ramp as well
    if ends is None:
        raise ValueError("a ramp has two rates")
    return Ramp(*_rates(ends.groups()))


def _burst_of(text: str) -> Burst:
    size, slash, period = text.partition("/")
    if not slash:
        raise ValueError("a burst has a size and a period")
    return Burst(whole(size), positive(period))


_READERS: dict[str, Callable[[str], Arrivals]] = {
    "constant": lambda text: Constant(positive(text)),
    "poisson": lambda text: Poisson(positive(text)),
    "ramp": _ramp_of,
    "steps": lambda text: Steps(_rates(text.split(","))),
    "burst": _burst_of,
    "trace": lambda text: Trace(Path(text)),
    "closed": lambda text: ClosedLoop(whole(text)),
}


def parse_arrivals(text: str) -> Arrivals:
    """Read ``Plan.arrivals``.

    Raises:
        BadInput: it is none of the grammar, or a rate is not positive.
    """
    kind, _, rest = text.partition(":")
    if kind not in _READERS or not rest:
        raise BadInput(f"arrivals {text!r} are not understood; {GRAMMAR}")
    try:
        return _READERS[kind](rest)
    except ValueError as error:
        raise BadInput(f"arrivals {text!r}: {error}; {GRAMMAR}") from None


def schedule(arrivals: Arrivals, *, duration_s: float, seed: int, max_count: int = 0) -> Schedule:
    """The planned times of an open loop, all before ``duration_s``.

    Args:
        arrivals: not a closed loop, which has no schedule.
        duration_s: length of the run, seconds; of a trace what comes later is left out.
        seed: of the dice; the same seed gives the same times.
        max_count: requests at most; 0 for no such bound.

    Raises:
        BadInput: it would be too long, or a trace cannot be read.
    """
    if not 0 < duration_s < math.inf:
        raise BadInput(f"a duration must be positive and finite, got {duration_s} s")
    if isinstance(arrivals, ClosedLoop):
        raise BadInput("a closed loop has no schedule: its callers send when they are answered")
    if isinstance(arrivals, Trace):
        found = read_trace(arrivals.path)
    else:
        expected = max(mean_rate(arrivals) * duration_s, arrivals.size if isinstance(arrivals, Burst) else 0)
        if expected > MOST_REQUESTS:
            raise BadInput(
                f"{arrivals} for {duration_s:g} s are {expected:,.0f} requests, more than {MOST_REQUESTS:,}; lower the rate or make the run shorter"
            )
        found = Schedule(_times(arrivals, duration_s, np.random.default_rng(seed)))
    count = int(np.searchsorted(found.times_s, duration_s, "left"))
    count = min(count, max_count) if max_count else count
    return Schedule(found.times_s[:count], None if found.sizes is None else found.sizes[:count])


def mean_rate(arrivals: Arrivals) -> float:
    """Requests a second over a run; 0 where only the run itself will tell."""
    match arrivals:
        case Constant() | Poisson():
            return arrivals.rate
        case Ramp():
            return (arrivals.first + arrivals.last) / 2
        case Steps():
            return sum(arrivals.rates) / len(arrivals.rates)
        case Burst():
            return arrivals.size / arrivals.period_s
        case _:
            return 0.0


def with_rate(arrivals: Arrivals, rate: float) -> Arrivals:
    """The same process at another mean rate.

    Raises:
        BadInput: a trace or a closed loop has none to change, or the rate makes no sense.
    """
    if not 0 < rate < math.inf:
        raise BadInput(f"a rate must be positive and finite, got {rate}")
    factor = rate / mean_rate(arrivals) if mean_rate(arrivals) else 0.0
    match arrivals:
        case Constant() | Poisson():
            return replace(arrivals, rate=rate)
        case Ramp() if factor:
            return Ramp(arrivals.first * factor, arrivals.last * factor)
        case Steps() if factor:
            return Steps(tuple(each * factor for each in arrivals.rates))
        case Burst():
            return Burst(arrivals.size, arrivals.period_s / factor)
        case _:
            raise BadInput(f"{arrivals} cannot come at another rate; choose constant, poisson, ramp, steps or burst")


def share_of(column: Column, sender: int, senders: int) -> Column:
    """What one of several senders takes of a column: every ``senders``-th entry, so that together they have each one once."""
    return column[sender::senders]


def _times(arrivals: Constant | Poisson | Ramp | Steps | Burst, duration_s: float, dice: np.random.Generator) -> Times:
    match arrivals:
        case Constant():
            return np.arange(math.ceil(arrivals.rate * duration_s)) / arrivals.rate
        case Poisson():
            return _poisson(arrivals.rate, duration_s, dice)
        case Ramp():
            return _ramp(arrivals, duration_s, dice)
        case Steps():
            part_s = duration_s / len(arrivals.rates)
            return np.concatenate(
                [place * part_s + _poisson(rate, part_s, dice) for place, rate in enumerate(arrivals.rates)]
            )
        case Burst():
            return np.repeat(np.arange(math.ceil(duration_s / arrivals.period_s)) * arrivals.period_s, arrivals.size)


def _poisson(rate: float, duration_s: float, dice: np.random.Generator) -> Times:
    """Given their number, the times of a Poisson process are uniform (Ross, "Introduction to Probability Models", 5.3)."""
    return np.sort(dice.random(dice.poisson(rate * duration_s)) * duration_s)


def _ramp(ramp: Ramp, duration_s: float, dice: np.random.Generator) -> Times:
    """A Poisson process on the axis of expected counts, carried back through the inverse of the integral of the rate."""
    expected = np.sort(dice.random(dice.poisson(mean_rate(ramp) * duration_s))) * mean_rate(ramp) * duration_s
    slope = (ramp.last - ramp.first) / duration_s
    # expected(t) = first t + slope t^2 / 2; this form of its root loses no digits where the slope is small
    times: Times = 2 * expected / (ramp.first + np.sqrt(np.maximum(ramp.first**2 + 2 * slope * expected, 0)))
    return times
