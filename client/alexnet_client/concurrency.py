"""How many requests may be in flight at one replica: more while the latency is stable, fewer when it grows."""

from __future__ import annotations

from dataclasses import dataclass

TOLERANCE = 3.0
"""A latency below this multiple of the best latency does not reduce the limit: one request is executed, one is in transit and
one waits, so that the replica is always busy."""
LEARNING_RATE = 0.2
"""Weight of a new latency in the best latency if the request was alone at the replica. Such a request did not wait for others
of this client, so a replica that became permanently slower gets a new best latency."""


@dataclass(frozen=True)
class ConcurrencyRange:
    """Bounds and start value of a concurrency limit."""

    minimum: int = 1
    maximum: int = 16
    start: int = 2


class ConcurrencyLimit:
    """A limit with additive increase and multiplicative decrease, as in TCP, controlled by latency.

    Latencies are compared between requests of similar size: a batch of 32 takes longer than a batch of 1 without congestion.
    Source: Chiu and Jain, "Analysis of the increase and decrease algorithms for congestion avoidance in computer networks",
    1989.
    """

    def __init__(self, bounds: ConcurrencyRange | None = None) -> None:
        self._bounds = bounds or ConcurrencyRange()
        self._limit = float(min(max(self._bounds.start, self._bounds.minimum), self._bounds.maximum))
        self._best_s: dict[int, float] = {}
        self._next_decrease_s = 0.0

    @property
    def value(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    def succeeded(self, latency_s: float, *, images: int, in_flight: int, now_s: float) -> None:
        """Adapt the limit after a response.

        Args:
            latency_s: from request to response.
            images: in the request.
            in_flight: requests at the replica when this one was sent, including it.
            now_s: the time, seconds.
        """
        size = images.bit_length()
        best_s = self._best_s.get(size, latency_s)
        best_s = best_s + LEARNING_RATE * (latency_s - best_s) if in_flight == 1 else min(best_s, latency_s)
        self._best_s[size] = best_s
        if latency_s > TOLERANCE * best_s:
            self._decrease(0.9, latency_s, now_s)
        elif in_flight >= self.value:  # below the limit, a good latency does not justify a higher limit
            self._limit = min(self._limit + 1 / self._limit, self._bounds.maximum)

    def overloaded(self, now_s: float) -> None:
        """Reduce the limit after the replica reported overload."""
        self._decrease(0.7, 0.05, now_s)

    def _decrease(self, factor: float, pause_s: float, now_s: float) -> None:
        """Reduce the limit once for all requests that were in flight together: they experienced the same congestion."""
        if now_s >= self._next_decrease_s:
            self._limit = max(self._limit * factor, self._bounds.minimum)
            self._next_decrease_s = now_s + pause_s
