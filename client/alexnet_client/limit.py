"""How many requests may be in flight at one replica: more while its latency stays, fewer when it grows. Pure."""

from __future__ import annotations

from dataclasses import dataclass

TOLERANCE = 3.0
"""A replica that answers in less than this many times its best latency is not yet queueing what it cannot work on: one
request is executed, one is on its way, one waits so that the replica never does."""
LEARN = 0.2
"""Share of a new latency in the best one, if the request was alone: then it waited for no other of ours, and a replica
that became slower for good is believed."""


@dataclass(frozen=True)
class LimitRange:
    """Bounds of a limit, and where it starts."""

    least: int = 1
    most: int = 16
    start: int = 2


class AdaptiveLimit:
    """Additive increase and multiplicative decrease, as TCP does, with latency as the signal.

    Latencies are compared among requests of about the same size: a batch of 32 takes longer than one of 1, and that is
    no congestion. Source of the idea: Chiu and Jain, "Analysis of the increase and decrease algorithms for congestion
    avoidance in computer networks", 1989.
    """

    def __init__(self, bounds: LimitRange | None = None) -> None:
        self._bounds = bounds or LimitRange()
        self._limit = float(min(max(self._bounds.start, self._bounds.least), self._bounds.most))
        self._best_s: dict[int, float] = {}
        self._cut_s = 0.0

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    def answered(self, latency_s: float, *, images: int, in_flight: int, now_s: float) -> None:
        """Learn from an answer.

        Args:
            latency_s: from sending to the answer.
            images: in the request.
            in_flight: requests at the replica when this one was sent, with it.
            now_s: the time, seconds.
        """
        size = images.bit_length()
        best_s = self._best_s.get(size, latency_s)
        best_s = best_s + LEARN * (latency_s - best_s) if in_flight == 1 else min(best_s, latency_s)
        self._best_s[size] = best_s
        if latency_s > TOLERANCE * best_s:
            self._cut(0.9, latency_s, now_s)
        elif in_flight >= self.limit:  # a limit that nobody reaches proves nothing
            self._limit = min(self._limit + 1 / self._limit, self._bounds.most)

    def refused(self, now_s: float) -> None:
        """Learn from a replica that said it is overloaded."""
        self._cut(0.7, 0.05, now_s)

    def _cut(self, share: float, pause_s: float, now_s: float) -> None:
        """Once for all requests that were in flight together: they all tell of the same congestion."""
        if now_s >= self._cut_s:
            self._limit = max(self._limit * share, self._bounds.least)
            self._cut_s = now_s + pause_s
