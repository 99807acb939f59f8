"""One absolute deadline a call."""

from __future__ import annotations

import pytest

from alexnet_client.deadline import Deadline
from alexnet_client.errors import DeadlineExceeded


def test_what_is_left_shrinks_with_the_clock():
    now = [100.0]
    deadline = Deadline.after(2.0, clock=lambda: now[0])
    assert deadline.remaining_s("waiting") == 2.0
    now[0] = 101.5
    assert deadline.remaining_s("waiting") == 0.5


def test_a_passed_deadline_says_what_was_being_done():
    now = [100.0]
    deadline = Deadline.after(2.0, clock=lambda: now[0])
    now[0] = 102.0
    with pytest.raises(DeadlineExceeded, match="the deadline of 2 s passed while waiting to send"):
        deadline.remaining_s("waiting to send")
