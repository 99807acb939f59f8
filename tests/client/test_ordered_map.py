"""Concurrent processing of a stream: order, bounded memory, cleanup."""

from __future__ import annotations

import asyncio
import random

import pytest
from waiting import until

from alexnet_client.ordered_map import map_in_order


async def double(item):
    return 2 * item


@pytest.fixture
async def no_task_left():
    """The test must leave no task."""
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() - before - {asyncio.current_task()} == set()


async def test_results_have_the_order_of_the_items_and_at_most_window_items_are_taken():
    rng, taken = random.Random(1), []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    async def work(item):
        await asyncio.sleep(rng.random() / 200)
        return item

    results = []
    async for result in map_in_order(work, items(), window=16):
        assert len(taken) - result <= 16
        results.append(result)
    assert results == list(range(100))


async def test_an_error_is_raised_in_its_place_and_the_rest_is_cancelled(no_task_left):
    async def work(item):
        if item == 2:
            raise ValueError("two")
        if item > 2:
            await asyncio.Event().wait()
        return item

    stream = map_in_order(work, range(100), window=8)
    assert [await anext(stream), await anext(stream)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        await anext(stream)


@pytest.mark.parametrize("window", [1, 4])
async def test_a_source_may_wait_for_a_result_before_its_next_item(window):
    results = asyncio.Queue()

    async def items():
        for number in range(5):
            yield number
            assert await results.get() == 2 * number

    async with asyncio.timeout(60):
        async for result in map_in_order(double, items(), window=window):
            results.put_nowait(result)
    assert results.empty()


async def test_a_stream_that_is_closed_while_its_source_waits_closes_the_source(no_task_left):
    waiting, closed = [], []

    async def items():
        try:
            yield 0
            waiting.append(True)
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    stream = map_in_order(double, items(), window=8)
    assert await anext(stream) == 0
    task = asyncio.create_task(anext(stream))
    await until(lambda: waiting, "the source waits")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await stream.aclose()
    assert closed == [True]


async def test_an_error_of_the_source_ends_the_stream(no_task_left):
    async def items():
        yield 0
        raise OSError("the disk failed")

    async def work(item):
        await asyncio.Event().wait()

    with pytest.raises(OSError, match="the disk failed"):
        async for _ in map_in_order(work, items(), window=8):
            pass
