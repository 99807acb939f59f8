"""The batching client against real tritonservers, one and several, well and ill."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import ExitStack

import numpy as np
import psutil
import pytest

from alexnet_client import Client, DeadlineExceeded, Overloaded, Unavailable
from alexnet_client.batching import BatchOptions
from alexnet_client.events import Attempted, BatchSent, Ejected, RetryBudgetExhausted

PATIENCE_S = 30
IMAGES = np.random.default_rng(1).integers(0, 256, (97, 224, 224, 3)).astype(np.uint8)


@pytest.fixture
def servers(own_server, cheap):
    """Starts so many servers of the cheap release."""
    with ExitStack() as stack:

        def start(count, *options):
            return [
                stack.enter_context(own_server("--probe-interval", "0", *options, repository=cheap.repository))
                for _ in range(count)
            ]

        yield start


def targets(running):
    return ",".join(each.target for each in running)


async def until(condition, what):
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, what
        await asyncio.sleep(0.05)


class Load:
    """Tasks that ask for single images all the time, and what came of each call."""

    def __init__(self, client, cheap, tasks=24):
        self.outcomes, self.seconds = Counter(), []
        self._expected = cheap.logits(IMAGES)
        self._client, self._count = client, tasks

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(self._ask(place)) for place in range(self._count)]
        return self

    async def __aexit__(self, *_):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, place):
        chance = random.Random(place)
        while True:
            row, began = chance.randrange(len(IMAGES)), time.monotonic()
            try:
                answer = await self._client.infer(IMAGES[row : row + 1])
            except (Unavailable, DeadlineExceeded, Overloaded) as error:
                self.outcomes[type(error).__name__] += 1
            else:
                right = np.allclose(answer.logits[0], self._expected[row], atol=1e-3)
                self.outcomes["right" if right else "wrong"] += 1
            self.seconds.append(time.monotonic() - began)

    async def answers(self, count):
        before = self.outcomes["right"]
        await until(lambda: self.outcomes["right"] >= before + count, f"{count} more answers: {self.outcomes}")


async def test_ten_thousand_images_of_five_hundred_tasks_are_each_answered_right_and_in_their_place(servers, cheap):
    (server,) = servers(1)
    expected, events = cheap.logits(IMAGES), []

    async def ask(client, place):
        chance = random.Random(place)
        rows = [chance.randrange(len(IMAGES)) for _ in range(20)]
        found = [(await client.infer(IMAGES[row : row + 1])).logits[0] for row in rows]
        return np.abs(np.stack(found) - expected[rows]).max()

    async with Client(server.target, timeout_s=60, listeners=[events.append]) as client:
        errors = await asyncio.gather(*(ask(client, place) for place in range(500)))
    assert max(errors) < 1e-3
    sent = [each.images for each in events if isinstance(each, BatchSent)]
    assert sum(sent) == 10_000
    assert len(sent) < 1_500, "they travelled together"
    assert server.metric("nv_inference_count", "alexnet") >= 10_000


async def test_an_oversized_batch_travels_in_several_requests_and_comes_back_in_order(servers, cheap):
    (server,) = servers(1)
    images = np.concatenate([IMAGES, IMAGES])
    async with Client(server.target) as client:
        assert np.allclose((await client.infer(images)).logits, cheap.logits(images), atol=1e-3)
    assert server.metric("nv_inference_request_success", "alexnet") >= 194 / 64


async def test_a_stream_of_images_keeps_its_order(servers, cheap):
    (server,) = servers(1)
    async with Client(server.target) as client:
        found = [answer async for answer in client.classify_many(IMAGES[number % 97] for number in range(500))]
    expected = cheap.logits(IMAGES)
    assert all(np.allclose(answer.logits, expected[number % 97], atol=1e-3) for number, answer in enumerate(found))
    assert len(found) == 500


async def test_replicas_killed_in_turn_under_load_cost_no_call(servers, cheap):
    running, events = servers(3), []
    async with (
        Client(targets(running), timeout_s=20, listeners=[events.append]) as client,
        Load(client, cheap) as load,
    ):
        await load.answers(500)
        for victim in running[:2]:
            victim.triton().kill()
            await until(lambda: victim.health()[0] != 200, "its death is noticed")  # noqa: B023  awaited at once
            await load.answers(500)
            await until(lambda: victim.health()[0] == 200, "it is back")  # noqa: B023
            address, back_s = victim.target, len(events)
            await until(
                lambda: Attempted(address, "ok") in events[back_s:],  # noqa: B023
                "it gets requests again",
            )
        assert set(load.outcomes) == {"right"}, load.outcomes
    batches = sum(isinstance(each, BatchSent) for each in events)
    attempts = sum(isinstance(each, Attempted) for each in events)
    assert attempts <= 1.1 * batches + 10
    assert {each.replica for each in events if isinstance(each, Ejected)} == {each.target for each in running[:2]}


async def test_when_all_are_dead_each_call_is_told_so_in_time_and_service_comes_back_by_itself(servers, cheap):
    running = servers(2)
    async with Client(targets(running), timeout_s=5) as client:
        await client.infer(IMAGES[:1])
        for each in running:
            each.triton().kill()
        began = time.monotonic()
        found = await asyncio.gather(*(client.infer(IMAGES[:1]) for _ in range(50)), return_exceptions=True)
        assert time.monotonic() - began < 5 + 0.5
        assert {type(each) for each in found} == {Unavailable}
        assert all(each.target in str(found[-1]) for each in running), found[-1]
        await until(lambda: all(each.health()[0] == 200 for each in running), "they are back")
        give_up = time.monotonic() + 8
        while isinstance(
            answer := (await asyncio.gather(client.infer(IMAGES[:1]), return_exceptions=True))[0], Unavailable
        ):
            assert time.monotonic() < give_up, answer
            await asyncio.sleep(0.1)
        assert np.allclose(answer.logits, cheap.logits(IMAGES[:1]), atol=1e-3)


async def test_a_replica_that_accepts_and_never_answers_is_ejected_and_deadlines_hold(servers, cheap):
    stopped, other = running = servers(2, "--hang-timeout", "600")
    events = []
    async with (
        Client(targets(running), timeout_s=1.5, listeners=[events.append]) as client,
        Load(client, cheap, tasks=8) as load,
    ):
        await load.answers(200)
        process = stopped.triton()
        process.send_signal(signal.SIGSTOP)
        try:
            await until(lambda: Ejected(stopped.target) in events, "it is ejected")
            late, before = load.outcomes["DeadlineExceeded"], load.outcomes["right"]
            await load.answers(500)
            assert load.outcomes["DeadlineExceeded"] <= late + 8, "at most what was sent there before"
            assert load.outcomes["right"] > before
        finally:
            process.send_signal(signal.SIGCONT)
        address, now = stopped.target, len(events)
        await until(lambda: Attempted(address, "ok") in events[now:], "it gets requests again")
        assert max(load.seconds) < 1.5 + 0.3, "a deadline is a deadline (this machine may be busy)"
        assert load.outcomes["wrong"] == 0
    assert Ejected(other.target) not in events


async def test_overload_is_refused_fast_without_a_storm_of_retries(own_server, repository, tmp_path):
    mine = tmp_path / "tiny"
    shutil.copytree(repository, mine)
    config = mine / "alexnet/configs/bounded.pbtxt"
    config.write_text(config.read_text().replace("max_queue_size: 512", "max_queue_size: 4"))
    events, outcomes = [], Counter()
    options = BatchOptions(max_batch=1, max_queue_images=16, wait_when_full=False, max_in_flight=64)

    async def ask(client):
        try:
            await client.infer(IMAGES[:1])
            outcomes["ok"] += 1
        except Overloaded as error:
            outcomes[type(error).__name__] += 1

    with own_server("--config-name", "bounded", "--probe-interval", "0", repository=mine) as server:
        async with Client(server.target, timeout_s=30, batching=options, listeners=[events.append]) as client:
            await client.infer(IMAGES[:1])
            before = server.metric("nv_inference_count", "alexnet")
            tasks = []
            for _ in range(2000):  # far more than it can take
                tasks.append(asyncio.create_task(ask(client)))
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)
        # Triton counts a moment after it has answered.
        await until(
            lambda: server.metric("nv_inference_count", "alexnet") - before >= outcomes["ok"], "all are counted"
        )
        served = server.metric("nv_inference_count", "alexnet") - before
    assert sum(outcomes.values()) == 2000
    assert outcomes["QueueFull"] > outcomes["ok"] > 0
    assert served == outcomes["ok"]
    sent = sum(isinstance(each, BatchSent) for each in events)
    attempts = sum(isinstance(each, Attempted) for each in events)
    assert attempts <= 1.1 * sent + 15, Counter(type(each).__name__ for each in events)
    # Whoever's retry was denied is told; others may have used up their attempts.
    assert sum(isinstance(each, RetryBudgetExhausted) for each in events) <= outcomes["Overloaded"]


async def test_a_thousand_of_two_thousand_callers_who_give_up_harm_nobody_and_leave_nothing(servers, cheap):
    (server,) = servers(1)
    expected, process = cheap.logits(IMAGES), psutil.Process(os.getpid())
    async with Client(server.target, timeout_s=60) as client:
        await client.infer(IMAGES)
        before = len(asyncio.all_tasks()), process.num_fds()
        tasks = [asyncio.create_task(client.infer(IMAGES[place % 97][np.newaxis])) for place in range(2000)]
        await asyncio.sleep(0.02)
        for task in tasks[::2]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        given_up = sum(isinstance(each, asyncio.CancelledError) for each in found[::2])
        assert given_up > 900, "some may have been answered already"
        for place in range(1, 2000, 2):
            assert np.allclose(found[place].logits[0], expected[place % 97], atol=1e-3)
        await until(lambda: len(asyncio.all_tasks()) <= before[0], "their tasks end")
        assert process.num_fds() <= before[1] + 2
