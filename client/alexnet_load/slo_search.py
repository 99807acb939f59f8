"""Search the highest rate that meets an SLO: bracket it, bisect the bracket, confirm the result. Trials are a parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from alexnet_client.errors import BadInput
from alexnet_load.slo import Slo, Trial

CONFIDENCE = 0.95
CONFIRMATIONS = 5
"""Additional trials at the result; all but one of them must meet the SLO."""
LOWER_BOUNDS = {4: 0.343, 5: 0.549}
"""One-sided lower bound, with ``CONFIDENCE``, of the share of trials that meet the SLO if 4 or 5 of 5 do.

Source: Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 26, 1934.
"""
MAX_TRIALS = 80
MIN_SHARE = 1 / 1024
"""The search ends without a result below this share of the start rate."""


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        rate: highest rate that meets the SLO, requests per second; 0 if none does.
        violated_at: lowest higher rate that violates it; None if none was found.
        trials: all trials in order.
        end_reason: why the search ended, if the SLO was not the reason; empty otherwise.
        confidence: what the trials at ``rate`` show.
    """

    rate: float
    violated_at: float | None
    trials: tuple[Trial, ...]
    end_reason: str
    confidence: str


def search(
    trial: Callable[[float], Trial],
    slo: Slo,
    *,
    start_rate: float,
    max_rate: float = math.inf,
    precision: float = 0.05,
    repeats: int = 3,
    max_trials: int = MAX_TRIALS,
) -> SearchResult:
    """Search the highest rate that meets the SLO.

    The rate is doubled until it violates the SLO, or halved until it meets it. Then the bracket is bisected on a logarithmic
    scale until its ends are within ``precision``. The majority of ``repeats`` trials decides about a rate. Then the lower end
    is confirmed by ``CONFIRMATIONS`` new trials; while more than one of them violates the SLO, the rate is reduced by the
    precision. If the load generator is the bottleneck, the search ends, because this says nothing about the server.

    Args:
        trial: runs a trial at a rate; each trial must use another seed, because equal arrivals give no new information.
        slo: the SLO.
        start_rate: rate of the first trial, requests per second.
        max_rate: highest rate to try.
        precision: precision of the result, 0.05 for 5 %.
        repeats: number of trials that decide about a rate; with 1 the result is not confirmed.
        max_trials: the search ends after this number of trials.

    Raises:
        BadInput: an argument is out of range.
    """
    if not 0 < start_rate <= max_rate or not 0 < precision < 1 or repeats < 1 or max_trials < 1:
        raise BadInput(
            f"a search needs a start rate above 0 and up to {max_rate:g}, a precision between 0 and 1, and at least one repeat "
            f"and trial; got {start_rate:g}, {precision:g}, {repeats} and {max_trials}"
        )
    state, reason = _Search(trial, slo, repeats, max_trials), ""
    try:
        state.bracket(start_rate, max_rate)
        state.bisect(precision)
    except _EndedError as end:
        reason = str(end)
    try:
        if state.low and repeats > 1 and state.confirm(precision):
            reason = ""
    except _EndedError as end:
        reason = str(end)
    lower_bound_only = reason and state.low and state.high == math.inf
    return SearchResult(
        rate=state.low,
        violated_at=state.high if state.high < math.inf else None,
        trials=tuple(state.trials),
        end_reason=f"at least {state.low:.4g} requests/s: {reason}" if lower_bound_only else reason,
        confidence=_confidence(state),
    )


class _EndedError(Exception):
    """The search cannot continue; the bounds found so far are valid."""


class _GeneratorLimitedError(_EndedError):
    """The load generator was the bottleneck twice at one rate."""


