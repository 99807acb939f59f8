"""Which replica gets a request, and when replicas are ejected and reinstated."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace

import pytest

from alexnet_client.concurrency import ConcurrencyRange
from alexnet_client.errors import BadInput, DeadlineExceeded, Overloaded, ServerFault, Unavailable
from alexnet_client.replicas import MAX_EJECTION_S, MIN_EJECTION_S, ReplicaSet

ADDRESSES = ["a:1", "b:1", "c:1"]


@pytest.fixture
def clock():
    return SimpleNamespace(now=100.0)


def replica_set(clock, *addresses):
    return ReplicaSet(addresses, bounds=ConcurrencyRange(), clock=lambda: clock.now, rng=random.Random(7))


@pytest.fixture
def trio(clock):
    return replica_set(clock, *ADDRESSES)


def of(replicas, address):
    return next(each for each in replicas.all if each.address == address)


def eject(replicas, *addresses):
    for address in addresses:
        replicas.failed(of(replicas, address), Unavailable(f"{address}: gone"))


def time_out(replicas, replica, clock, seconds):
    """A request without a response for this time."""
    replicas.started(replica)
    clock.now += seconds
    replicas.failed(replica, DeadlineExceeded(f"{replica.address}: no response"))
    replicas.ended(replica)


def succeed(replicas, replica):
    replicas.succeeded(replica, 0.01, images=1, in_flight=1)


def addresses(replicas):
    return [each.address for each in replicas]


def chosen(replicas, **how):
    return {replicas.choose(**how).address for _ in range(50)}


def test_requests_are_balanced_evenly_at_low_load(trio):
    counts = Counter()
    for _ in range(3000):
        replica = trio.choose()
        counts[replica.address] += 1
        trio.started(replica)
        succeed(trio, replica)
        trio.ended(replica)
    assert all(970 < count < 1030 for count in counts.values()), counts


def test_a_busy_replica_gets_fewer_requests(trio):
    for _ in range(5):
        trio.started(of(trio, "a:1"))
    assert chosen(trio) == {"b:1", "c:1"}


def test_replicas_that_failed_the_request_are_avoided_and_the_preferred_one_is_chosen_if_possible(trio):
    assert chosen(trio, without=trio.all[:2]) == {"c:1"}
    assert chosen(trio, without=trio.all) == set(ADDRESSES)
    assert chosen(trio, prefer="b:1") == {"b:1"}
    eject(trio, "b:1")
    assert chosen(trio, prefer="b:1") == {"a:1", "c:1"}


def test_three_consecutive_server_faults_eject(trio):
    replica = of(trio, "a:1")
    for succeeds in (False, False, True, False, False, False):
        assert replica.healthy
        succeed(trio, replica) if succeeds else trio.failed(replica, ServerFault("broken"))
    assert not replica.healthy


@pytest.mark.parametrize("error", [BadInput("wrong"), Overloaded("full")])
def test_rejected_requests_do_not_eject(trio, error):
    for _ in range(10):
        trio.failed(of(trio, "a:1"), error)
    assert of(trio, "a:1").healthy


def test_the_silence_adds_up_over_requests_with_short_timeouts(trio, clock):
    replica = of(trio, "a:1")
    for count, healthy in ((19, True), (11, False)):
        for _ in range(count):
            time_out(trio, replica, clock, 0.05)
        assert replica.healthy == healthy


def test_idle_time_and_a_response_to_another_request_do_not_count_as_silence(trio, clock):
    replica = of(trio, "a:1")
    for idle_s in (60.0, 0.0):
        time_out(trio, replica, clock, 0.05)
        clock.now += idle_s
    assert replica.healthy
    for _ in range(2):
        trio.started(replica)
    clock.now += 2.0
    trio.succeeded(replica, 2.0, images=1, in_flight=2)
    trio.ended(replica)
    clock.now += 0.1
    trio.failed(replica, DeadlineExceeded("the other request"))
    assert replica.healthy


def test_the_last_healthy_replica_is_kept_despite_server_faults_but_not_if_it_is_unavailable(trio):
    eject(trio, "a:1", "b:1")
    for _ in range(10):
        trio.failed(of(trio, "c:1"), ServerFault("sometimes"))
    assert addresses(trio.healthy) == ["c:1"]
    eject(trio, "c:1")
    assert trio.healthy == []


def test_the_only_replica_is_never_ejected(clock):
    replicas = replica_set(clock, "a:1")
    for _ in range(10):
        eject(replicas, "a:1")
    time_out(replicas, replicas.all[0], clock, 60.0)
    assert addresses(replicas.healthy) == ["a:1"]


def test_if_all_are_ejected_those_that_fail_fast_get_requests(trio, clock):
    time_out(trio, of(trio, "a:1"), clock, 2.0)
    eject(trio, "b:1", "c:1")
    assert trio.healthy == []
    assert chosen(trio) == {"b:1", "c:1"}
    assert chosen(trio, without=[of(trio, "b:1")]) == {"c:1"}


def test_if_all_are_ejected_the_first_success_reinstates_its_replica_and_no_other(trio):
    eject(trio, *ADDRESSES)
    for address in ("b:1", "c:1"):
        succeed(trio, of(trio, address))
    assert addresses(trio.healthy) == ["b:1"]


def test_a_late_result_of_a_removed_replica_reinstates_nothing(trio):
    removed = of(trio, "a:1")
    trio.update(["b:1"])
    trio.update(["a:1", "b:1"])
    eject(trio, "a:1", "b:1")
    succeed(trio, removed)
    assert trio.healthy == []


def test_if_all_are_ejected_because_of_timeouts_a_request_fails_at_once(trio, clock):
    for address in ("a:1", "b:1"):
        time_out(trio, of(trio, address), clock, 2.0)
    eject(trio, "c:1")
    trio.failed(of(trio, "c:1"), DeadlineExceeded("c:1: no response"))
    errors = "; ".join(f"{address}: no response" for address in ADDRESSES)
    with pytest.raises(Unavailable, match=f"none of 3 replicas is available: {errors}"):
        trio.choose()


def test_each_failed_probe_doubles_the_time_to_the_next_and_a_successful_one_reinstates(trio, clock):
    eject(trio, "a:1")
    replica, pauses = of(trio, "a:1"), []
    for _ in range(5):
        assert trio.due_for_probe() == []
        pauses.append(replica.probe_at_s - clock.now)
        clock.now = replica.probe_at_s
        assert trio.due_for_probe() == [replica]
        trio.probed(replica, Unavailable("a:1: still gone"))
    assert pauses == pytest.approx([MIN_EJECTION_S * factor for factor in (1, 2, 4, 8)] + [MAX_EJECTION_S])
    trio.probed(replica, None)
    assert replica.healthy


def test_requests_stuck_at_an_ejected_or_removed_replica_do_not_count_against_the_limit_of_others(trio, clock):
    stuck = of(trio, "a:1")
    for _ in range(2):
        trio.started(stuck)
    clock.now += 2.0
    trio.failed(stuck, DeadlineExceeded("no response"))
    assert trio.concurrency_limit - stuck.outstanding == 4
    trio.update(["b:1"])
    assert trio.concurrency_limit - stuck.outstanding == 2


def test_the_limit_is_the_sum_of_the_healthy_replicas_and_at_least_one_and_each_change_is_reported(trio):
    limits = [trio.concurrency_limit]
    trio.on_change = lambda: limits.append(trio.concurrency_limit)
    eject(trio, "a:1")
    trio.probed(of(trio, "a:1"), None)
    eject(trio, *ADDRESSES)
    trio.update(["a:1"])
    assert limits == [6, 4, 6, 4, 2, 1, 1]


def test_an_update_adds_and_removes_replicas_and_keeps_the_state_of_the_others(trio):
    eject(trio, "a:1")
    assert addresses(trio.update(["a:1", "d:1"])) == ["b:1", "c:1"]
    assert addresses(trio.all) == ["a:1", "d:1"]
    assert addresses(trio.healthy) == ["d:1"]
