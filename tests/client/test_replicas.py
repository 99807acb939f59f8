"""Which replica gets a request, and which ones are left alone."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from alexnet_client.errors import BadInput, DeadlineExceeded, Overloaded, ServerFault, Unavailable
from alexnet_client.limit import LimitRange
from alexnet_client.replicas import FIRST_PAUSE_S, LONGEST_PAUSE_S, ReplicaSet


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def trio(clock):
    return ReplicaSet(["a:1", "b:1", "c:1"], bounds=LimitRange(), clock=clock, chance=random.Random(7))


def of(replicas, address):
    return next(each for each in replicas.all if each.address == address)


def eject(replicas, address):
    replicas.failed(of(replicas, address), Unavailable(f"{address}: gone"))


def test_equal_replicas_are_asked_evenly(trio):
    counts = Counter()
    for _ in range(3000):
        replica = trio.choose()
        counts[replica.address] += 1
        trio.sent(replica)
        trio.answered(replica, 0.01, images=1, in_flight=1)
        trio.ended(replica)
    assert all(970 < count < 1030 for count in counts.values()), counts


def test_a_busy_replica_gets_less(trio):
    for _ in range(5):
        trio.sent(of(trio, "a:1"))
    assert "a:1" not in {trio.choose().address for _ in range(50)}


def test_a_replica_that_failed_this_request_is_asked_last(trio):
    tried = [of(trio, "a:1"), of(trio, "b:1")]
    assert {trio.choose(without=tried).address for _ in range(20)} == {"c:1"}
    assert trio.choose(without=trio.all).address in {"a:1", "b:1", "c:1"}


def test_a_single_unavailable_ejects(trio):
    eject(trio, "b:1")
    assert [each.address for each in trio.usable] == ["a:1", "c:1"]
    assert "b:1" not in {trio.choose().address for _ in range(50)}


def test_three_faults_in_a_row_eject_and_an_answer_between_them_does_not(trio):
    replica = of(trio, "a:1")
    for _ in range(2):
        trio.failed(replica, ServerFault("broken"))
    trio.answered(replica, 0.01, images=1, in_flight=1)
    for _ in range(2):
        trio.failed(replica, ServerFault("broken"))
    assert replica.usable
    trio.failed(replica, ServerFault("broken"))
    assert not replica.usable


@pytest.mark.parametrize("error", [BadInput("wrong"), Overloaded("full")])
def test_a_replica_that_refuses_is_alive(trio, error):
    for _ in range(10):
        trio.failed(of(trio, "a:1"), error)
    assert of(trio, "a:1").usable


def test_an_impatient_caller_ejects_nobody_and_a_silent_replica_is_ejected(trio, clock):
    replica = of(trio, "a:1")
    trio.sent(replica)
    clock.now += 0.01
    trio.failed(replica, DeadlineExceeded("10 ms"))
    assert replica.usable
    clock.now += 1.0
    trio.failed(replica, DeadlineExceeded("a second later, nothing has come"))
    assert not replica.usable


def test_a_replica_that_answers_others_is_not_silent(trio, clock):
    replica = of(trio, "a:1")
    for _ in range(2):
        trio.sent(replica)
    clock.now += 2.0
    trio.answered(replica, 2.0, images=1, in_flight=2)
    trio.ended(replica)
    clock.now += 0.1
    trio.failed(replica, DeadlineExceeded("the other one"))
    assert replica.usable


def test_the_last_replica_that_speaks_is_kept_unless_it_is_gone(trio):
    eject(trio, "a:1")
    eject(trio, "b:1")
    for _ in range(10):
        trio.failed(of(trio, "c:1"), ServerFault("sometimes"))
    assert trio.choose().address == "c:1"


def silence(replicas, address, clock):
    replica = of(replicas, address)
    replicas.sent(replica)
    clock.now += 2.0
    replicas.failed(replica, DeadlineExceeded(f"{address}: silent"))
    replicas.ended(replica)


def test_when_all_are_ejected_those_that_refuse_at_once_are_asked_all_the_same(trio, clock):
    silence(trio, "a:1", clock)
    for address in ("b:1", "c:1"):
        eject(trio, address)
    assert trio.usable == []
    assert {trio.choose().address for _ in range(50)} == {"b:1", "c:1"}
    assert trio.choose(without=[of(trio, "b:1")]).address == "c:1"


def test_the_first_that_answers_when_all_are_ejected_is_back_in_use_and_others_wait_for_their_probe(trio):
    told = []
    for address in ("a:1", "b:1", "c:1"):
        eject(trio, address)
    trio.on_change = lambda: told.append(trio.capacity)
    for address in ("b:1", "c:1"):
        trio.answered(of(trio, address), 0.01, images=1, in_flight=1)
    assert [each.address for each in trio.usable] == ["b:1"]
    assert told == [2]


def test_a_late_answer_of_one_that_has_gone_brings_nobody_back(trio):
    gone = of(trio, "a:1")
    trio.update(["b:1"])
    trio.update(["a:1", "b:1"])
    for address in ("a:1", "b:1"):
        eject(trio, address)
    trio.answered(gone, 0.01, images=1, in_flight=1)
    assert trio.usable == []


def test_when_nobody_says_anything_callers_do_not_wait_for_it(trio, clock):
    for address in ("a:1", "b:1"):
        silence(trio, address, clock)
    eject(trio, "c:1")
    trio.failed(of(trio, "c:1"), DeadlineExceeded("c:1: silent"))
    said = "a:1: silent; b:1: silent; c:1: silent"
    with pytest.raises(Unavailable, match=f"none of 3 replicas can be used: {said}"):
        trio.choose()


def test_the_only_replica_there_is_is_never_ejected(clock):
    lone = ReplicaSet(["a:1"], bounds=LimitRange(), clock=clock, chance=random.Random(7))
    for _ in range(10):
        eject(lone, "a:1")
    assert lone.choose().address == "a:1"


def test_an_ejected_replica_is_probed_and_comes_back(trio, clock):
    eject(trio, "a:1")
    assert trio.due() == []
    clock.now += FIRST_PAUSE_S
    assert [each.address for each in trio.due()] == ["a:1"]
    trio.probed(of(trio, "a:1"), None)
    assert of(trio, "a:1").usable


def test_a_replica_that_stays_away_is_probed_less_often(trio, clock):
    eject(trio, "a:1")
    replica, pauses = of(trio, "a:1"), []
    for _ in range(5):
        pauses.append(replica.probe_s - clock.now)
        clock.now = replica.probe_s
        trio.probed(replica, Unavailable("a:1: still gone"))
    assert pauses[:3] == pytest.approx([FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S])
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE_S)


def test_capacity_is_what_the_usable_ones_take_and_never_nothing(trio):
    assert trio.capacity == 6
    for address in ("a:1", "b:1", "c:1"):
        eject(trio, address)
    assert trio.capacity == 1


def test_what_is_stuck_at_an_ejected_replica_takes_no_place_from_the_others(trio, clock):
    stopped = of(trio, "a:1")
    for _ in range(2):
        trio.sent(stopped)
    clock.now += 2.0
    trio.failed(stopped, DeadlineExceeded("silent"))
    assert not stopped.usable
    assert trio.capacity - stopped.outstanding == 4


def test_whoever_waits_for_room_is_told_when_there_may_be_some(trio):
    told = []
    trio.on_change = lambda: told.append(trio.capacity)
    eject(trio, "a:1")
    trio.probed(of(trio, "a:1"), None)
    trio.update(["a:1"])
    assert told == [4, 6, 2]


def test_new_addresses_join_and_known_ones_keep_what_is_known(trio):
    eject(trio, "a:1")
    new, gone = trio.update(["a:1", "d:1"])
    assert [each.address for each in new] == ["d:1"]
    assert {each.address for each in gone} == {"b:1", "c:1"}
    assert [each.address for each in trio.usable] == ["d:1"]


def test_idle_time_is_no_silence(trio, clock):
    replica = of(trio, "a:1")
    for idle_s in (60.0, 0.0):
        trio.sent(replica)
        clock.now += 0.05
        trio.failed(replica, DeadlineExceeded("cancelled"))
        trio.ended(replica)
        clock.now += idle_s
    assert replica.usable


def test_impatient_callers_find_a_silent_replica_out_together(trio, clock):
    replica = of(trio, "a:1")
    for _ in range(30):
        trio.sent(replica)
        clock.now += 0.05
        trio.failed(replica, DeadlineExceeded("cancelled"))
        trio.ended(replica)
    assert not replica.usable


def test_what_is_stuck_at_a_replica_that_left_takes_no_place_either(trio):
    stuck = of(trio, "a:1")
    for _ in range(4):
        trio.sent(stuck)
    trio.update(["b:1"])
    assert trio.capacity - stuck.outstanding == 2
