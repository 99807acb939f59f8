"""What held a run back, in words, from figures that are made up."""

from __future__ import annotations

import numpy as np
import pytest

from alexnet_load.run import OK, ClientSide, Plan, Records, Run, ServerSide
from alexnet_load.summary import summarize
from alexnet_load.verdict import agreement, judge, phases_s


def summary(late_s=0.0):
    planned = np.arange(2000) / 100
    took = np.full(2000, 0.01)
    records = Records(
        planned,
        planned + late_s,
        planned + late_s + took,
        0 * took + late_s,
        np.ones(2000, np.int32),
        np.zeros(2000, np.int16),
    )
    return summarize(Run(Plan(arrivals="constant:100", duration_s=20.0, warm_up_s=0.0), records))


def client(**changes):
    """1,000 images in requests of one, 10 ms each: 1 in the client's queue, 8 at the server, 1 in the rest."""
    values = {
        "wall_s": 20.0,
        "cpu_s": (4.0,),
        "attempts": {OK: 1000},
        "batches": {1: 1000},
        "images": 1000,
        "queued_s": 1.0,
        "encoded_s": 0.5,
        "served_s": 8.0,
        "decoded_s": 0.5,
    }
    return ClientSide(**values | changes)


def server(**changes):
    """Of the 8 ms: 1 queue, 4 infer, 1 input and output, 2 on the way; the instance works a quarter of the time."""
    values = {
        "success": 1000,
        "inferences": 1000,
        "executions": 500,
        "queue_s": 1.0,
        "input_s": 0.5,
        "infer_s": 4.0,
        "output_s": 0.5,
        "request_s": 6.0,
        "busy_s": 5.0,
        "instances": 1,
        "wall_s": 20.0,
        "batches": {2: 500},
    }
    return ServerSide(**values | changes)


@pytest.mark.parametrize(
    ("bound", "ours", "theirs", "late_s"),
    [
        ("nothing", {}, {}, 0.0),
        ("client", {}, {}, 0.05),
        ("compute", {}, {"busy_s": 19.0}, 0.0),
        ("compute", {}, {"busy_s": 19.0, "queue_s": 30.0, "request_s": 35.0}, 0.0),
        ("queue", {"served_s": 14.0}, {"queue_s": 8.0, "request_s": 13.0}, 0.0),
        ("network", {"served_s": 20.0}, {}, 0.0),
        ("client", {"queued_s": 12.0}, {}, 0.0),
    ],
)
def test_the_limit_is_named(bound, ours, theirs, late_s):
    verdict = judge(summary(late_s), client(**ours), server(**theirs))
    assert verdict.bound == bound
    assert verdict.because.endswith(".")


def test_two_instances_have_twice_the_time():
    assert judge(summary(), client(), server(busy_s=19.0, instances=2)).bound == "nothing"


def test_the_phases_of_the_mean_image_add_up_to_its_time_with_and_without_the_servers():
    assert list(phases_s(client(), server()).values()) == pytest.approx(
        [0.001, 0.0005, 0.002, 0.001, 0.0005, 0.004, 0.0005, 0.0005]
    )
    for side in (server(), None):
        assert sum(phases_s(client(), side).values()) == pytest.approx(0.01)


def test_the_facts_are_figures():
    facts = "\n".join(judge(summary(), client(), server()).facts)
    assert "sender's process worked 20% of the time" in facts
    assert "the instances (1) worked 25% of the time" in facts
    assert "2.0 images in the mean execution" in facts
    assert "0.30 requests in the server on average, 0.05 of them in its queue (Little's law)" in facts


def test_what_nobody_could_see_is_said_to_be_unknown():
    assert judge(summary(), client(), None).bound == "unknown"
    assert judge(summary(), None, None).bound == "unknown"
    nothing = judge(summary(), client(images=0, batches={}, attempts={"unavailable": 9}), server(success=0))
    assert (nothing.bound, nothing.because) == ("unknown", "No request was answered, so there is no time to divide.")


@pytest.mark.parametrize(
    ("attempts", "counted", "says"),
    [
        ({OK: 1000}, {}, "agree: 1,000 requests answered, 1,000 images"),
        (
            {OK: 1000, "server_fault": 7},
            {"success": 1007, "inferences": 1007},
            "agree: 1,000 requests answered, 7 answered with",
        ),
        ({OK: 990}, {}, "differ (answered requests: 990 here, 1,000 there)"),
        ({OK: 1000}, {"inferences": 1064}, "differ (images: 1,000 here, 1,064 there)"),
    ],
)
def test_whether_both_sides_counted_the_same_is_said(attempts, counted, says):
    assert says in agreement(client(attempts=attempts), server(**counted))
