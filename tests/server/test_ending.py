"""The end of a server that answers, unloads, hangs while it does, or does not answer."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from alexnet_server import ending
from alexnet_server.launcher import Server


class Ending:
    """Ends after a while of its own, or when it is killed."""

    def __init__(self, ends_after_s=None, drained=False):
        self.options = SimpleNamespace(exit_timeout_s=0.3)
        self.drained, self.asked, self._began_s = drained, 0, time.monotonic()
        self._ends_s = float("inf") if ends_after_s is None else self._began_s + ends_after_s

    @property
    def exit_code(self):
        return 0 if time.monotonic() > self._ends_s else None

    def ask_to_stop(self):
        self.asked += 1

    def kill(self):
        return 137 if self.exit_code is None else 0


@pytest.fixture
def soon(monkeypatch):
    for name, seconds in (("LOOK_EVERY_S", 0.01), ("REMIND_AFTER_S", 0.05), ("KILL_AFTER_S", 30), ("UNLOAD_S", 0.1)):
        monkeypatch.setattr(ending, name, seconds)


async def test_it_is_asked_until_it_ends(soon):
    looks = []
    server = Ending(ends_after_s=0.2)
    assert await ending.ended(server, while_waiting=lambda: looks.append(1)) == 0
    assert server.asked > 1
    assert looks


async def test_one_that_hangs_while_it_unloads_is_not_waited_for(soon):
    began_s = time.monotonic()
    assert await ending.ended(Ending(drained=True), while_waiting=lambda: None) == 137
    assert time.monotonic() - began_s < 10, "its timeout is of 30 s"


async def test_one_that_still_answers_has_its_time(soon, monkeypatch):
    monkeypatch.setattr(ending, "KILL_AFTER_S", 0.3)
    began_s = time.monotonic()
    assert await ending.ended(Ending(), while_waiting=lambda: None) == 137
    assert time.monotonic() - began_s >= 0.6


@pytest.mark.parametrize(
    ("lines", "drained"),
    [
        ('I1 "Waiting for in-flight requests"\n', False),
        ('I1 "All models are stopped, unloading models"\nSignal (11)\n', True),
    ],
)
def test_its_log_tells_whether_anything_is_left_to_answer(tmp_path, lines, drained):
    log = tmp_path / "log"
    log.write_text('I1 "All models are stopped, unloading models"\n')  # of the server before
    server = Server(None, None, log, "")
    with log.open("a") as more:
        more.write(lines)
    assert server.drained == drained
    assert not Server(None, None, tmp_path / "nowhere", "").drained
    assert not Server(None, None, Path("/dev/full"), "").drained, "it has no end"
    assert not Server(None, None, None, "").drained
