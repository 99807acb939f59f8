"""Whether a failed attempt is made again, where and when, and what that may cost the servers. Pure."""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from dataclasses import dataclass

from alexnet_client.errors import BadInput, ClientError, Overloaded, ServerFault, Unavailable

REMEMBERED = 200
"""Latencies that hedging looks back on."""


@dataclass(frozen=True)
class RetryOptions:
    """How persistent the client is.

    Attributes:
        max_attempts: attempts of a request, with the first.
        budget: retries and hedges may add this share to the requests that are sent.
        burst: so many of them may come at once, after a quiet time.
        first_backoff_s: the longest wait before the first retry of an overloaded or lone replica, seconds; doubled each time.
        longest_backoff_s: no wait is longer.
        hedge_quantile: a request that is slower than this share of the recent ones is sent to a second replica too,
            whose answer may come first; 0 for never.
    """

    max_attempts: int = 4
    budget: float = 0.1
    burst: int = 10
    first_backoff_s: float = 0.02
    longest_backoff_s: float = 1.0
    hedge_quantile: float = 0.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.burst < 0 or not 0 <= self.budget <= 1:
            raise BadInput(f"max_attempts must be at least 1, burst not negative, budget within 0 and 1; got {self}")
        if not 0 <= self.hedge_quantile < 1:
            raise BadInput(f"hedge_quantile must be at least 0 and below 1, got {self.hedge_quantile}")
        if not 0 < self.first_backoff_s <= self.longest_backoff_s < math.inf:
            raise BadInput(f"first_backoff_s must be positive and at most longest_backoff_s, got {self}")


class RetryBudget:
    """A bucket of tokens: each request puts ``budget`` of one in, each retry or hedge takes a whole one out.

    When everything fails, retries add that share to the load and no more: a storm of retries cannot begin.
    """

    def __init__(self, options: RetryOptions) -> None:
        self._options = options
        self._tokens = float(options.burst)

    def deposit(self) -> None:
        """A request was sent for the first time."""
        self._tokens = min(self._tokens + self._options.budget, max(1.0, self._options.burst))

    def take(self) -> bool:
        """Whether one more attempt may be made."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Patience:
    """How long the usual share of requests takes lately: what takes longer is worth a hedge.

    Args:
        quantile: the share; 0 for no hedging.
    """

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._latencies_s: deque[float] = deque(maxlen=REMEMBERED)

    def seen(self, latency_s: float) -> None:
        """A request was answered after so many seconds."""
        self._latencies_s.append(latency_s)

    @property
    def seconds(self) -> float | None:
        """To wait before a second attempt; None without hedging, or before enough is known."""
        if not self._quantile or len(self._latencies_s) < REMEMBERED // 4:
            return None
        cuts = statistics.quantiles(self._latencies_s, n=1000)
        return cuts[min(998, int(self._quantile * 1000))]


@dataclass(frozen=True)
class Again:
    """Make the attempt again after ``after_s`` seconds; ``elsewhere``: not at a replica that failed."""

    after_s: float
    elsewhere: bool
    reason: str


def again(
    error: ClientError, *, attempt: int, others: bool, left_s: float, options: RetryOptions, chance: random.Random
) -> Again | None:
    """What follows a failed attempt; None if the caller is told.

    What is wrong with the request itself is never tried again. A dead, stopping or faulty replica is left for another
    at once; alone, a faulty one is believed. Overload, or a lone replica that is away, is given time: a random share of a wait that doubles ("full jitter",
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so that callers do not return together.

    Args:
        error: what came of the attempt.
        attempt: its number, from 1.
        others: whether there are replicas that have not failed this request.
        left_s: until the deadline.
        options: how persistent to be.
        chance: source of randomness.
    """
    reason = reason_of(error)
    if reason is None or attempt >= options.max_attempts or (isinstance(error, ServerFault) and not others):
        return None
    if others and not isinstance(error, Overloaded):
        return Again(0.0, elsewhere=True, reason=reason)
    longest_s = min(options.first_backoff_s * 2 ** (attempt - 1), options.longest_backoff_s)
    after_s = chance.uniform(0, longest_s)
    return Again(after_s, elsewhere=others, reason=reason) if after_s < left_s else None


def reason_of(error: ClientError) -> str | None:
    """Why an attempt that failed like this may be made again; None if it may not."""
    reasons = {Unavailable: "unavailable", ServerFault: "server_fault", Overloaded: "overloaded"}
    return reasons.get(type(error))
