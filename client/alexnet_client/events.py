"""Events of a client, as records for metrics, logs and tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class CallEnded:
    """A call ended. ``outcome`` is "ok", "cancelled", or the name of the exception in snake case."""

    outcome: str
    images: int
    seconds: float


@dataclass(frozen=True)
class BatchSent:
    """A batch left the queue. ``waited_s``: time in the queue of each of its calls, seconds."""

    images: int
    waited_s: tuple[float, ...]


@dataclass(frozen=True)
class BatchCompleted:
    """A batch has a result. Duration of its phases, seconds: encoding, network and server, decoding."""

    images: int
    encoded_s: float
    served_s: float
    decoded_s: float


@dataclass(frozen=True)
class Attempted:
    """A request to a replica ended; ``outcome`` as in ``CallEnded``."""

    replica: str
    outcome: str


@dataclass(frozen=True)
class Retried:
    """A request is retried; ``reason`` is "unavailable", "overloaded" or "server_fault"."""

    reason: str


@dataclass(frozen=True)
class RetryBudgetExhausted:
    """A request is not retried because the retry budget is exhausted; ``reason`` as in ``Retried``."""

    reason: str


@dataclass(frozen=True)
class Hedged:
    """A slow request was also sent to a second replica; ``won``: the second response was used."""

    won: bool


@dataclass(frozen=True)
class Ejected:
    """A replica was ejected: it gets no requests until a probe succeeds."""

    replica: str


@dataclass(frozen=True)
class SharedMemoryFallback:
    """A request carries the pixels in its gRPC payload although shared memory is on; ``reason``: "full" or "rejected"."""

    replica: str
    reason: str


Event: TypeAlias = (
    CallEnded
    | BatchSent
    | BatchCompleted
    | Attempted
    | Retried
    | RetryBudgetExhausted
    | Hedged
    | Ejected
    | SharedMemoryFallback
)
Listener: TypeAlias = Callable[[Event], None]


def outcome_of(error: Exception) -> str:
    """The outcome for an exception, such as "bad_input" or "deadline_exceeded"."""
    name = type(error).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
