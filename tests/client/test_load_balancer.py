"""The fleet with scripted replicas: who is asked, how often, and what the caller is told."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter

import pytest

from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, Closed, DeadlineExceeded, Overloaded, ServerFault, Unavailable
from alexnet_client.events import Attempted, Ejected, Hedged, Retried, RetryBudgetExhausted
from alexnet_client.fleet import Fleet
from alexnet_client.limit import LimitRange
from alexnet_client.retries import RetryOptions
from alexnet_client.targets import parse_targets


class Replica:
    """Answers with its address; ``error`` or ``delay_s`` change that."""

    def __init__(self, target):
        self.target, self.error, self.delay_s, self.asked, self.closed, self.cancelled = target, None, 0.0, 0, False, 0

    async def infer(self):
        self.asked += 1
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.target

    async def model_ready(self, model, deadline):
        if isinstance(self.error, Unavailable):
            raise self.error
        return True

    async def close(self):
        self.closed = True


@pytest.fixture
async def make():
    """Makes a fleet of scripted replicas: (fleet, replicas by address, events)."""
    made = []

    def fleet(targets="a:1,b:1,c:1", **retries):
        replicas, events = {}, []

        def connect(address):
            return replicas.setdefault(address, Replica(address))

        for address in parse_targets(targets).addresses:
            connect(address)
        made.append(
            Fleet(
                parse_targets(targets),
                "alexnet",
                connect=connect,
                retries=RetryOptions(**{"first_backoff_s": 0.001, "longest_backoff_s": 0.01, **retries}),
                bounds=LimitRange(),
                on_event=events.append,
                chance=random.Random(3),
            )
        )
        return made[-1], replicas, events

    yield fleet
    for each in made:
        await each.close()


async def send(fleet, seconds=5.0):
    return await fleet.send(lambda transport, deadline: transport.infer(), Deadline.after(seconds), images=1)


def of(events, kind):
    return [each for each in events if isinstance(each, kind)]


async def test_requests_are_spread_evenly(make):
    fleet, _, _ = make()
    counts = Counter([await send(fleet) for _ in range(600)])
    assert all(150 < count < 250 for count in counts.values()), counts


@pytest.mark.parametrize("error", [Unavailable("gone"), ServerFault("broken")])
async def test_a_request_that_a_replica_fails_is_answered_by_another(make, error):
    fleet, replicas, events = make()
    replicas["a:1"].error = error
    answers = {await send(fleet) for _ in range(30)}
    assert answers == {"b:1", "c:1"}
    assert len(of(events, Retried)) == replicas["a:1"].asked > 0


async def test_a_dead_replica_is_asked_once_and_then_left_alone_until_it_is_back(make, monkeypatch):
    monkeypatch.setattr("alexnet_client.replicas.FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr("alexnet_client.fleet.TEND_EVERY_S", 0.01)
    fleet, replicas, events = make()
    replicas["a:1"].error = Unavailable("gone")
    for each in fleet.replicas.all:
        each.pause_s = 0.02
    for _ in range(50):
        await send(fleet)
    assert replicas["a:1"].asked == 1
    assert of(events, Ejected) == [Ejected("a:1")]
    replicas["a:1"].error = None
    give_up = time.monotonic() + 5
    while "a:1" not in {await send(fleet) for _ in range(20)}:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


async def test_bad_input_is_never_tried_again(make):
    fleet, replicas, _ = make()
    for each in replicas.values():
        each.error = BadInput("wrong shape")
    with pytest.raises(BadInput):
        await send(fleet)
    assert sum(each.asked for each in replicas.values()) == 1
    assert len(fleet.replicas.usable) == 3


async def test_overload_is_tried_again_later_and_not_for_ever(make):
    fleet, replicas, events = make(max_attempts=3)
    for each in replicas.values():
        each.error = Overloaded("full")
    with pytest.raises(Overloaded):
        await send(fleet)
    assert sum(each.asked for each in replicas.values()) == 3
    assert [each.reason for each in of(events, Retried)] == ["overloaded"] * 2


async def test_when_everything_is_overloaded_retries_add_a_tenth(make):
    fleet, replicas, events = make(budget=0.1, burst=10)
    for each in replicas.values():
        each.error = Overloaded("full")
    found = await asyncio.gather(*(send(fleet) for _ in range(500)), return_exceptions=True)
    assert all(isinstance(each, Overloaded) for each in found)
    assert sum(each.asked for each in replicas.values()) <= 500 * 1.1 + 10
    assert of(events, RetryBudgetExhausted)


async def test_when_all_are_dead_the_caller_hears_of_each(make):
    fleet, replicas, _ = make()
    for address, each in replicas.items():
        each.error = Unavailable(f"{address}: connection refused")
    with pytest.raises(Unavailable, match="none of 3 replicas can be used") as told:
        await send(fleet)
    assert all(f"{address}: connection refused" in str(told.value) for address in replicas)
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await send(fleet)
    assert time.monotonic() - began < 1, "they are quick to say so"


async def test_when_all_were_away_for_a_moment_nobody_waits_for_a_probe(make):
    fleet, replicas, _ = make()
    for address, each in replicas.items():
        each.error = Unavailable(f"{address}: connection reset")
    with pytest.raises(Unavailable):
        await send(fleet)
    assert fleet.replicas.usable == []
    for each in replicas.values():
        each.error = None
    assert await send(fleet) in replicas
    assert len(fleet.replicas.usable) == 1


async def test_a_lone_replica_that_is_away_for_a_moment_is_given_time(make):
    fleet, replicas, events = make("a:1")
    replicas["a:1"].error = Unavailable("a:1: connection reset")
    asyncio.get_running_loop().call_later(0.002, lambda: setattr(replicas["a:1"], "error", None))
    await send_until_answered(fleet)
    assert of(events, Ejected) == []


async def send_until_answered(fleet):
    for _ in range(5):
        try:
            return await send(fleet)
        except Unavailable:
            continue
    raise AssertionError


async def test_a_slow_request_is_hedged_and_the_loser_cancelled(make):
    fleet, replicas, events = make("a:1,b:1", hedge_quantile=0.95)
    for _ in range(60):
        await send(fleet)
    replicas["a:1"].delay_s = 5.0
    assert {await send(fleet) for _ in range(10)} == {"b:1"}
    assert replicas["a:1"].cancelled > 0
    assert Hedged(won=True) in events


async def test_hedges_are_paid_from_the_same_budget(make):
    fleet, replicas, events = make("a:1,b:1", hedge_quantile=0.5, budget=0.0, burst=2)
    for _ in range(60):
        await send(fleet)
    for each in replicas.values():
        each.delay_s = 0.01
    for _ in range(20):
        await send(fleet)
    assert len(of(events, Hedged)) <= 2


async def test_a_hedged_request_whose_first_attempt_fails_is_answered_by_the_second(make):
    fleet, replicas, _ = make("a:1,b:1", hedge_quantile=0.95)
    for _ in range(60):
        await send(fleet)
    replicas["a:1"].delay_s, replicas["a:1"].error = 0.05, ServerFault("broken")
    replicas["b:1"].delay_s = 0.1
    assert {await send(fleet) for _ in range(5)} == {"b:1"}


async def test_a_request_that_is_cancelled_counts_neither_for_nor_against_a_replica_that_answers(make):
    fleet, replicas, events = make("a:1")
    replicas["a:1"].delay_s = 5.0
    task = asyncio.create_task(send(fleet))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [each.outcome for each in of(events, Attempted)] == ["cancelled"]
    assert fleet.replicas.all[0].outstanding == 0
    assert fleet.replicas.all[0].usable


async def test_addresses_of_a_name_come_and_go_without_a_restart(make, monkeypatch):
    monkeypatch.setattr("alexnet_client.fleet.TEND_EVERY_S", 0.01)
    monkeypatch.setattr("alexnet_client.fleet.RESOLVE_EVERY_S", 0.01)
    addresses = [["10.0.0.1"]]

    async def lookup(host, port, *, type):  # noqa: A002  the name is asyncio's
        return [(0, 0, 0, "", (each, port)) for each in addresses[0]]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    fleet, replicas, _ = make("dns:///triton:1")
    assert await send(fleet) == "10.0.0.1:1"
    addresses[0] = ["10.0.0.2"]
    give_up = time.monotonic() + 5
    while await send(fleet) != "10.0.0.2:1":
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)
    while not replicas["10.0.0.1:1"].closed:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


async def test_a_slow_lookup_holds_up_no_probe(make, monkeypatch):
    monkeypatch.setattr("alexnet_client.replicas.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("alexnet_client.fleet.TEND_EVERY_S", 0.01)
    monkeypatch.setattr("alexnet_client.fleet.RESOLVE_EVERY_S", 0.01)
    looked_up = []

    async def lookup(host, port, *, type):  # noqa: A002  the name is asyncio's
        looked_up.append(host)
        if len(looked_up) > 1:
            await asyncio.sleep(60)
        return [(0, 0, 0, "", (each, port)) for each in ("10.0.0.1", "10.0.0.2")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    fleet, _, _ = make("dns:///triton:1")
    await send(fleet)
    give_up = time.monotonic() + 5
    while len(looked_up) < 2:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)
    fleet.replicas.all[0].pause_s = 0.01
    fleet.replicas.failed(fleet.replicas.all[0], Unavailable("gone for a moment"))
    assert len(fleet.replicas.usable) == 1
    while len(fleet.replicas.usable) < 2:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


async def test_a_name_without_an_address_is_looked_up_again_by_the_next_call(make, monkeypatch):
    found = [OSError("no such name"), [(0, 0, 0, "", ("10.0.0.1", 1))]]

    async def lookup(host, port, *, type):  # noqa: A002  the name is asyncio's
        answer = found.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    fleet, _, _ = make("dns:///triton:1")
    with pytest.raises(Unavailable, match="the name has no address"):
        await send(fleet)
    assert await send(fleet) == "10.0.0.1:1"


async def test_a_failed_lookup_is_not_hurried(make, monkeypatch):
    monkeypatch.setattr("alexnet_client.fleet.TEND_EVERY_S", 0.001)
    monkeypatch.setattr("alexnet_client.fleet.RESOLVE_EVERY_S", 0.05)
    lookups = []

    async def lookup(host, port, *, type):  # noqa: A002  the name is asyncio's
        lookups.append(time.monotonic())
        if len(lookups) > 1:
            raise OSError("the resolver is away")
        return [(0, 0, 0, "", ("10.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    fleet, _, _ = make("dns:///triton:1")
    await send(fleet)
    give_up = time.monotonic() + 5
    while len(lookups) < 4:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)
    assert all(later - earlier >= 0.049 for earlier, later in itertools.pairwise(lookups))
    assert await send(fleet) == "10.0.0.1:1", "the addresses known so far go on serving"


async def test_after_both_attempts_of_a_hedge_have_failed_a_third_replica_is_asked(make):
    fleet, replicas, _ = make("a:1,b:1,c:1", hedge_quantile=0.95)
    for _ in range(60):
        await send(fleet)
    order = []

    async def infer(self):
        order.append(self.target)
        await asyncio.sleep(0.03 if len(order) < 3 else 0.0)
        if len(order) < 3 or self.target in order[:2]:
            raise ServerFault("broken")
        return self.target

    for each in replicas.values():
        each.infer = infer.__get__(each)
    answer = await send(fleet)
    assert len(set(order[:3])) == 3
    assert answer == order[2]


async def test_a_request_whose_deadline_has_passed_is_sent_nowhere_and_counts_against_nobody(make):
    fleet, replicas, events = make()
    await send(fleet)
    events.clear()
    with pytest.raises(DeadlineExceeded, match="waiting to send"):
        await fleet.send(lambda transport, deadline: transport.infer(), Deadline.after(0.0), images=1)
    assert (sum(each.asked for each in replicas.values()), events) == (1, [])


async def test_a_question_goes_to_the_replica_it_is_meant_for_or_elsewhere_if_that_is_out(make):
    fleet, _, _ = make()

    def ask():
        return fleet.ask(lambda transport, deadline: transport.infer(), Deadline.after(5), at="b:1")

    assert {await ask() for _ in range(20)} == {"b:1"}
    fleet.replicas.failed(next(each for each in fleet.replicas.all if each.address == "b:1"), Unavailable("gone"))
    assert await ask() in {"a:1", "c:1"}


async def test_a_timeout_is_the_callers_and_is_not_tried_again(make):
    fleet, replicas, _ = make()
    for each in replicas.values():
        each.error = DeadlineExceeded("no answer")
    with pytest.raises(DeadlineExceeded):
        await send(fleet)
    assert sum(each.asked for each in replicas.values()) == 1


async def test_a_closed_fleet_asks_nobody_and_leaves_no_task(make):
    fleet, replicas, _ = make()
    before = len(asyncio.all_tasks())
    await send(fleet)
    await fleet.close()
    with pytest.raises(Closed):
        await send(fleet)
    assert sum(each.asked for each in replicas.values()) == 1
    assert len(asyncio.all_tasks()) == before


async def test_closing_ends_a_call_that_waits_to_be_made_again(make):
    fleet, replicas, _ = make("a:1", first_backoff_s=0.2, longest_backoff_s=0.2)
    replicas["a:1"].error = Overloaded("full")
    task = asyncio.create_task(send(fleet))
    await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    await fleet.close()
    with pytest.raises(Closed):
        await task
    assert replicas["a:1"].asked == 1


async def test_a_slow_lookup_ends_at_the_deadline(make, monkeypatch):
    async def lookup(host, port, *, type):  # noqa: A002  the name is asyncio's
        await asyncio.sleep(10)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    fleet, _, _ = make("dns:///triton:1")
    with pytest.raises(DeadlineExceeded, match="looking up the address"):
        await send(fleet, seconds=0.05)


async def test_a_hedge_never_goes_to_the_same_replica_nor_ends_the_first_attempt(make):
    fleet, replicas, _ = make("a:1,b:1", hedge_quantile=0.95)
    for _ in range(60):
        await send(fleet)
    for each in replicas.values():
        each.delay_s = 0.1
    task = asyncio.create_task(send(fleet))
    await asyncio.sleep(0)
    for each in fleet.replicas.all:
        fleet.replicas.failed(each, Unavailable("seen by others"))
    assert await task in replicas
