"""The limit of requests in flight follows the latency."""

from __future__ import annotations

from alexnet_client.limit import AdaptiveLimit, LimitRange


def settle(limit: AdaptiveLimit, service_s: float, answers: int, *, start_s: float = 0.0) -> int:
    """What it comes to at a server that works on one request at a time: latency grows with what is in flight."""
    now_s = start_s
    for _ in range(answers):
        in_flight = limit.limit
        latency_s = service_s * in_flight
        now_s += service_s
        limit.answered(latency_s, images=32, in_flight=in_flight, now_s=now_s)
    return limit.limit


def test_at_a_server_that_queues_it_stays_low():
    limit = AdaptiveLimit()
    limit.answered(0.05, images=32, in_flight=1, now_s=0)  # alone there
    assert 2 <= settle(limit, 0.05, 500) <= 4


def test_at_a_server_that_works_on_many_at_once_it_grows_to_its_bound():
    limit = AdaptiveLimit(LimitRange(most=12))
    for step in range(500):
        limit.answered(0.05, images=32, in_flight=limit.limit, now_s=step * 0.01)
    assert limit.limit == 12


def test_it_does_not_grow_while_nobody_needs_more():
    limit = AdaptiveLimit()
    for step in range(100):
        limit.answered(0.05, images=1, in_flight=1, now_s=step)
    assert limit.limit == 2


def test_a_large_batch_is_slower_than_a_small_one_and_that_is_no_congestion():
    limit = AdaptiveLimit()
    for step in range(100):
        limit.answered(0.005, images=1, in_flight=2, now_s=step)
        limit.answered(0.100, images=32, in_flight=limit.limit, now_s=step + 0.5)
    assert limit.limit > 2


def test_overload_halves_it_in_two_steps_and_never_below_one():
    limit = AdaptiveLimit(LimitRange(start=8))
    limit.refused(now_s=0.0)
    limit.refused(now_s=0.01)  # of the same congestion
    assert limit.limit == 5
    for step in range(1, 20):
        limit.refused(now_s=float(step))
    assert limit.limit == 1


def test_a_server_that_became_slower_for_good_is_believed_after_a_while():
    limit = AdaptiveLimit()
    for step in range(50):
        limit.answered(0.01, images=32, in_flight=limit.limit, now_s=step)
    for step in range(50, 2000):
        limit.answered(0.05, images=32, in_flight=limit.limit, now_s=step)
    assert limit.limit == 16


def test_equal_bounds_fix_it():
    limit = AdaptiveLimit(LimitRange(least=64, most=64))
    limit.refused(now_s=0.0)
    limit.answered(9.0, images=1, in_flight=64, now_s=1.0)
    assert limit.limit == 64
