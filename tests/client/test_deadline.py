"""The deadline of a call."""

from __future__ import annotations

import pytest

from alexnet_client.deadline import Deadline
from alexnet_client.errors import DeadlineExceeded


def test_the_remaining_time_decreases_and_an_exceeded_deadline_names_the_operation():
    now = [100.0]
    deadline = Deadline.after(2.0, clock=lambda: now[0])
    assert deadline.remaining_s("waiting") == 2.0
    now[0] = 101.5
    assert deadline.remaining_s("waiting") == 0.5
    now[0] = 102.0
    with pytest.raises(DeadlineExceeded, match="the deadline of 2 s passed while waiting to send"):
        deadline.remaining_s("waiting to send")
