"""What the senders count of their clients' events."""

from __future__ import annotations

import pickle

import pytest

from alexnet_client.events import Attempted, BatchAnswered, BatchSent, Ejected, Hedged, Retried, RetryBudgetExhausted
from alexnet_load.tally import Tally, client_side


def counted(*events, cpu_s=0.0, errors=None):
    tally = Tally(errors=errors or {}, cpu_s=cpu_s)
    for event in events:
        tally(event)
    return tally


def test_every_event_is_counted_in_its_place():
    tally = counted(
        *(Attempted("a:1", "ok"), Attempted("a:1", "ok"), Attempted("b:1", "overloaded")),
        *(Retried("overloaded"), RetryBudgetExhausted("unavailable"), Hedged(won=True), Ejected("b:1")),
        BatchSent(6, (0.1, 0.3)),
        BatchAnswered(6, 0.01, 0.2, 0.002),
        BatchAnswered(2, 0.01, 0.1, 0.001),
    )
    side = client_side([tally], wall_s=10.0, interrupted=False)
    assert side.attempts == {"ok": 2, "overloaded": 1}
    assert (side.retries, side.retry_budget_exhausted) == ({"overloaded": 1}, {"unavailable": 1})
    assert (side.hedges, side.ejections, side.wall_s, side.interrupted) == (1, 1, 10.0, False)
    assert (side.batches, side.images) == ({6: 1, 2: 1}, 8)


def test_phases_are_sums_over_images():
    side = client_side(
        [counted(BatchSent(6, (0.1, 0.3)), BatchAnswered(6, 0.01, 0.2, 0.002))], wall_s=1, interrupted=False
    )
    assert side.queued_s == pytest.approx(6 * 0.2)
    assert (side.encoded_s, side.served_s, side.decoded_s) == pytest.approx((0.06, 1.2, 0.012))


def test_the_counts_of_several_senders_add_up():
    one = counted(Attempted("a:1", "ok"), BatchAnswered(1, 1, 2, 3), cpu_s=1.5, errors={"deadline_exceeded": "first"})
    two = counted(
        Attempted("a:1", "ok"),
        BatchAnswered(1, 1, 2, 3),
        BatchAnswered(4, 0, 0, 0),
        cpu_s=2.5,
        errors={"deadline_exceeded": "second", "closed": "x"},
    )
    side = client_side([one, two], wall_s=3, interrupted=True)
    assert side.attempts == {"ok": 2}
    assert (side.batches, side.images, side.cpu_s) == ({1: 2, 4: 1}, 6, (1.5, 2.5))
    assert (side.encoded_s, side.served_s, side.decoded_s) == (2, 4, 6)
    assert side.errors == {"deadline_exceeded": "first", "closed": "x"}


def test_a_tally_travels_between_processes():
    tally = counted(Attempted("a:1", "ok"), BatchSent(1, (0.1,)))
    assert pickle.loads(pickle.dumps(tally)) == tally
