"""What happens in a client, as records: metrics, logs and tests read the same ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class CallEnded:
    """A call is over: ``outcome`` is "ok", the exception's name in snake case, or "cancelled" if the caller was cancelled."""

    outcome: str
    images: int
    seconds: float


@dataclass(frozen=True)
class BatchSent:
    """A batch left the queue: ``waited_s`` has the seconds that each of its callers waited."""

    images: int
    waited_s: tuple[float, ...]


@dataclass(frozen=True)
class BatchAnswered:
    """A batch came back. Seconds of its phases: made into bytes, on the wire and at the server, read."""

    images: int
    encoded_s: float
    served_s: float
    decoded_s: float


@dataclass(frozen=True)
class Attempted:
    """A request was sent to a replica; ``outcome`` as in ``CallEnded``."""

    replica: str
    outcome: str


@dataclass(frozen=True)
class Retried:
    """An attempt is made again; ``reason`` is "unavailable", "overloaded" or "server_fault"."""

    reason: str


@dataclass(frozen=True)
class RetryBudgetExhausted:
    """An attempt would have been made again, but the budget is spent."""

    reason: str


@dataclass(frozen=True)
class Hedged:
    """A slow request was sent to a second replica; ``won``: whose answer came first."""

    won: bool


@dataclass(frozen=True)
class Ejected:
    """A replica gets no requests for a while."""

    replica: str


@dataclass(frozen=True)
class SharedMemoryFallback:
    """A request goes over the wire though shared memory was asked for; ``reason``: "full" or "rejected"."""

    replica: str
    reason: str


Event: TypeAlias = (
    CallEnded
    | BatchSent
    | BatchAnswered
    | Attempted
    | Retried
    | RetryBudgetExhausted
    | Hedged
    | Ejected
    | SharedMemoryFallback
)
Listener: TypeAlias = Callable[[Event], None]


def outcome_of(error: BaseException | None) -> str:
    """Such as ok, bad_input, overloaded or deadline_exceeded: the exception's name in snake case."""
    if error is None:
        return "ok"
    name = type(error).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
