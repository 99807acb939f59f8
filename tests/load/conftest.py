"""Fixtures of the load tester's tests: runs with synthetic records, and a fake server."""

from __future__ import annotations

import numpy as np
import pytest

from alexnet_client.fake import FakeServer
from alexnet_load.run import OK, ClientStatistics, Plan, Records, Run


@pytest.fixture(scope="session")
def make_records():
    """Build records; arguments except the planned times may be single numbers."""

    def make(planned_s, *, sent_s=None, took_s=0.01, images=1, outcome=0, outcomes=(OK, "deadline_exceeded")):
        planned_s = np.asarray(planned_s, np.float64)
        sent_s = planned_s if sent_s is None else np.asarray(sent_s, np.float64)
        count = len(planned_s)
        return Records(
            planned_s,
            sent_s,
            sent_s + took_s,
            sent_s - planned_s,
            np.broadcast_to(np.int32(images), count).astype(np.int32),
            np.broadcast_to(np.int16(outcome), count).astype(np.int16),
            outcomes,
        )

    return make


@pytest.fixture(scope="session")
def make_run():
    """Build a run of 20 s without warm-up from records; further arguments are those of the plan."""

    def make(records, *, client=ClientStatistics(wall_s=20.0), server=None, **plan):  # noqa: B008  never modified
        plan = Plan(**{"arrivals": "constant:100", "duration_s": 20.0, "warm_up_s": 0.0} | plan)
        return Run(plan, records, client, server, "", "2 CPUs", "2026-01-02T03:04:05+00:00", "1.2.3")

    return make


@pytest.fixture(scope="module")
def server():
    with FakeServer(max_batch_size=8).in_thread() as running:
        yield running
