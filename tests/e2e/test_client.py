"""The batching client with one and several real servers, healthy and failing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from contextlib import ExitStack

import numpy as np
import psutil
import pytest
from servers import Load, with_small_queue
from waiting import until, wait_until

from alexnet_client import Client, Overloaded, Unavailable
from alexnet_client.batching import BatchOptions
from alexnet_client.events import Attempted, BatchSent, Ejected, RetryBudgetExhausted

IMAGES = np.random.default_rng(1).integers(0, 256, (97, 224, 224, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def running_servers(cheap_server):
    with ExitStack() as stack:
        options = ("--probe-interval", 0, "--hang-timeout", 600)
        yield [stack.enter_context(cheap_server(*options)) for _ in range(2)]


@pytest.fixture
def two_servers(running_servers):
    for each in running_servers:
        wait_until(lambda: each.health()[0] == 200, "it is ready")  # noqa: B023
    return running_servers


def targets(running):
    return ",".join(each.target for each in running)


def check_retries(events, *, burst):
    """Retries are at most a tenth of the batches after a burst."""
    count = Counter(type(each) for each in events)
    assert count[Attempted] <= 1.1 * count[BatchSent] + burst, count


async def test_images_of_five_hundred_tasks_are_batched_and_each_task_gets_its_own_results(two_servers, cheap):
    server, expected, events = two_servers[0], cheap.logits(IMAGES), []
    before = server.metric("nv_inference_count", "alexnet")

    async def largest_error(client, seed):
        rng = random.Random(seed)
        rows = [rng.randrange(len(IMAGES)) for _ in range(4)]
        found = [(await client.infer(IMAGES[row : row + 1])).logits[0] for row in rows]
        return np.abs(np.stack(found) - expected[rows]).max()

    async with Client(server.target, timeout_s=60, listeners=[events.append]) as client:
        errors = await asyncio.gather(*(largest_error(client, seed) for seed in range(500)))
        larger_than_a_batch = (await client.infer(IMAGES)).logits
    assert max(errors) < 1e-3
    assert np.allclose(larger_than_a_batch, expected, atol=1e-3)
    sizes = [each.images for each in events if isinstance(each, BatchSent)]
    assert sum(sizes) == 2_000 + len(IMAGES)
    assert len(sizes) < 300
    await until(
        lambda: server.metric("nv_inference_count", "alexnet") - before == sum(sizes), "Triton counts every image"
    )


async def test_cancelled_callers_change_no_other_result_and_leave_no_task_and_no_descriptor(two_servers, cheap):
    expected, process, events = cheap.logits(IMAGES), psutil.Process(os.getpid()), []
    async with Client(two_servers[0].target, timeout_s=60, listeners=[events.append]) as client:
        await client.infer(IMAGES)
        tasks_before, descriptors_before = len(asyncio.all_tasks()), process.num_fds()
        tasks = [asyncio.create_task(client.infer(IMAGES[place % 97][np.newaxis])) for place in range(1000)]
        events.clear()
        await until(lambda: any(isinstance(each, BatchSent) for each in events), "a batch is in flight")
        for task in tasks[::2]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(each, asyncio.CancelledError) for each in found[::2]) > 100, "too few to test anything"
        for place in range(1, 1000, 2):
            assert np.allclose(found[place].logits[0], expected[place % 97], atol=1e-3)
        await until(lambda: len(asyncio.all_tasks()) <= tasks_before, "the tasks end")
        assert process.num_fds() <= descriptors_before + 2


async def kill(server):
    """Kill Triton and wait until the launcher has restarted it."""
    before = server.health()[1]["restarts"]
    server.triton().kill()
    await until(lambda: server.health()[1]["restarts"] > before and server.health()[0] == 200, "it is restarted")


async def test_no_call_fails_while_replicas_are_killed_in_turn(two_servers, cheap):
    events = []
    async with (
        Client(targets(two_servers), timeout_s=20, listeners=[events.append]) as client,
        Load(client, IMAGES, cheap.logits(IMAGES), callers=24) as load,
    ):
        await load.wait_for_answers(200)
        for number, victim in enumerate(two_servers, 1):
            await kill(victim)
            restarted = len(events)
            await until(lambda: Attempted(victim.target, "ok") in events[restarted:], "it is reinstated")  # noqa: B023
            await load.wait_for_answers(200)
            assert len({each.replica for each in events if isinstance(each, Ejected)}) == number
        assert set(load.outcomes) == {"correct"}, load.outcomes
    check_retries(events, burst=10)


async def test_without_a_healthy_replica_calls_fail_as_unavailable_and_succeed_again_after_the_restart(
    two_servers, cheap
):
    async with Client(targets(two_servers), timeout_s=5) as client:
        await client.infer(IMAGES[:1])
        for each in two_servers:
            each.triton().kill()
        found = await asyncio.gather(*(client.infer(IMAGES[:1]) for _ in range(50)), return_exceptions=True)
        assert {type(each) for each in found} == {Unavailable}
        assert all(each.target in str(found[-1]) for each in two_servers), found[-1]

        async def answer():
            try:
                return await client.infer(IMAGES[:1])
            except Unavailable:
                return None

        answer = await until(answer, "an answer of a restarted server")
        assert np.allclose(answer.logits, cheap.logits(IMAGES[:1]), atol=1e-3)


async def test_a_replica_that_accepts_requests_and_never_answers_is_ejected_and_reinstated(two_servers, cheap):
    stopped, other = two_servers
    events = []
    async with (
        Client(targets(two_servers), timeout_s=1.5, listeners=[events.append]) as client,
        Load(client, IMAGES, cheap.logits(IMAGES)) as load,
    ):
        await load.wait_for_answers(200)
        process = stopped.triton()
        process.send_signal(signal.SIGSTOP)
        try:
            await until(lambda: Ejected(stopped.target) in events, "it is ejected")
            late = load.outcomes["DeadlineExceeded"]
            await load.wait_for_answers(500)
            assert load.outcomes["DeadlineExceeded"] <= late + 8, "more than the calls that were sent there before"
        finally:
            process.send_signal(signal.SIGCONT)
        now = len(events)
        await until(lambda: Attempted(stopped.target, "ok") in events[now:], "it is reinstated")
        assert load.outcomes["wrong"] == 0
    assert Ejected(other.target) not in events


async def test_overload_is_rejected_without_a_storm_of_retries(launch, cheap, tmp_path):
    repository = with_small_queue(cheap.repository, tmp_path, 4)
    events, outcomes = [], Counter()
    batching = BatchOptions(max_batch=1, max_queue_images=16, wait_when_full=False, max_in_flight=64)

    async def call(client):
        try:
            await client.infer(IMAGES[:1])
            outcomes["ok"] += 1
        except Overloaded as error:
            outcomes[type(error).__name__] += 1

    with launch(repository, "--config-name", "bounded", "--probe-interval", 0) as server:

        def served():
            return server.metric("nv_inference_count", "alexnet") - before

        async with Client(server.target, timeout_s=30, batching=batching, listeners=[events.append]) as client:
            await client.signature()  # without an inference, which Triton might count later
            before = server.metric("nv_inference_count", "alexnet")
            tasks = []
            for _ in range(1000):  # much faster than the server
                tasks.append(asyncio.create_task(call(client)))
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)
        await until(lambda: served() >= outcomes["ok"], "Triton counts shortly after its answer")
        assert served() == outcomes["ok"]
    assert sum(outcomes.values()) == 1000
    assert outcomes["QueueFull"] > outcomes["ok"] > 0
    check_retries(events, burst=15)
    # A call whose retry was denied fails as overloaded; others may have used all their attempts.
    assert sum(isinstance(each, RetryBudgetExhausted) for each in events) <= outcomes["Overloaded"]
