"""The load balancer with fake replicas: retries, hedges, ejections, DNS updates."""

from __future__ import annotations

import asyncio
import itertools
import random
import time

import pytest
from waiting import until

from alexnet_client.concurrency import ConcurrencyRange
from alexnet_client.deadline import Deadline
from alexnet_client.errors import Closed, DeadlineExceeded, Overloaded, ServerFault, Unavailable
from alexnet_client.events import Attempted, Ejected, Hedged, Retried, RetryBudgetExhausted
from alexnet_client.load_balancer import LoadBalancer
from alexnet_client.resolver import parse_targets
from alexnet_client.retries import RetryOptions


class FakeReplica:
    """Returns its address; ``error`` or ``delay_s`` change that."""

    def __init__(self, target):
        self.target, self.error, self.delay_s = target, None, 0.0
        self.requests, self.cancelled, self.closed = 0, 0, False

    async def infer(self):
        self.requests += 1
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
    """Creates a load balancer with fake replicas: (balancer, replicas by address, events)."""
    created = []

    def balancer(targets="a:1,b:1,c:1", *, intervals_s=0.01, min_ejection_s=0.5, **retries):
        replicas, events = {}, []

        def connect(address):
            return replicas.setdefault(address, FakeReplica(address))

        for address in parse_targets(targets).addresses:
            connect(address)
        created.append(
            LoadBalancer(
                parse_targets(targets),
                "alexnet",
                connect=connect,
                retries=RetryOptions(**{"initial_backoff_s": 0.001, "max_backoff_s": 0.01, **retries}),
                bounds=ConcurrencyRange(),
                on_event=events.append,
                rng=random.Random(3),
                probe_interval_s=0.01,
                resolve_interval_s=intervals_s,
                min_ejection_s=min_ejection_s,
            )
        )
        return created[-1], replicas, events

    yield balancer
    for each in created:
        await each.close()


@pytest.fixture
def resolver(monkeypatch):
    """Replaces the DNS lookup: a function gets the number of the lookup, and returns hosts or an awaitable of them.

    Returns the times of the lookups.
    """

    def replace(find):
        times_s = []

        async def getaddrinfo(host, port, *, type):  # noqa: A002  the name is asyncio's
            times_s.append(time.monotonic())
            hosts = find(len(times_s))
            return [(0, 0, 0, "", (each, port)) for each in (await hosts if asyncio.iscoroutine(hosts) else hosts)]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        return times_s

    return replace


async def send(balancer, seconds=5.0, **how):
    return await balancer.send(lambda transport, _: transport.infer(), Deadline.after(seconds), images=1, **how)


async def warm_up(balancer):
    """Enough requests for a hedging delay."""
    for _ in range(60):
        await send(balancer)


def fail_all(replicas, make_error):
    for address, each in replicas.items():
        each.error = make_error(address)


def slow_down(replicas, delay_s):
    for each in replicas.values():
        each.delay_s = delay_s


def total_requests(replicas):
    return sum(each.requests for each in replicas.values())


def of(events, kind):
    return [each for each in events if isinstance(each, kind)]


@pytest.mark.parametrize("error", [Unavailable("gone"), ServerFault("broken")])
async def test_a_failed_request_is_retried_at_another_replica(make, error):
    balancer, replicas, events = make()
    replicas["a:1"].error = error
    assert {await send(balancer) for _ in range(30)} == {"b:1", "c:1"}
    assert len(of(events, Retried)) == replicas["a:1"].requests > 0


async def test_an_unavailable_replica_is_ejected_after_one_request_and_reinstated_by_a_probe(make):
    balancer, replicas, events = make(min_ejection_s=0.02)
    replicas["a:1"].error = Unavailable("gone")
    for _ in range(50):
        await send(balancer)
    assert replicas["a:1"].requests == 1
    assert of(events, Ejected) == [Ejected("a:1")]
    replicas["a:1"].error = None
    await until(lambda: len(balancer.replicas.healthy) == 3, "the replica is reinstated")
    assert "a:1" in {await send(balancer) for _ in range(50)}


