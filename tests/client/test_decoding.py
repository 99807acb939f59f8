"""Decoding off the event loop: bounded, within the deadline, over when the client is."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from alexnet_client import decoding
from alexnet_client.deadline import Deadline
from alexnet_client.decoding import Decoders
from alexnet_client.errors import Closed, DeadlineExceeded

PIXELS = np.zeros((224, 224, 3), np.uint8)


@pytest.fixture
def slow(monkeypatch):
    """Decoding that works until ``let`` is set; ``at_work`` counts."""
    let, at_work = threading.Event(), []

    def load(image):
        at_work.append(image)
        assert let.wait(10)
        return PIXELS

    monkeypatch.setattr(decoding, "load_pixels", load)
    yield let, at_work
    let.set()


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  nobody signals what a thread does
            await asyncio.sleep(0.001)


def load(decoders, seconds=10.0):
    return asyncio.create_task(decoders.load("a.jpg", encoded=False, deadline=Deadline.after(seconds)))


async def test_who_gives_up_leaves_a_thread_that_still_works_and_its_place_is_not_given_away(slow):
    let, at_work = slow
    decoders = Decoders(1)
    impatient = [load(decoders, seconds=0.05) for _ in range(6)]
    found = await asyncio.gather(*impatient, return_exceptions=True)
    assert [type(each) for each in found] == [DeadlineExceeded] * 6
    assert len(at_work) == 1, "the others never came to a thread"
    patient = load(decoders)
    await asyncio.sleep(0.01)
    let.set()
    assert (await patient).shape == (1, 224, 224, 3)
    assert len(at_work) == 2
    decoders.close()


async def test_all_places_are_free_again_after_callers_gave_up(slow):
    let, _ = slow
    decoders = Decoders(1)
    for _ in range(3):
        tasks = [load(decoders) for _ in range(4)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    let.set()
    answers = await asyncio.gather(*(load(decoders) for _ in range(8)))
    assert len(answers) == 8
    decoders.close()


async def test_callers_who_wait_for_a_thread_are_told_when_the_client_closes(slow):
    let, at_work = slow
    decoders = Decoders(1)
    tasks = [load(decoders) for _ in range(4)]
    await until(lambda: len(at_work) == 1)
    await asyncio.sleep(0.01)
    decoders.close()
    let.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, Closed) for each in found] == [False, False, True, True]


async def test_a_thread_that_outlives_the_event_loop_says_nothing(slow, caplog):
    let, at_work = slow

    def elsewhere():
        async def run():
            load(decoders := Decoders(1))
            await until(lambda: at_work)
            return decoders

        return asyncio.run(run())

    decoders = await asyncio.to_thread(elsewhere)
    let.set()
    await asyncio.to_thread(decoders._pool.shutdown)
    assert caplog.records == []
