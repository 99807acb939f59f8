"""Decide whether a running server is ready, failed or only busy, and when to restart it. Pure: no clock, no processes.

Triton 2.51 still reports ready after a backend process ended, and does not restart the process.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Observation:
    """The state of a server at one moment.

    Attributes:
        at_s: monotonic time, seconds.
        exit_code: exit code of Triton; None while it runs.
        lost: backend processes that ended, such as "backend process 42 of alexnet".
        stalled: models with waiting requests that executed nothing since the previous observation.
        faults: errors of models that failed valid requests.
    """

    at_s: float
    exit_code: int | None = None
    lost: Sequence[str] = ()
    stalled: Collection[str] = ()
    faults: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether the server is ready, the reason if not, and whether it must be restarted."""

    ready: bool
    reason: str = ""
    failed: bool = False


class FailureDetector:
    """Evaluates one running server.

    Each execution resets the timer of its model: a long or full queue is no failure while the model executes requests.

    Args:
        unready_after_s: how long a model may execute nothing while requests wait, until the server is not ready, seconds.
        failed_after_s: the same, until the server has failed, seconds.
    """

    def __init__(self, *, unready_after_s: float = 2.0, failed_after_s: float = 10.0) -> None:
        self._unready_after_s, self._failed_after_s = unready_after_s, failed_after_s
        self._stalled_since_s: dict[str, float] = {}

    def evaluate(self, observation: Observation) -> Verdict:
        """Evaluate the next observation."""
        if observation.exit_code is not None:
            return Verdict(ready=False, reason=f"Triton exited with code {observation.exit_code}", failed=True)
        if observation.lost:
            return Verdict(ready=False, reason=f"{', '.join(observation.lost)} ended unexpectedly", failed=True)
        for model, text in observation.faults.items():
            return Verdict(ready=False, reason=f"{model} fails: {text}", failed=True)
        now_s, since_s = observation.at_s, self._stalled_since_s
        self._stalled_since_s = {model: since_s.get(model, now_s) for model in observation.stalled}
        if not self._stalled_since_s:
            return Verdict(ready=True)
        model, first_s = min(self._stalled_since_s.items(), key=lambda each: each[1])
        stalled_s = now_s - first_s
        if stalled_s < self._unready_after_s:
            return Verdict(ready=True)
        reason = f"{model} executed nothing for {stalled_s:.0f} s while requests waited"
        return Verdict(ready=False, reason=reason, failed=stalled_s >= self._failed_after_s)


@dataclass(frozen=True)
class RestartPolicy:
    """Restarts with exponential backoff.

    Attributes:
        limit: maximum number of restarts in a row.
        initial_delay_s: delay before the second restart in a row, seconds. The first restart is immediate; every further
            delay is twice as long.
        max_delay_s: upper limit of the delay, seconds.
        reset_after_s: a server that was ready for this time resets the number of restarts, seconds.
    """

    limit: int = 5
    initial_delay_s: float = 1.0
    max_delay_s: float = 30.0
    reset_after_s: float = 60.0

    def delay_s(self, restart: int) -> float | None:
        """Delay before restart number ``restart`` in a row, counted from 1, seconds; None if the limit is exceeded."""
        if restart > self.limit:
            return None
        return 0.0 if restart == 1 else min(self.initial_delay_s * 2 ** (restart - 2), self.max_delay_s)

    def count(self, restarts: int, ready_s: float) -> int:
        """Number of restarts in a row including the next one, after the server was ready for ``ready_s`` seconds."""
        return 1 if ready_s >= self.reset_after_s else restarts + 1
