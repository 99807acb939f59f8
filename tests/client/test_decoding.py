"""Decoding on threads: bounded, within the deadline, stopped with the client."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from waiting import until

from alexnet_client import decoding
from alexnet_client.deadline import Deadline
from alexnet_client.decoding import Decoder
from alexnet_client.errors import Closed, DeadlineExceeded


@pytest.fixture
def blocked(monkeypatch):
    """(event that unblocks decoding, list of the images on threads)."""
    unblock, started = threading.Event(), []

    def load(image):
        started.append(image)
        assert unblock.wait(60)
        return np.zeros((224, 224, 3), np.uint8)

    monkeypatch.setattr(decoding, "load_pixels", load)
    yield unblock, started
    unblock.set()


def load(decoder, seconds=60.0):
    return asyncio.create_task(decoder.load("a.jpg", encoded=False, deadline=Deadline.after(seconds)))


async def test_a_thread_that_works_for_a_timed_out_call_keeps_its_slot(blocked):
    unblock, started = blocked
    decoder = Decoder(1)
    errors = await asyncio.gather(*(load(decoder, seconds=0.05) for _ in range(6)), return_exceptions=True)
    assert [type(each) for each in errors] == [DeadlineExceeded] * 6
    assert len(started) == 1, "the other calls never got the thread"
    unblock.set()
    assert len(await asyncio.gather(*(load(decoder) for _ in range(8)))) == 8, "all slots are free again"
    decoder.close()


async def test_calls_that_wait_for_a_thread_fail_when_the_decoder_is_closed(blocked):
    unblock, started = blocked
    decoder = Decoder(1)
    tasks = [load(decoder) for _ in range(4)]
    await until(lambda: started, "a thread decodes")
    await asyncio.sleep(0.01)
    decoder.close()
    unblock.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, Closed) for each in results] == [False, False, True, True]


async def test_a_thread_that_ends_after_the_event_loop_logs_nothing(blocked, caplog):
    unblock, started = blocked

    async def begin():
        task = load(decoder := Decoder(1))
        await until(lambda: started, "a thread decodes")
        assert not task.done()
        return decoder

    decoder = await asyncio.to_thread(lambda: asyncio.run(begin()))
    unblock.set()
    await asyncio.to_thread(decoder._pool.shutdown)
    assert caplog.records == []
