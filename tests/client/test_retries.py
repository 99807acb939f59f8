"""Which failures are tried again, where and when, and what that may cost."""

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
    ServerFault,
    Unavailable,
)
from alexnet_client.retries import Again, RetryBudget, RetryOptions, again

OPTIONS = RetryOptions(max_attempts=4, first_backoff_s=0.1, longest_backoff_s=0.25)


def decide(error, *, attempt=1, others=True, left_s=10.0):
    chance = random.Random(1)
    return again(error, attempt=attempt, others=others, left_s=left_s, options=OPTIONS, chance=chance)


@pytest.mark.parametrize("kind", [BadInput, ImageError, Closed, DeadlineExceeded, QueueFull])
def test_what_would_fail_again_or_comes_too_late_is_not_tried_again(kind):
    assert decide(kind("no")) is None


@pytest.mark.parametrize(("kind", "reason"), [(Unavailable, "unavailable"), (ServerFault, "server_fault")])
def test_a_dead_or_faulty_replica_is_left_for_another_at_once(kind, reason):
    assert decide(kind("gone")) == Again(0.0, elsewhere=True, reason=reason)


def test_a_lone_faulty_server_is_believed():
    assert decide(ServerFault("broken"), others=False) is None


def test_overload_is_given_a_random_time_that_may_be_longer_each_time():
    for attempt, longest_s in ((1, 0.1), (2, 0.2), (3, 0.25)):
        waits = {
            again(Overloaded("busy"), attempt=attempt, others=True, left_s=10, options=OPTIONS, chance=chance).after_s
            for chance in map(random.Random, range(200))
        }
        assert 0.9 * longest_s < max(waits) <= longest_s
        assert min(waits) < 0.1 * longest_s


def test_a_wait_beyond_the_deadline_is_not_begun():
    assert decide(Overloaded("busy"), left_s=0.001) is None


def test_attempts_are_counted():
    assert decide(Unavailable("gone"), attempt=4) is None


def test_retries_add_a_tenth_to_the_load_and_a_burst():
    budget = RetryBudget(RetryOptions(budget=0.1, burst=10))
    granted = 0
    for _ in range(1000):  # everything fails, and everybody wants another try
        budget.deposit()
        granted += budget.take()
    assert 100 <= granted <= 110


def test_no_budget_means_no_retries():
    budget = RetryBudget(RetryOptions(budget=0, burst=0))
    budget.deposit()
    assert not budget.take()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"budget": 1.5},
        {"burst": -1},
        {"hedge_quantile": 1.0},
        {"first_backoff_s": 0},
        {"first_backoff_s": 2, "longest_backoff_s": 1},
    ],
)
def test_senseless_options_are_refused(wrong):
    with pytest.raises(BadInput):
        RetryOptions(**wrong)
