"""Backend processes of a Triton process, and its shutdown."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from alexnet_server import triton_process
from alexnet_server.triton_process import STUB, TritonProcess, shut_down


def child(pid, *command):
    return SimpleNamespace(pid=pid, cmdline=lambda: command)


def raise_zombie():
    raise psutil.ZombieProcess(5)


def test_only_running_backend_processes_are_recorded(monkeypatch):
    children = [
        child(2),  # a process that is ending has an empty command line
        child(3, "sh"),
        child(4, f"/opt/{STUB}"),
        SimpleNamespace(pid=5, cmdline=raise_zombie),
        child(7, f"/opt/{STUB}", "/models/alexnet/1/model.py", "more"),
    ]
    triton = SimpleNamespace(children=lambda recursive: children)
    monkeypatch.setattr(triton_process.psutil, "Process", lambda pid: triton)
    monkeypatch.setattr(triton_process, "_is_running", lambda pid: pid in {each.pid for each in children})
    server = TritonProcess(SimpleNamespace(pid=1), None, None, "")
    server.record_backends()
    assert server.lost_backends() == []
    children.clear()
    assert server.lost_backends() == ["backend process 7 of alexnet"]


class FakeServer:
    """Exits after a time, or when it is killed."""

    def __init__(self, exits_after_s=float("inf"), *, drained=False):
        self.options = SimpleNamespace(exit_timeout_s=0.3)
        self.drained, self.requests, self._exits_s = drained, 0, time.monotonic() + exits_after_s

    @property
    def exit_code(self):
        return 0 if time.monotonic() > self._exits_s else None

    def request_shutdown(self):
        self.requests += 1

    def kill(self):
        return 137 if self.exit_code is None else 0


async def shut_down_quickly(server, *, kill_after_s=30, on_poll=lambda: None):
    times = {"poll_interval_s": 0.01, "repeat_after_s": 0.05, "unload_timeout_s": 0.1}
    return await shut_down(server, on_poll=on_poll, kill_after_s=kill_after_s, **times)


async def test_the_shutdown_request_is_repeated_until_the_server_exits():
    polls, server = [], FakeServer(exits_after_s=0.2)
    assert await shut_down_quickly(server, on_poll=lambda: polls.append(1)) == 0
    assert server.requests > 1
    assert polls


async def test_a_drained_server_that_hangs_is_killed_before_the_drain_timeout():
    # Without the shorter limit for drained servers, this would wait for an hour.
    assert await shut_down_quickly(FakeServer(drained=True), kill_after_s=3600) == 137


async def test_a_server_that_is_not_drained_gets_its_complete_drain_timeout():
    start_s = time.monotonic()
    assert await shut_down_quickly(FakeServer(), kill_after_s=0.3) == 137
    assert time.monotonic() - start_s >= 0.6


@pytest.mark.parametrize(
    ("lines", "drained"),
    [
        ('I1 "Waiting for in-flight requests"\n', False),
        ('I1 "All models are stopped, unloading models"\nSignal (11)\n', True),
    ],
)
def test_the_log_shows_whether_the_server_is_drained(tmp_path, lines, drained):
    log = tmp_path / "log"
    log.write_text('I1 "All models are stopped, unloading models"\n')  # from a previous start
    server = TritonProcess(None, None, log, "")
    with log.open("a") as more:
        more.write(lines)
    assert server.drained == drained


@pytest.mark.parametrize("log", [None, Path("/nonexistent/log"), Path("/dev/full")])
def test_without_a_log_file_a_server_does_not_count_as_drained(log):
    assert not TritonProcess(None, None, log, "").drained
