"""When a batch is sent, as a table."""

from __future__ import annotations

import math

import pytest

from alexnet_client.batching import BatchOptions, Pending, Send, Sleep, decide
from alexnet_client.errors import BadInput

OPTIONS = BatchOptions(max_batch=4, max_delay_s=0.010)
NOW = 100.0


def calls(*images: int, since: float = NOW, deadline: float = NOW + 10) -> list[Pending]:
    return [Pending(each, since, deadline) for each in images]


@pytest.mark.parametrize(
    ("queue", "in_flight", "limit", "expected"),
    [
        pytest.param([], 0, 2, Sleep(), id="the queue is empty"),
        pytest.param(calls(1), 0, 2, Send(1), id="nothing is in flight: a single call is sent at once"),
        pytest.param(calls(1, 1), 0, 2, Send(2), id="nothing is in flight: all queued calls are sent"),
        pytest.param(calls(1, 1), 1, 2, Sleep(NOW + 0.010), id="an incomplete batch waits while one is in flight"),
        pytest.param(calls(1, 1, 1, 1, 1), 1, 2, Send(4), id="a full batch is sent"),
        pytest.param(calls(3, 2), 1, 2, Send(1), id="a batch is full if the next call does not fit"),
        pytest.param(calls(9), 1, 2, Send(1), id="a call larger than a batch is sent alone"),
        pytest.param(calls(1, 1, 1, 1), 2, 2, Sleep(), id="the concurrency limit is reached"),
        pytest.param(calls(1, since=NOW - 0.010), 1, 2, Send(1), id="the oldest call has waited for the delay"),
        pytest.param(calls(1, deadline=NOW + 0.05), 1, 2, Send(1), id="the deadline leaves only the time of a request"),
        pytest.param(calls(1, deadline=NOW + 0.055), 1, 2, Sleep(NOW + 0.005), id="it wakes up in time for a deadline"),
        pytest.param([*calls(1), *calls(1, deadline=NOW + 0.01)], 1, 2, Send(2), id="the deadline of any call counts"),
    ],
)
def test_a_batch_is_sent_when(queue, in_flight, limit, expected):
    step = decide(queue, NOW, in_flight=in_flight, limit=limit, latency_s=0.05, options=OPTIONS)
    assert type(step) is type(expected)
    if isinstance(expected, Send):
        assert step.count == expected.count
    else:
        assert step.until_s == pytest.approx(expected.until_s)


@pytest.mark.parametrize(("latency_s", "delay_s"), [(0.004, 0.001), (1.0, 0.010)])
def test_the_delay_is_at_most_a_quarter_of_the_latency(latency_s, delay_s):
    step = decide(calls(1), NOW, in_flight=1, limit=2, latency_s=latency_s, options=OPTIONS)
    assert step.until_s == pytest.approx(NOW + delay_s)


def test_only_as_many_calls_are_read_as_fit_in_a_batch():
    queue = iter(calls(*[1] * 1000))
    assert decide(queue, NOW, in_flight=1, limit=2, latency_s=0, options=OPTIONS) == Send(4)
    assert sum(1 for _ in queue) == 996


AT_LEAST_ONE = ("max_batch", "max_queue_images", "max_queue_bytes", "min_in_flight", "max_in_flight")


@pytest.mark.parametrize(
    ("name", "value"), [*((name, 0) for name in AT_LEAST_ONE), ("max_delay_s", -1), ("max_delay_s", math.inf)]
)
def test_invalid_options_are_rejected_by_name(name, value):
    with pytest.raises(BadInput, match=name):
        BatchOptions(**{name: value})
