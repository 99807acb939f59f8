"""Whole runs: sender processes, run file, statistics, Ctrl-C, dead senders."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

import pytest

from alexnet_client.errors import BadInput, ServerFault
from alexnet_client.fake import FakeServer
from alexnet_load.arrivals import parse_arrivals, schedule
from alexnet_load.run import ClientStatistics, Plan
from alexnet_load.run_file import read_run
from alexnet_load.runner import run_plan
from alexnet_load.sender_processes import SenderProcesses
from alexnet_load.server_statistics import StatisticsRecorder
from alexnet_load.slo import parse_slo
from alexnet_load.trials import Trials


def plan_for(server, **changes):
    return Plan(**{"target": server.target, "arrivals": "poisson:80", "duration_s": 1.0, "warm_up_s": 0.2, **changes})


def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_two_senders_send_each_request_of_the_schedule_once(server, tmp_path):
    progress = []
    run = run_plan(plan_for(server, senders=2), path=tmp_path / "run.jsonl.gz", on_progress=progress.append)
    planned = schedule(parse_arrivals("poisson:80"), duration_s=1.0, seed=0).times_s
    assert run.records.planned_s == pytest.approx(planned, abs=1e-6)
    assert run.records.outcomes == ("ok",)
    assert (run.client.images, len(run.client.cpu_s), run.client.interrupted) == (len(planned), 2, False)
    assert run.client.attempts == {"ok": sum(run.client.batches.values())}
    assert read_run(tmp_path / "run.jsonl.gz").client == run.client
    assert (progress[-1].ended, progress[-1].failed) == (len(run.records), 0)
    assert run.server is None
    assert "no administration key" in run.server_missing
    assert run.machine.endswith(" CPUs")


@pytest.mark.slow
def test_a_run_that_cannot_start_leaves_no_file(server, tmp_path):
    with pytest.raises(BadInput, match="invalid arrivals 'never:1'"):
        run_plan(plan_for(server, arrivals="never:1"), path=tmp_path / "run.jsonl.gz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_stops_sending_and_the_result_covers_the_requests_sent(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    interrupts = [interrupt]
    run = run_plan(plan_for(server, duration_s=60.0), on_progress=lambda _: interrupts and interrupts.pop()())
    assert run.client.interrupted
    assert run.records.outcomes == ("ok",)
    assert 0 < len(run.records) < 60 * 80 / 4
    assert signal.getsignal(signal.SIGINT) is before
    assert list(tmp_path.iterdir()) == [], "without a path no file is kept"


@pytest.mark.slow
def test_a_second_ctrl_c_cancels_the_open_requests():
    with FakeServer().in_thread() as slow:

        def on_progress(progress):
            if not slow.hang:
                slow.hang = True  # the following requests get no answer
                for after_s in (0.5, 0.7):
                    threading.Timer(after_s, interrupt).start()

        run = run_plan(plan_for(slow, duration_s=60.0, timeout_s=50.0), on_progress=on_progress)
    assert "cancelled" in run.records.outcomes


@pytest.mark.slow
def test_a_third_ctrl_c_raises_keyboard_interrupt(server):
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan_for(server, duration_s=60.0), on_progress=lambda _: [interrupt() for _ in range(3)])


@pytest.mark.slow
def test_ctrl_c_after_the_last_answer_does_not_lose_the_result(server, monkeypatch):
    finish = StatisticsRecorder.finish
    monkeypatch.setattr(StatisticsRecorder, "finish", lambda self, **given: [interrupt(), finish(self, **given)][1])
    run = run_plan(plan_for(server, duration_s=0.5))
    assert run.client is not None
    assert run.records.outcomes == ("ok",)


@pytest.mark.slow
def test_the_requests_of_a_sender_that_dies_are_kept(server, tmp_path):
    path = tmp_path / "run.jsonl.gz"

    def kill(_):
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(ServerFault, match="a sender process died"):
        run_plan(plan_for(server, duration_s=60.0), path=path, on_progress=kill)
    assert len(read_run(path).records) > 0
    assert read_run(path).client is None
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_sender_that_dies_before_the_start_is_reported(server):
    with SenderProcesses(plan_for(server)) as senders:
        senders.wait_ready()
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        with pytest.raises(ServerFault, match="a sender process died"):
            senders.start()


def test_each_trial_uses_another_seed_and_an_interrupted_one_ends_the_command(monkeypatch, make_records, make_run):
    plans = []
    monkeypatch.setattr("alexnet_load.trials.run_plan", lambda plan, **_: [plans.append(plan), run][1])
    trials = Trials(Plan(), parse_slo("p99=1s"), on_progress=lambda _: None)
    run = make_run(make_records([0.0, 1.0]))
    assert [trials(20.0).rate, trials(30.0).rate] == [20.0, 30.0]
    assert [(each.seed, each.arrivals) for each in plans] == [(0, "poisson:20.0"), (1, "poisson:30.0")]
    run = make_run(make_records([0.0, 1.0]), client=ClientStatistics(interrupted=True))
    with pytest.raises(KeyboardInterrupt):
        trials(40.0)
