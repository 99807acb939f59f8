"""Whole runs: sender processes, one file, both sides, Ctrl-C, dead senders."""

from __future__ import annotations

import os
import random
import signal
import threading

import numpy as np
import pytest

from alexnet_client.errors import BadInput, ServerFault, Unavailable
from alexnet_client.fake import FakeServer, Step
from alexnet_load import conduct as conducting
from alexnet_load.arrivals import parse_arrivals, schedule
from alexnet_load.conduct import conduct
from alexnet_load.objective import parse_objective
from alexnet_load.options import NO_BATCHING
from alexnet_load.results import read_run
from alexnet_load.run import Plan
from alexnet_load.summary import percentile_ms, summarize
from alexnet_load.trials import Trials


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
    with pytest.raises(Unavailable, match="no server responds"):
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
    assert "cancelled" in run.records.outcomes
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


def test_a_second_ctrl_c_after_the_last_answer_costs_nothing(server, tmp_path, monkeypatch):
    side = conducting._Server.side

    def pressed_again(self, **how):
        os.kill(os.getpid(), signal.SIGINT)
        return side(self, **how)

    monkeypatch.setattr(conducting._Server, "side", pressed_again)
    run = conduct(a_plan(server), path=tmp_path / "run.jsonl.gz")
    assert run.client is not None
    assert run.records.outcomes == ("ok",)


def test_a_third_ctrl_c_ends_everything(server):
    with pytest.raises(KeyboardInterrupt):
        interrupted_after(3, server)


def test_a_sender_that_dies_before_the_begin_is_said(server, monkeypatch):
    class Dying(conducting.Senders):
        def begin(self):
            for process in self._processes:
                process.kill()
                process.join()
            return super().begin()

    monkeypatch.setattr(conducting, "Senders", Dying)
    with pytest.raises(ServerFault, match="a sender process has died"):
        conduct(a_plan(server, duration_s=60.0))


def test_a_trial_that_is_cut_off_is_no_trial(server):
    def interrupt(progress):
        os.kill(os.getpid(), signal.SIGINT)

    trial = Trials(a_plan(server, duration_s=60.0), parse_objective("p99=1s"), on_progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        trial(40.0)


def test_trials_have_arrivals_of_their_own(server, monkeypatch):
    seeds = []
    monkeypatch.setattr("alexnet_load.trials.conduct", lambda plan, **_: (seeds.append(plan.seed), conduct(plan))[1])
    trial = Trials(a_plan(server, duration_s=0.4, warm_up_s=0.0), parse_objective("p99=1s"), on_progress=lambda _: None)
    assert [trial(20.0).rate, trial(20.0).rate] == [20.0, 20.0]
    assert len(set(seeds)) == 2


def test_reported_percentiles_are_within_two_percent_of_a_scripted_servers():
    """Each request takes what the script says, 1 to 2 s; what client and wire add is a few milliseconds, a dozen on a busy machine."""
    delays = []
    dice = random.Random(6)

    def choose(request):
        if request.images:
            delays.append(dice.uniform(1.0, 2.0))
        return Step(delay_s=delays[-1])

    with FakeServer(max_batch_size=8).in_thread() as scripted:
        scripted.choose = choose
        plan = a_plan(scripted, arrivals="constant:40", duration_s=5.0, warm_up_s=0.0, batching=NO_BATCHING)
        summary = summarize(conduct(plan))
    assert len(delays) == summary.ok == 200
    for percentile in (50, 90, 95, 99):
        truth_ms = 1000 * float(np.percentile(delays, percentile, method="inverted_cdf"))
        for found in (summary.response, summary.service):
            assert percentile_ms(found, percentile) == pytest.approx(truth_ms, rel=0.02), percentile
