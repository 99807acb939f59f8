"""When a server is dead, when it merely is busy, and how often it is started again. Pure: no clock, no processes.

Triton 2.51 goes on calling itself ready when a backend process has died, and starts none again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Look:
    """What one look at a server found.

    Attributes:
        at_s: time of it, seconds.
        exit_code: of Triton; None while it runs.
        lost: backend processes that have gone, such as "backend process 42 of alexnet".
        waiting: models that somebody waits for and that have executed nothing since they were looked at before.
        faults: what models said that answered a good request with an error.
    """

    at_s: float
    exit_code: int | None = None
    lost: Sequence[str] = ()
    waiting: Collection[str] = ()
    faults: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether the server serves and why not; with ``fatal`` it must be started again."""

    ready: bool
    reason: str = ""
    fatal: bool = False


class Watch:
    """Judges one running server, look by look.

    Whatever a model executes proves its life: a long or full queue is no fault as long as it moves.

    Args:
        unready_after_s: without a sign of life while somebody waits, until the server counts as not ready.
        hung_after_s: until it counts as hung.
    """

    def __init__(self, *, unready_after_s: float = 2.0, hung_after_s: float = 10.0) -> None:
        self._unready_after_s, self._hung_after_s = unready_after_s, hung_after_s
        self._since_s: dict[str, float] = {}

    def judge(self, look: Look) -> Verdict:
        """What to make of a look."""
        if look.exit_code is not None:
            return Verdict(ready=False, reason=f"Triton has ended, exit code {look.exit_code}", fatal=True)
        if look.lost:
            return Verdict(ready=False, reason=f"{', '.join(look.lost)} has gone", fatal=True)
        for model, said in look.faults.items():
            return Verdict(ready=False, reason=f"{model} fails: {said}", fatal=True)
        self._since_s = {model: self._since_s.get(model, look.at_s) for model in look.waiting}
        if not self._since_s:
            return Verdict(ready=True)
        model = min(self._since_s, key=lambda each: self._since_s[each])
        waited_s = look.at_s - self._since_s[model]
        if waited_s < self._unready_after_s:
            return Verdict(ready=True)
        reason = f"{model} has executed nothing for {waited_s:.0f} s while requests waited"
        return Verdict(ready=False, reason=reason, fatal=waited_s >= self._hung_after_s)


@dataclass(frozen=True)
class RestartPolicy:
    """How often a server is started again, and after how long.

    Attributes:
        limit: restarts in a row until the launcher gives up.
        first_delay_s: before the second restart, seconds; the first one is immediate, each further one waits twice as long.
        longest_delay_s: no wait is longer.
        steady_after_s: a server that has served so long starts a new count.
    """

    limit: int = 5
    first_delay_s: float = 1.0
    longest_delay_s: float = 30.0
    steady_after_s: float = 60.0

    def delay_s(self, restart: int) -> float | None:
        """Seconds to wait before the ``restart``th restart in a row, from 1; None to give up."""
        if restart > self.limit:
            return None
        return 0.0 if restart == 1 else min(self.first_delay_s * 2 ** (restart - 2), self.longest_delay_s)

    def count(self, restarts: int, served_s: float) -> int:
        """Restarts in a row, with the one that is due now, after the server served for ``served_s`` seconds."""
        return 1 if served_s >= self.steady_after_s else restarts + 1