@dataclass
class _Search:
    """The bounds and trials: ``low`` is the highest rate that met the SLO, ``high`` the lowest one that violated it."""

    trial: Callable[[float], Trial]
    slo: Slo
    repeats: int
    max_trials: int
    low: float = 0.0
    high: float = math.inf
    limited: _GeneratorLimitedError | None = None
    trials: list[Trial] = field(default_factory=list)
    confirmed: int = 0

    def count_met(self, rate: float, count: int, *, needed: int, complete: bool = False) -> int:
        """How many of ``count`` trials meet the SLO; stops early when it is decided whether ``needed`` do.

        A trial in which the load generator was the bottleneck is repeated once. With ``complete``, all trials are run unless
        they fail, because only a predetermined number of trials gives a valid confidence bound.
        """
        met = violated = limited = 0
        while violated <= count - needed and met + violated < count and (complete or met < needed):
            if len(self.trials) >= self.max_trials:
                raise _EndedError(
                    f"the search ended after {self.max_trials} trials; use longer trials to reduce the noise"
                )
            result = self.trial(rate)
            self.trials.append(result)
            if result.meets(self.slo):
                met += 1
            elif not result.generator_limited:
                violated += 1
            elif limited:
                raise _GeneratorLimitedError(
                    f"the load generator was the bottleneck at {rate:.4g} requests/s ({result.generator_limited})"
                )
            else:
                limited += 1
        return met

    def passes(self, rate: float) -> bool:
        """Decide by the majority of trials, and move a bound."""
        needed = self.repeats // 2 + 1
        try:
            passed = self.count_met(rate, self.repeats, needed=needed) >= needed
        except _GeneratorLimitedError as limited:
            if self.low:
                raise
            self.limited = limited  # a lower rate may still meet the SLO
            return False
        if not passed:
            self.high, self.limited = rate, None
            return False
        self.low = rate
        if self.limited:
            raise self.limited
        return True

    def bracket(self, start: float, highest: float) -> None:
        """Double the rate until it violates the SLO, or halve it until it meets the SLO."""
        rate = start
        if self.passes(rate):
            while rate < highest:
                rate = min(2 * rate, highest)
                if not self.passes(rate):
                    return
            raise _EndedError("this is the maximum rate")
        while rate > start * MIN_SHARE:
            rate /= 2
            if self.passes(rate):
                return
        raise self.limited or _EndedError(f"the SLO is violated at all rates down to {rate:.3g} requests/s")

    def bisect(self, precision: float) -> None:
        while self.high / self.low > 1 + precision:
            self.passes(math.sqrt(self.low * self.high))

    def confirm(self, precision: float) -> bool:
        """Reduce the rate by the precision until new trials confirm it; return whether it was reduced."""
        found = self.low
        while self.low > found * MIN_SHARE:
            met = self.count_met(self.low, CONFIRMATIONS, needed=CONFIRMATIONS - 1, complete=True)
            if met >= CONFIRMATIONS - 1:
                self.confirmed = met
                return self.low < found
            self.high, self.low = self.low, self.low / (1 + precision)
        self.low = 0.0
        raise _EndedError("no rate meets the SLO reliably; use longer trials")


def _confidence(state: _Search) -> str:
    """Evaluate the trials at the result; the bisection selected its rates by their results, so only new trials count."""
    if not state.low:
        return ""
    slo, trials = state.slo, [each for each in state.trials if each.rate == state.low]
    fewest = min((each.requests for each in trials), default=0)
    if state.confirmed:
        text = (
            f"{state.confirmed} of {CONFIRMATIONS} confirmation trials of at least {fewest:,} requests met the SLO: with "
            f"{CONFIDENCE:.0%} confidence, at least {LOWER_BOUNDS[state.confirmed]:.0%} of such trials do"
        )
    else:
        met = sum(each.meets(slo) for each in trials)
        text = f"{met} of {len(trials)} trials met the SLO; there were no confirmation trials"
    if trials and fewest < slo.min_requests:
        text += (
            f"; p{slo.percentile:g} of {fewest:,} requests is imprecise, use trials of {slo.min_requests:,} requests"
        )
    unsteady = sum(not each.steady for each in trials)
    if unsteady:
        text += f"; {unsteady} of {len(trials)} trials did not reach a steady state"
    return text
