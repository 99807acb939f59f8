"""When a server is ready, busy or failed, and when it is restarted."""

from __future__ import annotations

import pytest

from alexnet_server.failure_detection import FailureDetector, Observation, RestartPolicy, Verdict


def verdicts(*observations):
    detector = FailureDetector(unready_after_s=2, failed_after_s=10)
    return [detector.evaluate(each) for each in observations]


def test_an_idle_server_is_ready():
    assert verdicts(Observation(0.0), Observation(1000.0)) == [Verdict(ready=True)] * 2


@pytest.mark.parametrize(
    ("observation", "reason"),
    [
        ({"exit_code": 137}, "Triton exited with code 137"),
        ({"lost": ["backend process 42 of alexnet"]}, "backend process 42 of alexnet ended unexpectedly"),
        ({"faults": {"alexnet": "Stub process is not healthy"}}, "alexnet fails: Stub process is not healthy"),
    ],
)
def test_a_failure_is_reported_with_its_reason(observation, reason):
    assert verdicts(Observation(0.0, **observation)) == [Verdict(ready=False, reason=reason, failed=True)]


@pytest.mark.parametrize(
    ("stalled_s", "ready", "failed"),
    [(0.0, True, False), (1.9, True, False), (2.0, False, False), (9.9, False, False), (10.0, False, True)],
)
def test_a_stalled_model_is_first_unready_and_then_failed(stalled_s, ready, failed):
    first, last = Observation(5.0, stalled=["alexnet"]), Observation(5.0 + stalled_s, stalled=["alexnet"])
    verdict = verdicts(first, last)[-1]
    assert (verdict.ready, verdict.failed) == (ready, failed)
    assert ready or verdict.reason == f"alexnet executed nothing for {stalled_s:.0f} s while requests waited"


def test_an_execution_resets_the_timer():
    observations = [Observation(float(at), stalled=[] if at == 9 else ["alexnet"]) for at in range(19)]
    assert not any(verdict.failed for verdict in verdicts(*observations))
    assert verdicts(*observations, Observation(20.0, stalled=["alexnet"]))[-1].failed


def test_a_stalled_model_is_detected_while_another_model_works():
    observations = [Observation(0.0, stalled=["decode", "alexnet"]), Observation(10.0, stalled=["decode"])]
    assert verdicts(*observations)[-1].reason.startswith("decode executed nothing")


def test_the_first_restart_is_immediate_and_later_delays_double_up_to_the_limits():
    policy = RestartPolicy(limit=7, initial_delay_s=1, max_delay_s=8)
    assert [policy.delay_s(restart) for restart in range(1, 9)] == [0, 1, 2, 4, 8, 8, 8, None]
    assert RestartPolicy(limit=0).delay_s(1) is None


def test_a_server_that_was_ready_for_long_enough_resets_the_number_of_restarts():
    policy = RestartPolicy(reset_after_s=60)
    assert policy.count(3, ready_s=59.9) == 4
    assert policy.count(3, ready_s=60.0) == 1
