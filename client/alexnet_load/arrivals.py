"""Arrival processes and request sizes: their syntax, and the send times computed before a run.

Owns both syntaxes and the file format of traces. Independent of the clock and the event loop.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet_client.errors import BadInput
from alexnet_client.files import reason

Times = npt.NDArray[np.float64]
Sizes = npt.NDArray[np.int32]
MAX_REQUESTS = 50_000_000
"""Requests in one schedule: their times use 400 MB."""
SYNTAX = (
    "constant:RATE, poisson:RATE, ramp:FROM-TO, steps:RATE,RATE,..., burst:SIZE/SECONDS, trace:FILE or closed:CALLERS"
)


@dataclass(frozen=True)
class Constant:
    """One request every 1/rate seconds."""

    rate: float


@dataclass(frozen=True)
class Poisson:
    """Independent requests: the gaps are exponentially distributed with mean 1/rate seconds."""

    rate: float


@dataclass(frozen=True)
class Ramp:
    """A Poisson process whose rate changes linearly from the start to the end of the run."""

    first: float
    last: float


@dataclass(frozen=True)
class Steps:
    """Consecutive Poisson processes; each one lasts for an equal part of the run."""

    rates: tuple[float, ...]


@dataclass(frozen=True)
class Burst:
    """``size`` simultaneous requests every ``period_s`` seconds."""

    size: int
    period_s: float


@dataclass(frozen=True)
class Trace:
    """Recorded arrivals: a text file with one line ``SECONDS`` or ``SECONDS,IMAGES`` per request, or a run file."""

    path: Path


@dataclass(frozen=True)
class ClosedLoop:
    """Callers that send a request only after the answer to their last one, so they slow down together with the server."""

    callers: int


@dataclass(frozen=True)
class Schedule:
    """Planned send times, float64 [N], sorted, seconds since the start; ``sizes`` int32 [N] if a trace contains them."""

    times_s: Times
    sizes: Sizes | None = None


Generated = Constant | Poisson | Ramp | Steps | Burst
Arrivals = Generated | Trace | ClosedLoop


def _positive(text: str, *, zero: bool = False) -> float:
    value = float(text)
    if not (value >= 0 if zero else value > 0) or value == math.inf:
        raise ValueError(f"{text.strip()} must be {'at least 0' if zero else 'more than 0'} and finite")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(f"{value} must be at least 1")
    return value


def _rates(texts: Iterable[str]) -> tuple[float, ...]:
    rates = tuple(_positive(each, zero=True) for each in texts)
    if not any(rates):
        raise ValueError("at least one rate must be more than 0")
    return rates


def _parse_ramp(text: str) -> Ramp:
    ends = re.fullmatch("(.*[^-eE])-(.+)", text)  # 1e-5-2e-5 is a ramp, too
    if ends is None:
        raise ValueError("a ramp needs two rates")
    return Ramp(*_rates(ends.groups()))


def _parse_burst(text: str) -> Burst:
    size, slash, period = text.partition("/")
    if not slash:
        raise ValueError("a burst needs a size and a period")
    return Burst(_count(size), _positive(period))


_PARSERS: dict[str, Callable[[str], Arrivals]] = {
    "constant": lambda text: Constant(_positive(text)),
    "poisson": lambda text: Poisson(_positive(text)),
    "ramp": _parse_ramp,
    "steps": lambda text: Steps(_rates(text.split(","))),
    "burst": _parse_burst,
    "trace": lambda text: Trace(Path(text)),
    "closed": lambda text: ClosedLoop(_count(text)),
}


def parse_arrivals(text: str) -> Arrivals:
    """Parse ``Plan.arrivals``.

    Raises:
        BadInput: the syntax is wrong or a number is out of range.
    """
    kind, _, rest = text.partition(":")
    if kind not in _PARSERS or not rest:
        raise BadInput(f"invalid arrivals {text!r}; use {SYNTAX}")
    try:
        return _PARSERS[kind](rest)
    except ValueError as error:
        raise BadInput(f"invalid arrivals {text!r}: {error}; use {SYNTAX}") from None


def schedule(arrivals: Arrivals, *, duration_s: float, seed: int) -> Schedule:
    """Compute the planned send times of an open loop; all are before ``duration_s``.

    Args:
        arrivals: any process except a closed loop.
        duration_s: length of the run, seconds; the rest of a trace is ignored.
        seed: the same seed gives the same times.

    Raises:
        BadInput: the schedule is too long, or the trace cannot be read.
    """
    if not 0 < duration_s < math.inf:
        raise BadInput(f"the duration must be positive and finite, got {duration_s} s")
    if isinstance(arrivals, ClosedLoop):
        raise BadInput("a closed loop has no schedule: its callers send after each answer")
    if isinstance(arrivals, Trace):
        planned = _read_trace(arrivals.path)
    else:
        expected = max(_mean_rate(arrivals) * duration_s, arrivals.size if isinstance(arrivals, Burst) else 0)
        if expected > MAX_REQUESTS:
            raise BadInput(
                f"the run would have {expected:,.0f} requests, the limit is {MAX_REQUESTS:,}; reduce the rate or the duration"
            )
        planned = Schedule(_times(arrivals, duration_s, np.random.default_rng(seed)))
    count = int(np.searchsorted(planned.times_s, duration_s, "left"))
    return Schedule(planned.times_s[:count], None if planned.sizes is None else planned.sizes[:count])


def _mean_rate(arrivals: Generated) -> float:
    match arrivals:
        case Constant() | Poisson():
            return arrivals.rate
        case Ramp():
            return (arrivals.first + arrivals.last) / 2
        case Steps():
            return sum(arrivals.rates) / len(arrivals.rates)
        case Burst():
            return arrivals.size / arrivals.period_s


def parse_sizes(text: str) -> tuple[tuple[int, float], ...]:
    """Parse images per request: ``4``, or sizes with their shares such as ``1:0.8,8:0.2``; shares are scaled to a sum of 1.

    Raises:
        BadInput: the syntax is wrong or a number is out of range.
    """
    try:
        pairs = [each.partition(":")[::2] for each in text.split(",")]
        if len(pairs) > 1 and not all(share for _, share in pairs):
            raise ValueError("each of several sizes needs a share")
        sizes = [(_count(size), _positive(share or "1")) for size, share in pairs]
        if len({size for size, _ in sizes}) < len(sizes):
            raise ValueError("a size occurs twice")
    except ValueError as error:
        raise BadInput(
            f"invalid sizes {text!r}: {error}; use one size such as 4, or a mix such as 1:0.8,8:0.2"
        ) from None
    total = sum(share for _, share in sizes)
    return tuple((size, share / total) for size, share in sizes)


def draw_sizes(sizes: tuple[tuple[int, float], ...], *, count: int, seed: int) -> Sizes:
    """Draw the sizes of ``count`` requests according to their shares: int32 [count]."""
    values, shares = zip(*sizes, strict=True)
    rng = np.random.default_rng((seed, 1))  # independent of the generator of the times
    return rng.choice(np.array(values, np.int32), size=count, p=np.array(shares) / sum(shares))


def _times(arrivals: Generated, duration_s: float, rng: np.random.Generator) -> Times:
    match arrivals:
        case Constant():
            return np.arange(math.ceil(arrivals.rate * duration_s)) / arrivals.rate
        case Poisson():
            return _poisson(arrivals.rate, duration_s, rng)
        case Ramp():
            return _ramp(arrivals, duration_s, rng)
        case Steps():
            part_s = duration_s / len(arrivals.rates)
            return np.concatenate(
                [place * part_s + _poisson(rate, part_s, rng) for place, rate in enumerate(arrivals.rates)]
            )
        case Burst():
            return np.repeat(np.arange(math.ceil(duration_s / arrivals.period_s)) * arrivals.period_s, arrivals.size)


def _poisson(rate: float, duration_s: float, rng: np.random.Generator) -> Times:
    """Given their number, the times of a Poisson process are uniform (Ross, "Introduction to Probability Models", 5.3)."""
    return np.sort(rng.random(rng.poisson(rate * duration_s)) * duration_s)


def _ramp(ramp: Ramp, duration_s: float, rng: np.random.Generator) -> Times:
    """A Poisson process in expected counts, mapped to time by the inverse of the integral of the rate."""
    total = _mean_rate(ramp) * duration_s
    expected = np.sort(rng.random(rng.poisson(total))) * total
    slope = (ramp.last - ramp.first) / duration_s
    # expected(t) = first t + slope t^2 / 2; this form of its root stays exact when the slope is small
    times: Times = 2 * expected / (ramp.first + np.sqrt(np.maximum(ramp.first**2 + 2 * slope * expected, 0)))
    return times


def _read_trace(path: Path) -> Schedule:
    if path.name.endswith(".jsonl.gz"):
        from alexnet_load.run_file import read_run

        records = read_run(path).records
        return Schedule(records.planned_s, records.images)
    times: list[float] = []
    sizes: list[int] = []
    try:
        with path.open() as lines:
            for number, line in enumerate(lines, 1):
                text = line.partition("#")[0].strip()
                if text:
                    _add_line(text, f"{path}, line {number}", times, sizes)
    except OSError as error:
        raise BadInput(f"{path}: {reason(error)}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not a text file") from None
    if len(sizes) not in (0, len(times)):
        raise BadInput(f"{path}: only some lines contain a number of images; add it to all lines or to none")
    return Schedule(np.array(times, np.float64), np.array(sizes, np.int32) if sizes else None)


def _add_line(text: str, where: str, times: list[float], sizes: list[int]) -> None:
    time, _, images = text.partition(",")
    try:
        times.append(_positive(time, zero=True))
        if images:
            sizes.append(_count(images))
    except ValueError as error:
        raise BadInput(f"{where}: {error}; a line is SECONDS or SECONDS,IMAGES") from None
    if len(times) > 1 and times[-1] < times[-2]:
        raise BadInput(f"{where}: {times[-1]:g} s is earlier than the line before; sort the file by time")
    if len(times) > MAX_REQUESTS:
        raise BadInput(f"{where}: a trace may contain {MAX_REQUESTS:,} requests")
