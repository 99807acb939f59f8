"""A stream of work: order kept, memory bounded, ends cleanly."""

from __future__ import annotations

import asyncio
import random

import pytest

from alexnet_client.ordered import in_order


async def test_answers_come_in_the_order_of_the_items_whatever_takes_how_long():
    chance = random.Random(1)

    async def work(item):
        await asyncio.sleep(chance.random() / 200)
        return item

    assert [answer async for answer in in_order(work, range(100), window=16)] == list(range(100))


async def test_no_more_items_are_taken_than_the_window():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    async def work(item):
        await asyncio.sleep(0)
        return item

    async for answer in in_order(work, items(), window=8):
        assert len(taken) - answer <= 8 + 1


async def test_items_may_come_asynchronously():
    async def items():
        for number in range(5):
            await asyncio.sleep(0)
            yield number

    async def work(item):
        return 2 * item

    assert [answer async for answer in in_order(work, items(), window=2)] == [0, 2, 4, 6, 8]


async def test_a_failure_is_raised_in_its_place_and_the_rest_is_cancelled():
    async def work(item):
        if item == 2:
            raise ValueError("two")
        if item > 2:
            await asyncio.Event().wait()
        return item

    before = len(asyncio.all_tasks())
    stream = in_order(work, range(100), window=8)
    assert [await anext(stream), await anext(stream)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        await anext(stream)
    assert len(asyncio.all_tasks()) == before


async def test_a_stream_that_is_left_early_leaves_no_tasks():
    async def work(item):
        return item

    before = len(asyncio.all_tasks())
    stream = in_order(work, range(100), window=8)
    async for _ in stream:
        break
    await stream.aclose()
    assert len(asyncio.all_tasks()) == before


@pytest.mark.parametrize("window", [1, 4])
async def test_a_source_may_wait_for_an_answer_before_it_gives_the_next_item(window):
    answered = asyncio.Queue()

    async def items():
        for number in range(5):
            yield number
            assert await answered.get() == number

    async def work(item):
        return item

    async with asyncio.timeout(5):
        async for answer in in_order(work, items(), window=window):
            answered.put_nowait(answer)
    assert answered.empty()


async def test_a_stream_that_is_left_while_its_source_has_no_item_leaves_no_tasks():
    closed = []

    async def items():
        try:
            yield 0
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async def work(item):
        return item

    before = len(asyncio.all_tasks())
    stream = in_order(work, items(), window=8)
    assert await anext(stream) == 0
    waiting = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await stream.aclose()
    assert (len(asyncio.all_tasks()), closed) == (before, [True])


async def test_a_source_that_fails_ends_the_stream_with_its_own_error():
    async def items():
        yield 0
        raise OSError("the disk is gone")

    async def work(item):
        await asyncio.Event().wait()

    before = len(asyncio.all_tasks())
    with pytest.raises(OSError, match="the disk is gone"):
        async for _ in in_order(work, items(), window=8):
            pass
    assert len(asyncio.all_tasks()) == before
