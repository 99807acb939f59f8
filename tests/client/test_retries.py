"""Which errors are retried, when, and how many retries are allowed."""

from __future__ import annotations

import random

import pytest

from alexnet_client.errors import (
    BadInput,
    Closed,
    DeadlineExceeded,
    ImageError,
    Overloaded,
    QueueFull,
    RequestRejected,
    ServerFault,
    Unavailable,
)
from alexnet_client.retries import Retry, RetryBudget, RetryOptions, plan_retry

OPTIONS = RetryOptions(max_attempts=4, initial_backoff_s=0.1, max_backoff_s=0.25)


def plan(error, *, attempt=1, others=True, left_s=10.0, seed=1):
    rng = random.Random(seed)
    return plan_retry(error, attempt=attempt, others=others, left_s=left_s, options=OPTIONS, rng=rng)


@pytest.mark.parametrize("kind", [BadInput, ImageError, RequestRejected, Closed, DeadlineExceeded, QueueFull])
def test_invalid_requests_timeouts_and_a_full_queue_are_not_retried(kind):
    assert plan(kind("no")) is None


@pytest.mark.parametrize(("kind", "reason"), [(Unavailable, "unavailable"), (ServerFault, "server_fault")])
def test_a_request_that_a_replica_failed_is_retried_at_another_one_without_a_wait(kind, reason):
    assert plan(kind("gone")) == Retry(0.0, reason)


def test_a_server_fault_of_the_only_replica_is_not_retried():
    assert plan(ServerFault("broken"), others=False) is None


@pytest.mark.parametrize(("attempt", "longest_s"), [(1, 0.1), (2, 0.2), (3, 0.25)])
@pytest.mark.parametrize(("error", "others"), [(Overloaded("busy"), True), (Unavailable("gone"), False)])
def test_overload_and_an_unavailable_only_replica_are_retried_after_a_random_wait(attempt, longest_s, error, others):
    waits = [plan(error, attempt=attempt, others=others, seed=seed).after_s for seed in range(200)]
    assert min(waits) < 0.1 * longest_s
    assert 0.9 * longest_s < max(waits) <= longest_s


def test_there_is_no_retry_after_the_deadline_or_the_last_attempt():
    assert plan(Overloaded("busy"), left_s=0.001) is None
    assert plan(Unavailable("gone"), attempt=4) is None


@pytest.mark.parametrize(("budget", "burst", "least", "most"), [(0.1, 10, 100, 110), (0, 0, 0, 0)])
def test_retries_are_limited_to_the_budget_and_the_burst(budget, burst, least, most):
    bucket, granted = RetryBudget(RetryOptions(budget=budget, burst=burst)), 0
    for _ in range(1000):
        bucket.deposit()
        granted += bucket.take()
    assert least <= granted <= most


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 0},
        {"budget": 1.5},
        {"burst": -1},
        {"hedge_quantile": 1.0},
        {"initial_backoff_s": 0},
        {"initial_backoff_s": 2, "max_backoff_s": 1},
    ],
)
def test_invalid_options_are_rejected_by_name(options):
    with pytest.raises(BadInput, match=next(iter(options))):
        RetryOptions(**options)
