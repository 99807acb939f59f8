"""The bottleneck of synthetic runs."""

from __future__ import annotations

import numpy as np
import pytest

from alexnet_load.bottleneck import compare_counts, find_bottleneck, phases_s
from alexnet_load.run import OK, ClientStatistics, ServerStatistics
from alexnet_load.summary import summarize


@pytest.fixture(scope="module")
def summary(make_records, make_run):
    def make(lag_s=0.0):
        planned_s = np.arange(2000) / 100
        return summarize(make_run(make_records(planned_s, sent_s=planned_s + lag_s)))

    return make


def client(**changes):
    """1,000 images in batches of one; 10 ms each: 1 in the client queue, 8 for network and server, 1 for the rest."""
    times = {"queued_s": 1.0, "encoded_s": 0.5, "served_s": 8.0, "decoded_s": 0.5}
    counts = {"wall_s": 20.0, "cpu_s": (4.0,), "attempts": {OK: 1000}, "batches": {1: 1000}, "images": 1000}
    return ClientStatistics(**times | counts | changes)


def server(**changes):
    """Of the 8 ms: 1 queue, 4 infer, 1 input and output, 2 network; the instance is busy for a quarter of the time."""
    times = {"queue_s": 1.0, "input_s": 0.5, "infer_s": 4.0, "output_s": 0.5, "request_s": 6.0, "busy_s": 5.0}
    counts = {"success": 1000, "inferences": 1000, "executions": 500, "batches": {2: 500}, "wall_s": 20.0}
    return ServerStatistics(**times | counts | changes)


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "lag_s"),
    [
        ("none", {}, {}, 0.0),
        ("client", {}, {}, 0.05),
        ("compute", {}, {"busy_s": 19.0}, 0.0),
        ("none", {}, {"busy_s": 19.0, "instances": 2}, 0.0),
        ("compute", {}, {"busy_s": 19.0, "queue_s": 30.0, "request_s": 35.0}, 0.0),
        ("queue", {"served_s": 14.0}, {"queue_s": 8.0, "request_s": 13.0}, 0.0),
        ("network", {"served_s": 20.0}, {}, 0.0),
        ("client", {"queued_s": 12.0}, {}, 0.0),
        ("unknown", {"images": 0, "batches": {}, "attempts": {"unavailable": 9}}, {"success": 0}, 0.0),
    ],
)
def test_the_bottleneck_is_found(summary, name, ours, theirs, lag_s):
    assert find_bottleneck(summary(lag_s), client(**ours), server(**theirs)).name == name


@pytest.mark.parametrize("ours", [client(), None])
def test_the_bottleneck_is_unknown_without_statistics(summary, ours):
    assert find_bottleneck(summary(), ours, None).name == "unknown"


def test_the_phases_add_up_to_the_mean_time_of_an_image_with_and_without_server_statistics():
    assert list(phases_s(client(), server()).values()) == pytest.approx(
        [0.001, 0.0005, 0.002, 0.001, 0.0005, 0.004, 0.0005, 0.0005]
    )
    for statistics in (server(), None):
        assert sum(phases_s(client(), statistics).values()) == pytest.approx(0.01)


def test_the_facts_contain_utilisation_batch_sizes_and_queue_lengths(summary):
    facts = "\n".join(find_bottleneck(summary(), client(), server()).facts)
    assert "CPU utilisation of the busiest sender: 20%" in facts
    assert "utilisation of the model instances (1): 25%" in facts
    assert "mean batch size of the server: 2.0 images" in facts
    assert "mean number of requests in the server: 0.30, in its queue: 0.05 (Little's law)" in facts


@pytest.mark.parametrize(
    ("attempts", "counted", "text"),
    [
        ({OK: 1000}, {}, "agree: 1,000 requests answered, 1,000 images"),
        (
            {OK: 1000, "server_fault": 7},
            {"success": 1007, "inferences": 1007},
            "agree: 1,000 requests answered, 7 answered with an error",
        ),
        ({OK: 990}, {}, "differ (answered requests: client 990, server 1,000)"),
        ({OK: 1000}, {"inferences": 1064}, "differ (images: client 1,000, server 1,064)"),
    ],
)
def test_the_counts_of_client_and_server_are_compared(attempts, counted, text):
    assert text in compare_counts(client(attempts=attempts), server(**counted))