async def test_a_timeout_is_not_retried_and_does_not_eject(make):
    balancer, replicas, _ = make()
    fail_all(replicas, lambda _: DeadlineExceeded("no response"))
    with pytest.raises(DeadlineExceeded):
        await send(balancer)
    assert total_requests(replicas) == 1
    assert len(balancer.replicas.healthy) == 3


async def test_if_all_requests_fail_retries_add_at_most_the_budget(make):
    balancer, replicas, events = make(budget=0.1, burst=10)
    fail_all(replicas, lambda _: Overloaded("full"))
    errors = await asyncio.gather(*(send(balancer) for _ in range(500)), return_exceptions=True)
    assert all(isinstance(each, Overloaded) for each in errors)
    assert 500 < total_requests(replicas) <= 500 * 1.1 + 10
    assert of(events, RetryBudgetExhausted)


async def test_if_all_are_unavailable_the_error_describes_each_and_a_request_reinstates_one_before_its_probe(make):
    balancer, replicas, _ = make(min_ejection_s=60)
    fail_all(replicas, lambda address: Unavailable(f"{address}: connection refused"))
    with pytest.raises(Unavailable, match="none of 3 replicas is available") as error:
        await send(balancer)
    assert all(f"{address}: connection refused" in str(error.value) for address in replicas)
    assert balancer.replicas.healthy == []
    fail_all(replicas, lambda _: None)
    assert await send(balancer) in replicas
    assert len(balancer.replicas.healthy) == 1


async def test_the_only_replica_is_retried_after_a_wait_and_never_ejected(make):
    balancer, _, events = make("a:1")
    errors = [Unavailable("a:1: connection reset")] * 2

    async def infer(transport, _):
        if errors:
            raise errors.pop()
        return await transport.infer()

    assert await balancer.send(infer, Deadline.after(5)) == "a:1"
    assert of(events, Retried) == [Retried("unavailable")] * 2
    assert of(events, Ejected) == []


async def test_a_slow_request_is_hedged_and_the_slower_attempt_is_cancelled(make):
    balancer, replicas, events = make("a:1,b:1", hedge_quantile=0.95)
    await warm_up(balancer)
    replicas["a:1"].delay_s = 60.0
    assert {await send(balancer) for _ in range(10)} == {"b:1"}
    assert replicas["a:1"].cancelled > 0
    assert Hedged(won=True) in events


async def test_hedges_are_limited_by_the_retry_budget(make):
    balancer, replicas, _ = make("a:1,b:1", hedge_quantile=0.5, budget=0.0, burst=2)
    await warm_up(balancer)
    slow_down(replicas, 0.02)
    await asyncio.gather(*(send(balancer) for _ in range(20)))
    assert total_requests(replicas) == 60 + 20 + 2


async def test_if_the_first_attempt_of_a_hedged_request_fails_the_second_is_used(make):
    balancer, replicas, _ = make("a:1,b:1", hedge_quantile=0.95)
    await warm_up(balancer)
    replicas["a:1"].delay_s, replicas["a:1"].error = 0.05, ServerFault("broken")
    replicas["b:1"].delay_s = 0.1
    assert {await send(balancer) for _ in range(5)} == {"b:1"}


async def test_if_both_attempts_of_a_hedged_request_fail_a_third_replica_gets_it(make):
    balancer, _, _ = make(hedge_quantile=0.95)
    await warm_up(balancer)
    order = []

    async def infer(transport, _):
        order.append(transport.target)
        if len(order) < 3:
            await asyncio.sleep(0.03)
            raise ServerFault("broken")
        return transport.target

    assert await balancer.send(infer, Deadline.after(5), images=1) == order[2]
    assert len(set(order)) == 3


async def test_a_hedge_is_not_sent_if_no_other_replica_is_healthy(make):
    balancer, replicas, _ = make("a:1,b:1", hedge_quantile=0.95)
    await warm_up(balancer)
    slow_down(replicas, 0.1)
    task = asyncio.create_task(send(balancer))
    await asyncio.sleep(0)
    for each in balancer.replicas.all:
        balancer.replicas.failed(each, Unavailable("of another request"))
    assert await task in replicas
    assert total_requests(replicas) == 61


