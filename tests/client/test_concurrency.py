"""The concurrency limit adapts to the latency."""

from __future__ import annotations

from alexnet_client.concurrency import ConcurrencyLimit, ConcurrencyRange


def respond(limit, latency_s, count, *, in_flight=None, start_s=0.0, step_s=1.0):
    for step in range(count):
        now_s = start_s + step * step_s
        limit.succeeded(latency_s, images=32, in_flight=in_flight or limit.value, now_s=now_s)


def test_it_stays_low_if_the_server_processes_one_request_at_a_time():
    limit = ConcurrencyLimit()
    respond(limit, 0.05, 1, in_flight=1)
    for step in range(500):
        respond(limit, 0.05 * limit.value, 1, start_s=0.05 * step)
    assert 2 <= limit.value <= 4


def test_it_grows_to_its_maximum_if_the_server_processes_many_requests_at_once():
    limit = ConcurrencyLimit(ConcurrencyRange(maximum=12))
    respond(limit, 0.05, 500, step_s=0.01)
    assert limit.value == 12


def test_it_does_not_grow_while_it_is_not_reached():
    limit = ConcurrencyLimit()
    respond(limit, 0.05, 100, in_flight=1)
    assert limit.value == 2


def test_the_longer_latency_of_larger_batches_does_not_reduce_it():
    limit = ConcurrencyLimit()
    for step in range(100):
        limit.succeeded(0.005, images=1, in_flight=2, now_s=step)
        limit.succeeded(0.100, images=32, in_flight=limit.value, now_s=step + 0.5)
    assert limit.value > 2


def test_overload_reduces_it_once_per_congestion_down_to_its_minimum():
    limit = ConcurrencyLimit(ConcurrencyRange(start=8))
    limit.overloaded(now_s=0.0)
    limit.overloaded(now_s=0.01)  # the same congestion
    assert limit.value == 5
    for step in range(1, 20):
        limit.overloaded(now_s=float(step))
    assert limit.value == 1


def test_it_recovers_if_the_server_becomes_permanently_slower():
    limit = ConcurrencyLimit()
    respond(limit, 0.01, 50)
    respond(limit, 0.05, 1950, start_s=50.0)
    assert limit.value == 16


def test_equal_bounds_fix_it():
    limit = ConcurrencyLimit(ConcurrencyRange(minimum=64, maximum=64))
    limit.overloaded(now_s=0.0)
    respond(limit, 9.0, 1, start_s=1.0)
    assert limit.value == 64
