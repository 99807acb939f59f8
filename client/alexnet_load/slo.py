"""The highest rate of arrivals at which an objective is kept: bracketed, bisected, confirmed.

Owns the search. Pure: trials are made elsewhere, and it knows no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from alexnet_client.errors import BadInput
from alexnet_load.objective import Objective, Trial, parse_objective

__all__ = ["Found", "Objective", "Trial", "lower_bound", "parse_objective", "search"]

CONFIDENCE = 0.95
CONFIRM = 5
"""Fresh trials at the rate that was found; all but one of them must keep the objective."""
MOST_TRIALS = 80
FAINT = 1 / 1024
"""Share of the first rate at which the search gives up: nothing is served in time."""


@dataclass(frozen=True)
class Found:
    """What the search came to.

    Attributes:
        rate: the highest that keeps the objective, requests a second; 0 if none does.
        failed: the lowest above it that does not; None if none was met.
        trials: all of them, in order.
        why: why the search ended where it did, if it is not the objective; empty otherwise.
        confidence: what the trials at ``rate`` prove, in words.
    """

    rate: float
    failed: float | None
    trials: tuple[Trial, ...]
    why: str
    confidence: str


def search(
    trial: Callable[[float], Trial],
    objective: Objective,
    *,
    start_rate: float,
    most_rate: float = math.inf,
    precision: float = 0.05,
    repeats: int = 3,
    most_trials: int = MOST_TRIALS,
    on_step: Callable[[Trial, bool], None] = lambda trial, kept: None,
) -> Found:
    """Search the highest rate that keeps the objective.

    The rate is doubled until it fails, or halved until it passes; then the bracket is halved on a logarithmic scale until
    its ends are within ``precision``. Each rate passes or fails by the majority of ``repeats`` trials. Then the lower end is
    tried ``CONFIRM`` times afresh, and if more than one trial breaks the objective the rate goes down by the precision until
    no more does. If the sender is the limit the search ends there: that is no failure of the server.

    Args:
        trial: makes a run at a rate. The trials must have dice of their own: the same arrivals again prove nothing new.
        objective: what is to be kept.
        start_rate: to begin with, requests a second.
        most_rate: never to be exceeded.
        precision: of the result, 0.05 for 5 %.
        repeats: trials that decide about a rate; 1 believes each trial and confirms none.
        most_trials: the search ends after so many, with what it has.
        on_step: told each trial, and whether it kept the objective.

    Raises:
        BadInput: a number makes no sense.
    """
    if not 0 < start_rate <= most_rate or not 0 < precision < 1 or repeats < 1 or most_trials < 1:
        raise BadInput(
            f"a search needs a positive start rate up to {most_rate:g}, a precision between 0 and 1, a repeat and a trial; "
            f"got {start_rate:g}, {precision:g}, {repeats} and {most_trials}"
        )
    state, why = _Search(trial, objective, repeats, most_trials, on_step), ""
    try:
        state.bracket(start_rate, most_rate)
        state.narrow(precision)
    except _EndedError as end:
        why = str(end)
    try:
        if state.low and repeats > 1 and state.confirm(precision):
            why = ""
    except _EndedError as end:
        why = str(end)
    return Found(
        rate=state.low,
        failed=state.high if state.high < math.inf else None,
        trials=tuple(state.trials),
        why=f"at least {state.low:.4g} requests/s: {why}" if why and state.low and state.high == math.inf else why,
        confidence=_confidence(state),
    )


class _EndedError(Exception):
    """The search cannot go on, for the reason that it holds; the bounds found so far stand."""


class _LimitedError(_EndedError):
    """The sender was the limit, twice at one rate."""


@dataclass
class _Search:
    """The bounds and the trials that moved them: ``low`` is the highest rate that passed, ``high`` the lowest that failed."""

    trial: Callable[[float], Trial]
    objective: Objective
    repeats: int
    most_trials: int
    on_step: Callable[[Trial, bool], None]
    low: float = 0.0
    high: float = math.inf
    limited: _LimitedError | None = None
    trials: list[Trial] = field(default_factory=list)
    confirmed: int = 0

    def kept_of(self, rate: float, count: int, *, needed: int, whole: bool = False) -> int:
        """How many of ``count`` trials keep the objective; ended early if it is known whether ``needed`` do.

        A trial in which the sender was the limit is no failure of the server: it is made again, once. ``whole`` makes all of
        them unless they fail: only a number fixed beforehand gives a bound of confidence.
        """
        kept = broken = hindered = 0
        while broken <= count - needed and kept + broken < count and (whole or kept < needed):
            if len(self.trials) >= self.most_trials:
                raise _EndedError(f"the search ended after {self.most_trials} trials; longer ones vary less")
            found = self.trial(rate)
            keeps = found.keeps(self.objective)
            self.trials.append(found)
            self.on_step(found, keeps)
            if keeps:
                kept += 1
            elif not found.sender_limited:
                broken += 1
            elif hindered:
                raise _LimitedError(f"the sender was the limit at {rate:.4g} requests/s ({found.sender_limited})")
            else:
                hindered += 1
        return kept

    def passes(self, rate: float) -> bool:
        """Decide by the majority of trials, and move a bound."""
        needed = self.repeats // 2 + 1
        try:
            passed = self.kept_of(rate, self.repeats, needed=needed) >= needed
        except _LimitedError as limited:
            if self.low:
                raise
            self.limited = limited  # a lower rate may pass yet
            return False
        if not passed:
            self.high, self.limited = rate, None
            return False
        self.low = rate
        if self.limited:
            raise self.limited
        return True

    def bracket(self, start: float, most: float) -> None:
        """Double the rate until it fails, or halve it until it passes."""
        rate = start
        if self.passes(rate):
            while rate < most:
                rate = min(2 * rate, most)
                if not self.passes(rate):
                    return
            raise _EndedError("more was not asked for")
        while rate > start * FAINT:
            rate /= 2
            if self.passes(rate):
                return
        raise self.limited or _EndedError(f"the objective is not kept at any rate down to {rate:.3g} requests/s")

    def narrow(self, precision: float) -> None:
        """Halve the bracket until its ends are near each other."""
        while self.high / self.low > 1 + precision:
            self.passes(math.sqrt(self.low * self.high))

    def confirm(self, precision: float) -> bool:
        """Go down by the precision until fresh trials agree with the rate; whether it had to."""
        found = self.low
        while self.low > found * FAINT:
            kept = self.kept_of(self.low, CONFIRM, needed=CONFIRM - 1, whole=True)
            if kept >= CONFIRM - 1:
                self.confirmed = kept
                return self.low < found
            self.high, self.low = self.low, self.low / (1 + precision)
        self.low = 0.0
        raise _EndedError("no rate keeps the objective but by chance; use longer trials")


def _confidence(state: _Search) -> str:
    """What the trials at the rate prove; those that led to it were chosen by their result, and prove nothing."""
    if not state.low:
        return ""
    objective, there = state.objective, [each for each in state.trials if each.rate == state.low]
    fewest = min((each.requests for each in there), default=0)
    if state.confirmed:
        words = (
            f"{state.confirmed} of {CONFIRM} fresh trials of at least {fewest:,} requests kept it: with {CONFIDENCE:.0%} confidence at least "
            f"{lower_bound(state.confirmed, CONFIRM):.0%} of such trials do"
        )
    else:
        kept = sum(each.keeps(objective) for each in there)
        words = f"{kept} of {len(there)} trials kept it; no fresh ones confirmed it"
    if there and fewest < objective.least_requests:
        words += f"; p{objective.percentile:g} of {fewest:,} requests is rough, trials of {objective.least_requests:,} are not"
    unsteady = sum(not each.steady for each in there)
    if unsteady:
        words += f"; {unsteady} of {len(there)} trials did not come to rest"
    return words


def lower_bound(successes: int, trials: int) -> float:
    """The least probability of success that agrees with what was seen, one-sided, at ``CONFIDENCE``.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26, 1934.
    """
    low, high = 0.0, 1.0 if successes else 0.0
    for _ in range(60):  # the chance of so many successes or more grows with the probability
        middle = (low + high) / 2
        chance = sum(
            math.comb(trials, count) * middle**count * (1 - middle) ** (trials - count)
            for count in range(successes, trials + 1)
        )
        low, high = (middle, high) if chance < 1 - CONFIDENCE else (low, middle)
    return low
