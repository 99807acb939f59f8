"""Whether, where and when a failed request is retried, and how many retries are allowed."""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from dataclasses import dataclass

from alexnet_client.errors import BadInput, ClientError, Overloaded, ServerFault, Unavailable

HEDGE_SAMPLES = 200
"""Number of recent latencies from which the hedging delay is computed."""


@dataclass(frozen=True)
class RetryOptions:
    """How often the client retries.

    Attributes:
        max_attempts: attempts per request, including the first.
        budget: retries and hedges are limited to this share of the requests.
        burst: retries and hedges that may exceed this share after a quiet period.
        initial_backoff_s: longest wait before the first retry of an overloaded or only replica, seconds; it doubles each time.
        max_backoff_s: upper limit of the wait, seconds.
        hedge_quantile: a request that is slower than this share of recent requests is also sent to a second replica, and the
            first response is used; 0 turns hedging off.
    """

    max_attempts: int = 4
    budget: float = 0.1
    burst: int = 10
    initial_backoff_s: float = 0.02
    max_backoff_s: float = 1.0
    hedge_quantile: float = 0.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.burst < 0 or not 0 <= self.budget <= 1:
            raise BadInput(f"max_attempts must be at least 1, burst not negative, budget between 0 and 1; got {self}")
        if not 0 <= self.hedge_quantile < 1:
            raise BadInput(f"hedge_quantile must be at least 0 and below 1, got {self.hedge_quantile}")
        if not 0 < self.initial_backoff_s <= self.max_backoff_s < math.inf:
            raise BadInput(f"initial_backoff_s must be positive and at most max_backoff_s, got {self}")


class RetryBudget:
    """A token bucket: each request adds ``budget`` tokens, each retry or hedge takes one.

    If all requests fail, retries increase the load by this share only. This prevents retry storms.
    """

    def __init__(self, options: RetryOptions) -> None:
        self._options = options
        self._tokens = float(options.burst)

    def deposit(self) -> None:
        """Add the tokens of one request."""
        self._tokens = min(self._tokens + self._options.budget, max(1.0, self._options.burst))

    def take(self) -> bool:
        """Take a token; false if the budget is exhausted."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class HedgeDelay:
    """Computes from recent latencies when a request is slow enough for a hedge; see ``RetryOptions.hedge_quantile``."""

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._latencies_s: deque[float] = deque(maxlen=HEDGE_SAMPLES)

    def record(self, latency_s: float) -> None:
        """Record the latency of a successful request."""
        self._latencies_s.append(latency_s)

    @property
    def seconds(self) -> float | None:
        """Delay before the second attempt; None without hedging, or while there are too few latencies."""
        if not self._quantile or len(self._latencies_s) < HEDGE_SAMPLES // 4:
            return None
        cuts = statistics.quantiles(self._latencies_s, n=1000)
        return cuts[min(998, int(self._quantile * 1000))]


@dataclass(frozen=True)
class Retry:
    """Retry after ``after_s`` seconds."""

    after_s: float
    reason: str


def plan_retry(
    error: ClientError, *, attempt: int, others: bool, left_s: float, options: RetryOptions, rng: random.Random
) -> Retry | None:
    """Decide what follows a failed attempt; None if the error is raised.

    Invalid requests are never retried. If a replica is unavailable or faulty, another one gets the request at once; a fault of
    the only replica is not retried. Overload, or an unavailable only replica, is retried after a random share of a wait that
    doubles ("full jitter", https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so that clients do not
    retry at the same time.

    ``attempt`` is the number of the failed attempt, from 1. ``others``: there are healthy replicas that have not failed this
    request. ``left_s`` is the time until the deadline, seconds.
    """
    reason = retry_reason(error)
    if reason is None or attempt >= options.max_attempts or (isinstance(error, ServerFault) and not others):
        return None
    if others and not isinstance(error, Overloaded):
        return Retry(0.0, reason)
    longest_s = min(options.initial_backoff_s * 2 ** (attempt - 1), options.max_backoff_s)
    after_s = rng.uniform(0, longest_s)
    return Retry(after_s, reason) if after_s < left_s else None


def retry_reason(error: ClientError) -> str | None:
    """The reason for retrying after this error; None if it must not be retried."""
    reasons = {Unavailable: "unavailable", ServerFault: "server_fault", Overloaded: "overloaded"}
    return reasons.get(type(error))
