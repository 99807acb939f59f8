"""Whole runs: sender processes, run file, statistics, Ctrl-C, dead senders."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading

import numpy as np
import pytest

from alexnet_client.errors import BadInput, ServerFault, Unavailable
from alexnet_client.fake import FakeServer, Step
from alexnet_load.arrivals import parse_arrivals, schedule
from alexnet_load.run import NO_BATCHING, Plan
from alexnet_load.run_file import read_run
from alexnet_load.runner import run_plan
from alexnet_load.sender_processes import SenderProcesses
from alexnet_load.server_statistics import StatisticsRecorder
from alexnet_load.slo import parse_slo
from alexnet_load.summary import percentile_ms, summarize
from alexnet_load.trials import Trials


def plan_for(server, **changes):
    return Plan(**{"target": server.target, "arrivals": "poisson:80", "duration_s": 1.0, "warm_up_s": 0.2, **changes})


def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)


def test_two_senders_send_each_request_of_the_schedule_once(server, tmp_path):
    progress = []
    run = run_plan(plan_for(server, senders=2), path=tmp_path / "run.jsonl.gz", on_progress=progress.append)
    planned = schedule(parse_arrivals("poisson:80"), duration_s=1.0, seed=0).times_s
    assert run.records.planned_s == pytest.approx(planned, abs=1e-6)
    assert run.records.outcomes == ("ok",)
    assert (run.client.images, len(run.client.cpu_s), run.client.interrupted) == (len(planned), 2, False)
    assert run.client.attempts == {"ok": sum(run.client.batches.values())}
    assert read_run(tmp_path / "run.jsonl.gz").client == run.client
    assert [each.ended for each in progress] == sorted(each.ended for each in progress)
    assert (progress[-1].ended, progress[-1].failed) == (len(run.records), 0)
    assert run.server is None
    assert "no administration key" in run.server_missing
    assert run.machine.endswith(" CPUs")


def test_without_a_path_no_file_is_kept(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_plan(plan_for(server, duration_s=0.1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"arrivals": "never:1"}, BadInput, "invalid arrivals 'never:1'"),
        ({"target": "127.0.0.1:1", "timeout_s": 0.2}, Unavailable, "no server responds"),
    ],
)
def test_a_run_that_cannot_start_leaves_no_file(server, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run_plan(plan_for(server, **changes), path=tmp_path / "run.jsonl.gz")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_stops_sending_and_the_result_covers_the_requests_sent(server):
    before = signal.getsignal(signal.SIGINT)
    interrupts = [interrupt]
    plan = plan_for(server, duration_s=60.0)
    run = run_plan(plan, on_progress=lambda _: interrupts and interrupts.pop()())
    assert run.client.interrupted
    assert run.records.outcomes == ("ok",)
    assert 0 < len(run.records) < 60 * 80 / 4
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_cancels_the_open_requests():
    with FakeServer().in_thread() as slow:

        def on_progress(progress):
            if not slow.hang:
                slow.hang = True  # the following requests get no answer
                for after_s in (0.5, 0.7):
                    threading.Timer(after_s, interrupt).start()

        run = run_plan(plan_for(slow, duration_s=60.0, timeout_s=50.0), on_progress=on_progress)
    assert "cancelled" in run.records.outcomes


def test_a_third_ctrl_c_raises_keyboard_interrupt(server):
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan_for(server, duration_s=60.0), on_progress=lambda _: [interrupt() for _ in range(3)])


def test_ctrl_c_after_the_last_answer_does_not_lose_the_result(server, monkeypatch):
    finish = StatisticsRecorder.finish
    monkeypatch.setattr(StatisticsRecorder, "finish", lambda self, **given: [interrupt(), finish(self, **given)][1])
    run = run_plan(plan_for(server, duration_s=0.5))
    assert run.client is not None
    assert run.records.outcomes == ("ok",)


def test_the_requests_of_a_sender_that_dies_are_kept(server, tmp_path):
    path = tmp_path / "run.jsonl.gz"
    senders = []

    def kill(_):
        senders[:] = multiprocessing.active_children()
        for process in senders:
            process.kill()

    with pytest.raises(ServerFault, match="a sender process died"):
        run_plan(plan_for(server, duration_s=60.0), path=path, on_progress=kill)
    assert len(read_run(path).records) > 0
    assert read_run(path).client is None
    assert senders
    assert not any(each.is_alive() for each in senders)


def test_a_sender_that_dies_before_the_start_is_reported(server):
    with SenderProcesses(plan_for(server)) as senders:
        senders.wait_ready()
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        with pytest.raises(ServerFault, match="a sender process died"):
            senders.start()


def test_an_interrupted_trial_ends_the_command(server):
    trials = Trials(plan_for(server, duration_s=60.0), parse_slo("p99=1s"), on_progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        trials(40.0)


def test_each_trial_uses_another_seed(server, monkeypatch):
    seeds = []
    monkeypatch.setattr("alexnet_load.trials.run_plan", lambda plan, **_: [seeds.append(plan.seed), run][1])
    run = run_plan(plan_for(server, duration_s=0.4, warm_up_s=0.0))
    trials = Trials(plan_for(server), parse_slo("p99=1s"), on_progress=lambda _: None)
    assert [trials(20.0).rate, trials(30.0).rate] == [20.0, 30.0]
    assert seeds == [0, 1]


@pytest.mark.slow
def test_reported_percentiles_are_within_two_percent_of_the_delays_of_the_server():
    """Each request takes 1 to 2 s on the server; client and network add a few milliseconds."""
    delays = []
    rng = random.Random(6)

    def choose(request):
        if request.images:
            delays.append(rng.uniform(1.0, 2.0))
        return Step(delay_s=delays[-1])

    with FakeServer(max_batch_size=8).in_thread() as scripted:
        scripted.choose = choose
        plan = plan_for(scripted, arrivals="constant:40", duration_s=5.0, warm_up_s=0.0, batching=NO_BATCHING)
        summary = summarize(run_plan(plan))
    assert len(delays) == summary.ok == 200
    for percentile in (50, 90, 95, 99):
        expected_ms = 1000 * float(np.percentile(delays, percentile, method="inverted_cdf"))
        for found in (summary.response, summary.service):
            assert percentile_ms(found, percentile) == pytest.approx(expected_ms, rel=0.02), percentile