async def test_a_cancelled_request_does_not_count_against_a_replica(make):
    balancer, replicas, events = make()
    slow_down(replicas, 60.0)
    task = asyncio.create_task(send(balancer))
    await until(lambda: total_requests(replicas) == 1, "the request is sent")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [each.outcome for each in of(events, Attempted)] == ["cancelled"]
    assert [each.outstanding for each in balancer.replicas.all] == [0, 0, 0]
    assert len(balancer.replicas.healthy) == 3


async def test_a_request_whose_deadline_has_passed_is_not_sent(make):
    balancer, replicas, events = make()
    await send(balancer)
    events.clear()
    with pytest.raises(DeadlineExceeded, match="waiting to send"):
        await send(balancer, seconds=0.0)
    assert (total_requests(replicas), events) == (1, [])


async def test_new_addresses_of_a_name_are_used_and_old_channels_closed(make, resolver):
    hosts = ["10.0.0.1"]
    resolver(lambda number: list(hosts))
    balancer, replicas, _ = make("dns:///triton:1")
    assert await send(balancer) == "10.0.0.1:1"
    hosts[:] = ["10.0.0.2"]
    await until(lambda: replicas["10.0.0.1:1"].closed, "the old channel is closed")
    assert await send(balancer) == "10.0.0.2:1"


async def test_a_slow_dns_lookup_does_not_delay_probes(make, resolver):
    times_s = resolver(lambda number: ["10.0.0.1", "10.0.0.2"] if number == 1 else asyncio.sleep(60))
    balancer, _, _ = make("dns:///triton:1", min_ejection_s=0.01)
    await send(balancer)
    await until(lambda: len(times_s) == 2, "the second lookup begins")
    balancer.replicas.failed(balancer.replicas.all[0], Unavailable("gone"))
    assert len(balancer.replicas.healthy) == 1
    await until(lambda: len(balancer.replicas.healthy) == 2, "the replica is reinstated")


async def fail_lookup():
    raise OSError("the resolver does not respond")


async def test_a_slow_first_lookup_ends_at_the_deadline_and_the_next_calls_repeat_it(make, resolver):
    first = {1: lambda: asyncio.sleep(60), 2: fail_lookup}
    resolver(lambda number: first.get(number, lambda: ["10.0.0.1"])())
    balancer, _, _ = make("dns:///triton:1", intervals_s=60)
    with pytest.raises(DeadlineExceeded, match="resolving the address"):
        await send(balancer, seconds=0.05)
    with pytest.raises(Unavailable, match="the name has no address"):
        await send(balancer)
    assert await send(balancer) == "10.0.0.1:1"


async def test_failed_lookups_keep_the_interval_and_the_known_addresses(make, resolver):
    times_s = resolver(lambda number: ["10.0.0.1"] if number == 1 else fail_lookup())
    balancer, _, _ = make("dns:///triton:1", intervals_s=0.05)
    await send(balancer)
    await until(lambda: len(times_s) >= 4, "four lookups")
    assert all(later - earlier >= 0.049 for earlier, later in itertools.pairwise(times_s))
    assert await send(balancer) == "10.0.0.1:1"


async def test_closing_ends_a_request_between_two_attempts_and_leaves_no_task(make):
    before = len(asyncio.all_tasks())
    balancer, replicas, events = make("a:1", max_attempts=10**6, burst=10**6)
    replicas["a:1"].error = Overloaded("full")
    task = asyncio.create_task(send(balancer, seconds=60))
    await until(lambda: of(events, Retried), "the request is retried")
    await balancer.close()
    with pytest.raises(Closed):
        await task
    assert len(asyncio.all_tasks()) == before
    sent = total_requests(replicas)
    with pytest.raises(Closed):
        await send(balancer)
    assert total_requests(replicas) == sent
