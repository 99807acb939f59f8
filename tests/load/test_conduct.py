"""Whole runs: sender processes, one file, both sides, Ctrl-C, dead senders."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from alexnet_client.errors import BadInput, ServerFault, Unavailable
from alexnet_client.fake import FakeServer
from alexnet_load import conduct as conducting
from alexnet_load.arrivals import parse_arrivals, schedule
from alexnet_load.conduct import conduct
from alexnet_load.results import read_run
from alexnet_load.run import Plan


@pytest.fixture(scope="module")
def server():
    with FakeServer(max_batch_size=8).in_thread() as running:
        yield running


def a_plan(server, **changes):
    return Plan(**{"target": server.target, "arrivals": "poisson:80", "duration_s": 1.0, "warm_up_s": 0.2, **changes})


def test_two_senders_send_the_schedule_once_and_their_records_are_merged_exactly(server, tmp_path):
    run = conduct(a_plan(server, senders=2), path=tmp_path / "run.jsonl.gz")
    planned = schedule(parse_arrivals("poisson:80"), duration_s=1.0, seed=0).times_s
    assert run.records.planned_s == pytest.approx(planned, abs=1e-6)
    assert run.records.outcomes == ("ok",)
    assert run.client.images == len(planned)
    assert len(run.client.cpu_s) == 2
    assert run.client.attempts == {"ok": sum(run.client.batches.values())}
    assert not run.client.interrupted
    assert read_run(tmp_path / "run.jsonl.gz").client == run.client


def test_what_is_missing_of_the_server_is_said(server):
    run = conduct(a_plan(server, duration_s=0.2))
    assert run.server is None
    assert "no administration key" in run.server_missing
    assert "processors" in run.machine


def test_progress_is_told_while_it_goes_on(server):
    told = []
    run = conduct(a_plan(server), on_progress=told.append)
    assert len(told) > 1
    assert [each.ended for each in told] == sorted(each.ended for each in told)
    assert (told[-1].ended, told[-1].failed) == (len(run.records), 0)
    assert all(each.p99_ms is None or each.p99_ms > 0 for each in told)
    assert told[-1].rate == pytest.approx(80, rel=0.5)


def test_nothing_is_kept_if_nobody_names_a_file(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    conduct(a_plan(server, duration_s=0.1))
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_plan_is_the_callers_and_leaves_no_file(server, tmp_path):
    with pytest.raises(BadInput, match=r"arrivals .never:1. "):
        conduct(a_plan(server, arrivals="never:1"), path=tmp_path / "run.jsonl.gz")
    assert list(tmp_path.iterdir()) == []


def test_a_dead_server_is_said_and_leaves_no_file(free_port, tmp_path):
    with pytest.raises(Unavailable, match="no server answers there"):
        conduct(Plan(target=f"127.0.0.1:{free_port()}", timeout_s=0.5), path=tmp_path / "run.jsonl.gz")
    assert list(tmp_path.iterdir()) == []


def interrupted_after(times, server, **changes):
    """A run that hears Ctrl-C when the first records come in, so many times."""
    left = [times]

    def interrupt(progress):
        while left[0]:
            left[0] -= 1
            os.kill(os.getpid(), signal.SIGINT)

    return conduct(a_plan(server, duration_s=60.0, **changes), on_progress=interrupt)


def test_ctrl_c_ends_the_sending_and_the_run_is_what_was_sent_until_then(server):
    run = interrupted_after(1, server)
    assert run.client.interrupted
    assert run.records.outcomes == ("ok",)
    assert 0 < len(run.records) < 60 * 80 / 4
    assert run.client.wall_s < 15


def test_ctrl_c_belongs_to_the_program_again_after_the_run(server):
    before = signal.getsignal(signal.SIGINT)
    interrupted_after(1, server)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_waits_for_no_more_answers():
    with FakeServer().in_thread() as slow:

        def interrupt(progress):
            if not slow.hang:
                slow.hang = True  # what comes from now on is never answered
                for after_s in (0.5, 0.7):
                    threading.Timer(after_s, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

        run = conduct(a_plan(slow, duration_s=60.0, timeout_s=50.0), on_progress=interrupt)
    assert "given_up" in run.records.outcomes
    assert run.client.wall_s < 30


def test_a_sender_that_dies_is_said_and_what_it_had_sent_is_kept(server, tmp_path, monkeypatch):
    made = []

    class Watched(conducting.Senders):
        def __init__(self, plan):
            super().__init__(plan)
            made.append(self)

    monkeypatch.setattr(conducting, "Senders", Watched)
    path = tmp_path / "run.jsonl.gz"
    with pytest.raises(ServerFault, match="a sender process has died"):
        conduct(a_plan(server, duration_s=60.0), path=path, on_progress=lambda progress: made[0]._processes[0].kill())
    assert len(read_run(path).records) > 0
    assert read_run(path).client is None
    assert not any(each.is_alive() for each in made[0]._processes)
