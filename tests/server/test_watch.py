"""When a server is dead, when it is only busy, and how often it is started again."""

from __future__ import annotations

import pytest

from alexnet_server.watch import Look, RestartPolicy, Verdict, Watch


def judged(*looks):
    watch = Watch(unready_after_s=2, hung_after_s=10)
    return [watch.judge(look) for look in looks]


def test_a_server_that_nobody_asks_anything_is_ready():
    assert judged(Look(0.0), Look(1000.0)) == [Verdict(ready=True)] * 2


def test_an_ended_triton_is_fatal():
    (verdict,) = judged(Look(0.0, exit_code=137))
    assert (verdict.ready, verdict.fatal) == (False, True)
    assert verdict.reason == "Triton has ended, exit code 137"


def test_a_lost_backend_process_is_fatal_and_named():
    (verdict,) = judged(Look(0.0, lost=["backend process 42 of alexnet"]))
    assert verdict == Verdict(ready=False, reason="backend process 42 of alexnet has gone", fatal=True)


def test_a_model_that_fails_good_requests_is_fatal_with_what_it_said():
    (verdict,) = judged(Look(0.0, faults={"alexnet": "Stub process is not healthy"}))
    assert verdict == Verdict(ready=False, reason="alexnet fails: Stub process is not healthy", fatal=True)


@pytest.mark.parametrize(
    ("waited_s", "ready", "fatal"), [(0.0, True, False), (1.9, True, False), (2.0, False, False), (9.9, False, False)]
)
def test_a_model_that_executes_nothing_while_requests_wait_is_unready_before_it_is_hung(waited_s, ready, fatal):
    verdict = judged(Look(5.0, waiting=["alexnet"]), Look(5.0 + waited_s, waiting=["alexnet"]))[-1]
    assert (verdict.ready, verdict.fatal) == (ready, fatal)


def test_it_is_hung_after_the_limit():
    verdict = judged(Look(5.0, waiting=["alexnet"]), Look(15.0, waiting=["alexnet"]))[-1]
    assert verdict.fatal
    assert verdict.reason == "alexnet has executed nothing for 10 s while requests waited"


def test_any_execution_in_between_starts_the_clock_again():
    looks = [Look(float(at), waiting=[] if at == 9 else ["alexnet"]) for at in range(19)]
    assert not any(verdict.fatal for verdict in judged(*looks))
    assert judged(*looks, Look(20.0, waiting=["alexnet"]))[-1].fatal


def test_one_hung_model_is_not_excused_by_another_that_works():
    looks = [Look(0.0, waiting=["decode", "alexnet"]), Look(1.0, waiting=["decode"]), Look(10.0, waiting=["decode"])]
    assert judged(*looks)[-1].reason.startswith("decode has executed nothing")


def test_restarts_begin_at_once_wait_longer_each_time_and_end():
    policy = RestartPolicy(limit=7, first_delay_s=1, longest_delay_s=8)
    assert [policy.delay_s(restart) for restart in range(1, 9)] == [0, 1, 2, 4, 8, 8, 8, None]
    assert RestartPolicy(limit=0).delay_s(1) is None


def test_a_server_that_served_for_long_starts_a_new_count():
    policy = RestartPolicy(steady_after_s=60)
    assert policy.count(3, served_s=59.9) == 4
    assert policy.count(3, served_s=60.0) == 1
