"""When a batch leaves, as a table: no clock runs and no task waits."""

from __future__ import annotations

import math

import pytest

from alexnet_client.batching import BatchOptions, Send, Sleep, Waiting, decide
from alexnet_client.errors import BadInput

OPTIONS = BatchOptions(max_batch=4, max_delay_s=0.010)
NOW = 100.0


def callers(*images: int, since: float = NOW, deadline: float = NOW + 10) -> list[Waiting]:
    return [Waiting(each, since, deadline) for each in images]


@pytest.mark.parametrize(
    ("queue", "in_flight", "limit", "expected"),
    [
        pytest.param([], 0, 2, Sleep(), id="nobody waits"),
        pytest.param(callers(1), 0, 2, Send(1), id="a lone caller goes at once when the wire is idle"),
        pytest.param(callers(1, 1), 0, 2, Send(2), id="who is there goes together when the wire is idle"),
        pytest.param(callers(1, 1), 1, 2, Sleep(NOW + 0.010), id="a part of a batch waits for others while one flies"),
        pytest.param(callers(1, 1, 1, 1, 1), 1, 2, Send(4), id="a full batch goes, the rest waits"),
        pytest.param(callers(3, 2), 1, 2, Send(1), id="a batch is full when the next caller does not fit"),
        pytest.param(callers(9), 1, 2, Send(1), id="a caller with more than a batch travels alone"),
        pytest.param(callers(1, 1, 1, 1), 2, 2, Sleep(), id="nothing goes beyond the limit in flight"),
        pytest.param(callers(1, since=NOW - 0.010), 1, 2, Send(1), id="the oldest has waited long enough"),
        pytest.param(
            callers(1, deadline=NOW + 0.05), 1, 2, Send(1), id="its deadline leaves no time but for the answer"
        ),
        pytest.param(callers(1, deadline=NOW + 0.055), 1, 2, Sleep(NOW + 0.005), id="it wakes in time for a deadline"),
    ],
)
def test_a_batch_leaves_when(queue, in_flight, limit, expected):
    step = decide(queue, NOW, in_flight=in_flight, limit=limit, service_s=0.05, options=OPTIONS)
    assert type(step) is type(expected)
    if isinstance(expected, Send):
        assert step.count == expected.count
    else:
        assert step.until_s == pytest.approx(expected.until_s) or step.until_s == expected.until_s == math.inf


@pytest.mark.parametrize(("service_s", "waits_s"), [(0.004, 0.001), (1.0, 0.010)])
def test_quick_answers_are_not_waited_for_long(service_s, waits_s):
    step = decide(callers(1), NOW, in_flight=1, limit=2, service_s=service_s, options=OPTIONS)
    assert step.until_s == pytest.approx(NOW + waits_s)


def test_the_deadline_of_any_caller_in_the_batch_counts():
    queue = [*callers(1), *callers(1, deadline=NOW + 0.01)]
    assert decide(queue, NOW, in_flight=1, limit=2, service_s=0.05, options=OPTIONS) == Send(2)


def test_only_as_many_callers_are_looked_at_as_fit_a_batch():
    looked = iter(callers(*[1] * 1000))
    assert decide(looked, NOW, in_flight=1, limit=2, service_s=0, options=OPTIONS) == Send(4)
    assert sum(1 for _ in looked) == 996


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_batch": 0},
        {"max_delay_s": -1},
        {"max_delay_s": math.inf},
        {"max_queue_images": 0},
        {"max_queue_bytes": 0},
        {"min_in_flight": 0},
        {"max_in_flight": 1, "min_in_flight": 2},
    ],
)
def test_senseless_options_are_refused_by_name(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        BatchOptions(**wrong)
