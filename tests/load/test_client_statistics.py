"""Statistics from the client's events."""

from __future__ import annotations

import pytest

from alexnet_client.events import Attempted, BatchCompleted, BatchSent, Ejected, Hedged, Retried, RetryBudgetExhausted
from alexnet_load.client_statistics import count_event, merge_statistics
from alexnet_load.run import ClientStatistics


def counted(*events, **fields):
    statistics = ClientStatistics(**fields)
    for event in events:
        count_event(statistics, event)
    return statistics


def test_every_event_is_counted():
    found = counted(
        *(Attempted("a:1", "ok"), Attempted("a:1", "ok"), Attempted("b:1", "overloaded")),
        *(Retried("overloaded"), RetryBudgetExhausted("unavailable"), Hedged(won=True), Ejected("b:1")),
        BatchSent(6, (0.1, 0.3)),
        BatchCompleted(6, 0.01, 0.2, 0.002),
        BatchCompleted(2, 0.0, 0.0, 0.0),
    )
    assert found.attempts == {"ok": 2, "overloaded": 1}
    assert (found.retries, found.retry_budget_exhausted) == ({"overloaded": 1}, {"unavailable": 1})
    assert (found.hedges, found.ejections, found.batches, found.images) == (1, 1, {6: 1, 2: 1}, 8)
    assert found.queued_s == pytest.approx(6 * 0.2)
    assert (found.encoded_s, found.served_s, found.decoded_s) == pytest.approx((0.06, 1.2, 0.012))


def test_the_statistics_of_several_senders_are_added():
    answered = Attempted("a:1", "ok"), BatchCompleted(1, 1, 2, 3)
    one = counted(*answered, cpu_s=(1.5,), errors={"deadline_exceeded": "first"})
    errors = {"deadline_exceeded": "second", "closed": "x"}
    two = counted(*answered, BatchCompleted(4, 0, 0, 0), cpu_s=(2.5,), errors=errors)
    assert merge_statistics([one, two], wall_s=3, interrupted=True) == ClientStatistics(
        wall_s=3,
        cpu_s=(1.5, 2.5),
        attempts={"ok": 2},
        batches={1: 2, 4: 1},
        images=6,
        encoded_s=2,
        served_s=4,
        decoded_s=6,
        errors={"deadline_exceeded": "first", "closed": "x"},
        interrupted=True,
    )
