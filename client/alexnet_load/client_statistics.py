"""Count the client's events during a run, and add up the statistics of several senders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from alexnet_client.events import (
    Attempted,
    BatchCompleted,
    BatchSent,
    Ejected,
    Event,
    Hedged,
    Retried,
    RetryBudgetExhausted,
)
from alexnet_load.run import ClientStatistics

Key = TypeVar("Key", str, int)


def count_event(statistics: ClientStatistics, event: Event) -> None:
    """Add one event to the statistics of a sender."""
    match event:
        case Attempted():
            _add(statistics.attempts, event.outcome)
        case BatchSent():  # the images of one caller wait equally long
            statistics.queued_s += event.images * sum(event.waited_s) / len(event.waited_s)
        case BatchCompleted():
            _add(statistics.batches, event.images)
            statistics.images += event.images
            statistics.encoded_s += event.images * event.encoded_s
            statistics.served_s += event.images * event.served_s
            statistics.decoded_s += event.images * event.decoded_s
        case Retried():
            _add(statistics.retries, event.reason)
        case RetryBudgetExhausted():
            _add(statistics.retry_budget_exhausted, event.reason)
        case Hedged():
            statistics.hedges += 1
        case Ejected():
            statistics.ejections += 1


def merge_statistics(parts: Iterable[ClientStatistics], *, wall_s: float, interrupted: bool) -> ClientStatistics:
    """Add up the statistics of all senders; of several example errors the first one is kept."""
    total = ClientStatistics(wall_s=wall_s, interrupted=interrupted)
    for part in parts:
        for name in ("images", "queued_s", "encoded_s", "served_s", "decoded_s", "hedges", "ejections", "cpu_s"):
            setattr(total, name, getattr(total, name) + getattr(part, name))
        for name in ("attempts", "retries", "retry_budget_exhausted", "batches"):
            for key, count in getattr(part, name).items():
                _add(getattr(total, name), key, count)
        total.errors = {**part.errors, **total.errors}
    return total


def _add(counts: dict[Key, int], key: Key, count: int = 1) -> None:
    counts[key] = counts.get(key, 0) + count
