"""The batcher with a scripted ``send``: who shares a request, who gets what, and who is left alone."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from alexnet_client.answers import BatchAnswer
from alexnet_client.batcher import Batcher
from alexnet_client.batching import BatchOptions
from alexnet_client.deadline import Deadline
from alexnet_client.errors import (
    BadInput,
    Closed,
    DeadlineExceeded,
    QueueFull,
    RequestRejected,
    ServerFault,
    Unavailable,
)


class Wire:
    """Answers each image with its own number, when ``open`` is set."""

    def __init__(self):
        self.sizes: list[int] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        self.bad: set[int] = set()
        self.lose = 0
        self.cancelled = 0

    async def send(self, parts, deadline):
        numbers = np.concatenate(parts)[:, 0].astype(np.float32)
        self.sizes.append(len(numbers))
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        if self.bad & set(numbers.astype(int)):
            raise BadInput("one of them is broken")
        rows = numbers[: len(numbers) - self.lose, None]
        return BatchAnswer(rows, rows, "1")


def image(number):
    return np.array([[number]], np.int64)


def batcher(wire, *, limit=4, **options):
    options = BatchOptions(**{"max_batch": 4, "max_delay_s": 0.005, **options})
    return Batcher(wire.send, options=options, capacity=lambda: limit, on_event=lambda event: None)


def soon(seconds=5.0):
    return Deadline.after(seconds)


async def gather(under, numbers, **how):
    return await asyncio.gather(*(under.submit(image(each), soon()) for each in numbers), **how)


async def until(condition):
    give_up = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0)


async def test_callers_who_come_together_leave_together_and_get_their_own_rows():
    wire = Wire()
    answers = await gather(batcher(wire), range(10))
    assert [answer.logits[0, 0] for answer in answers] == list(range(10))
    assert wire.sizes == [4, 4, 2]


async def test_a_lone_caller_waits_for_nobody():
    wire = Wire()
    under = batcher(wire, max_delay_s=60)
    await under.submit(image(1), soon())
    assert wire.sizes == [1]


async def test_a_part_of_a_batch_leaves_after_the_delay():
    wire = Wire()
    wire.open.clear()
    under = batcher(wire, max_delay_s=0.02)
    first = asyncio.create_task(under.submit(image(1), soon()))
    await until(lambda: wire.sizes == [1])
    second = asyncio.create_task(under.submit(image(2), soon()))
    await until(lambda: wire.sizes == [1, 1])
    wire.open.set()
    assert [(await task).logits[0, 0] for task in (first, second)] == [1, 2]


async def test_no_more_requests_fly_than_the_limit_and_the_rest_fills_batches():
    wire = Wire()
    wire.open.clear()
    under = batcher(wire, limit=1)
    tasks = [asyncio.create_task(under.submit(image(number), soon())) for number in range(9)]
    await until(lambda: wire.sizes)
    await asyncio.sleep(0.02)
    assert (wire.sizes, under.queued, under.in_flight) == ([4], 5, 1)
    wire.open.set()
    await asyncio.gather(*tasks)
    assert wire.sizes == [4, 4, 1]
    assert (under.queued, under.in_flight) == (0, 0)


async def test_who_waits_for_room_on_the_wire_goes_when_there_is_more():
    wire, capacity = Wire(), [1]
    wire.open.clear()
    under = Batcher(wire.send, options=BatchOptions(), capacity=lambda: capacity[0], on_event=lambda event: None)
    tasks = [asyncio.create_task(under.submit(image(1), soon()))]
    await until(lambda: wire.sizes == [1])
    tasks.append(asyncio.create_task(under.submit(image(2), soon())))
    await until(lambda: under.queued == 1)
    capacity[0] = 2
    under.wake()
    await until(lambda: wire.sizes == [1, 1])
    wire.open.set()
    assert [answer.logits[0, 0] for answer in await asyncio.gather(*tasks)] == [1, 2]


async def test_parts_of_several_images_are_not_torn_apart():
    wire = Wire()
    under = batcher(wire)
    parts = [np.array([[1], [2], [3]]), np.array([[4], [5]])]
    one, two = await asyncio.gather(*(under.submit(part, soon()) for part in parts))
    assert one.logits.ravel().tolist() == [1, 2, 3]
    assert two.logits.ravel().tolist() == [4, 5]
    assert wire.sizes == [3, 2]


async def test_cancelling_one_caller_leaves_the_others_of_its_batch_right():
    wire = Wire()
    wire.open.clear()
    under = batcher(wire)
    tasks = [asyncio.create_task(under.submit(image(number), soon())) for number in range(4)]
    await until(lambda: wire.sizes == [4])
    tasks[1].cancel()
    await asyncio.sleep(0)
    wire.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers.pop(1), asyncio.CancelledError)
    assert [answer.logits[0, 0] for answer in answers] == [0, 2, 3]
    assert wire.cancelled == 0


async def test_a_caller_cancelled_in_the_queue_never_travels_and_gives_its_room_back():
    wire = Wire()
    wire.open.clear()
    under = batcher(wire, limit=1)
    tasks = [asyncio.create_task(under.submit(image(number), soon())) for number in range(6)]
    await until(lambda: wire.sizes == [4])
    tasks[4].cancel()
    await until(lambda: under.queued == 1)
    wire.open.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert wire.sizes == [4, 1]


async def test_a_request_that_nobody_waits_for_any_more_is_cancelled():
    wire = Wire()
    wire.open.clear()
    under = batcher(wire)
    tasks = [asyncio.create_task(under.submit(image(number), soon())) for number in range(3)]
    await until(lambda: wire.sizes == [3])
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: under.in_flight == 0)
    assert wire.cancelled == 1


async def test_each_caller_of_a_failed_batch_gets_an_exception_of_its_own():
    wire = Wire()
    wire.error = Unavailable("gone")
    found = await gather(batcher(wire), range(4), return_exceptions=True)
    assert [type(each) for each in found] == [Unavailable] * 4
    assert len({id(each) for each in found}) == 4
    assert all(each.__cause__ is wire.error for each in found)


async def test_one_broken_image_is_refused_alone():
    wire = Wire()
    wire.bad = {2}
    found = await gather(batcher(wire), range(4), return_exceptions=True)
    assert isinstance(found.pop(2), BadInput)
    assert [answer.logits[0, 0] for answer in found] == [0, 1, 3]
    assert wire.sizes == [4, 2, 2, 1, 1], "halves, not one by one"


async def test_halves_of_a_refused_batch_take_one_place_in_flight():
    wire, flying, most = Wire(), 0, 0
    wire.bad = {5, 9}

    async def send(parts, deadline):
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        try:
            await asyncio.sleep(0)
            return await wire.send(parts, deadline)
        finally:
            flying -= 1

    under = Batcher(send, options=BatchOptions(), capacity=lambda: 1, on_event=lambda event: None)
    found = await gather(under, range(16), return_exceptions=True)
    assert [number for number, each in enumerate(found) if isinstance(each, BadInput)] == [5, 9]
    assert [each.logits[0, 0] for each in found if not isinstance(each, BadInput)] == [
        *range(5),
        6,
        7,
        8,
        *range(10, 16),
    ]
    assert (most, under.in_flight) == (1, 0)


async def test_what_no_image_is_to_blame_for_is_not_sent_again_in_halves():
    wire = Wire()
    wire.error = RequestRejected("unknown model")
    found = await gather(batcher(wire), range(4), return_exceptions=True)
    assert [type(each) for each in found] == [RequestRejected] * 4
    assert wire.sizes == [4]


async def test_images_of_callers_who_gave_up_are_not_sent_again_in_halves():
    wire = Wire()
    wire.bad = {0}
    wire.open.clear()
    under = batcher(wire)
    tasks = [asyncio.create_task(under.submit(image(number), soon())) for number in range(4)]
    await until(lambda: wire.sizes == [4])
    for task in tasks[2:]:
        task.cancel()
    await asyncio.sleep(0)
    wire.open.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in found] == [BadInput, BatchAnswer, asyncio.CancelledError, asyncio.CancelledError]
    assert wire.sizes == [4, 2, 1, 1]


async def test_closing_while_halves_are_sent_tells_every_caller():
    wire = Wire()
    wire.bad = {0}
    wire.open.clear()
    under = batcher(wire)
    tasks = [asyncio.create_task(under.submit(image(number), soon())) for number in range(4)]
    await until(lambda: wire.sizes == [4])
    wire.open.set()
    wire.open.clear()  # the first request goes on, the next one waits
    await until(lambda: wire.sizes == [4, 2])
    await under.close()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in found] == [Closed] * 4


async def test_answers_are_counted_before_any_is_handed_out():
    wire = Wire()
    wire.lose = 1
    found = await gather(batcher(wire), range(4), return_exceptions=True)
    assert [type(each) for each in found] == [ServerFault] * 4


async def test_the_clients_own_fault_is_said_to_every_caller(caplog):
    wire = Wire()
    wire.error = ZeroDivisionError("a bug")
    found = await gather(batcher(wire), range(2), return_exceptions=True)
    assert all("the client itself failed: ZeroDivisionError" in str(each) for each in found)


async def test_a_full_queue_says_so_at_once_or_is_waited_for():
    wire = Wire()
    wire.open.clear()
    under = batcher(wire, limit=1, max_batch=1, max_queue_images=2, wait_when_full=False)
    tasks = [asyncio.create_task(under.submit(image(number), soon())) for number in range(1)]
    await until(lambda: wire.sizes == [1])
    tasks += [asyncio.create_task(under.submit(image(number), soon())) for number in range(1, 3)]
    await until(lambda: under.queued == 2)
    with pytest.raises(QueueFull, match=r"2 images .* wait in this process already"):
        await under.submit(image(3), soon())
    wire.open.set()
    assert [answer.logits[0, 0] for answer in await asyncio.gather(*tasks)] == [0, 1, 2]


async def test_a_further_part_of_a_call_waits_for_room_though_calls_do_not():
    wire = Wire()
    wire.open.clear()
    under = batcher(wire, limit=1, max_batch=1, max_queue_images=1, wait_when_full=False)
    tasks = [asyncio.create_task(under.submit(image(0), soon()))]
    await until(lambda: wire.sizes == [1])
    tasks += [asyncio.create_task(under.submit(image(number), soon(), more=number > 1)) for number in range(1, 4)]
    await until(lambda: under.queued == 1)
    wire.open.set()
    assert [answer.logits[0, 0] for answer in await asyncio.gather(*tasks)] == [0, 1, 2, 3]


async def test_callers_wait_in_order_for_room_in_the_queue():
    wire = Wire()
    under = batcher(wire, limit=1, max_batch=1, max_queue_images=1)
    answers = await gather(under, range(20))
    assert [answer.logits[0, 0] for answer in answers] == list(range(20))
    assert wire.sizes == [1] * 20


async def test_room_is_counted_in_bytes_too_and_an_oversized_caller_is_let_in_alone():
    wire = Wire()
    under = batcher(wire, max_queue_bytes=8)
    large = np.arange(3).reshape(3, 1)
    assert large.nbytes > 8
    assert (await under.submit(large, soon())).logits.ravel().tolist() == [0, 1, 2]


async def test_a_deadline_ends_the_wait_for_room_in_the_queue():
    wire = Wire()
    wire.open.clear()
    under = batcher(wire, limit=1, max_batch=1, max_queue_images=1)
    tasks = [asyncio.create_task(under.submit(image(0), soon()))]
    await until(lambda: wire.sizes == [1])
    tasks.append(asyncio.create_task(under.submit(image(1), soon())))
    await until(lambda: under.queued == 1)
    with pytest.raises(DeadlineExceeded, match="waiting for room in the queue"):
        await under.submit(image(2), soon(0.02))
    wire.open.set()
    await asyncio.gather(*tasks)


async def test_a_deadline_holds_though_nothing_ever_answers():
    wire = Wire()
    wire.open.clear()
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.05 s"):
        await batcher(wire).submit(image(1), soon(0.05))
    assert time.monotonic() - began < 1


async def test_the_latest_deadline_of_a_batch_is_the_requests():
    wire, deadlines = Wire(), []

    async def send(parts, deadline):
        deadlines.append(deadline.timeout_s)
        return await wire.send(parts, deadline)

    under = Batcher(send, options=BatchOptions(), capacity=lambda: 1, on_event=lambda event: None)
    await asyncio.gather(*(under.submit(image(each), soon(each + 1.0)) for each in range(3)))
    assert deadlines == [3.0]


async def test_closing_tells_who_waits_and_who_flies():
    wire = Wire()
    wire.open.clear()
    under = batcher(wire, limit=1)
    tasks = [asyncio.create_task(under.submit(image(number), soon())) for number in range(6)]
    await until(lambda: wire.sizes == [4])
    await under.close()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in found] == [Closed] * 6
    with pytest.raises(Closed):
        await under.submit(image(9), soon())


async def test_closing_tells_who_waits_for_room_in_the_queue():
    wire = Wire()
    wire.open.clear()
    under = batcher(wire, limit=1, max_batch=1, max_queue_images=1)
    tasks = [asyncio.create_task(under.submit(image(number), soon())) for number in range(6)]
    await until(lambda: wire.sizes == [1])
    await under.close()
    found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 2)
    assert [type(each) for each in found] == [Closed] * 6
    assert under.queued == 0


async def test_two_thousand_callers_of_whom_half_give_up_leave_nothing_behind():
    wire = Wire()
    under = batcher(wire, max_batch=32, limit=2)
    before = len(asyncio.all_tasks())
    tasks = [asyncio.create_task(under.submit(image(number), soon())) for number in range(2000)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in found[::2])
    assert [each.logits[0, 0] for each in found[1::2]] == list(range(1, 2000, 2))
    await until(lambda: under.in_flight == 0)
    assert under.queued == 0
    assert len(asyncio.all_tasks()) == before


async def test_files_count_with_their_contents(monkeypatch):
    monkeypatch.setattr(Wire, "send", lambda self, parts, deadline: self.open.wait())
    wire = Wire()
    wire.open.clear()
    under = batcher(wire, limit=1, max_batch=1, max_queue_bytes=1500, wait_when_full=False)
    file = np.array([[b"x" * 1000]], object)
    tasks = [asyncio.create_task(under.submit(file, soon()))]
    await until(lambda: under.in_flight == 1)
    tasks.append(asyncio.create_task(under.submit(file, soon())))
    await until(lambda: under.queued == 1)
    with pytest.raises(QueueFull, match="1,000 bytes"):
        await under.submit(file, soon())
    await under.close()
    await asyncio.gather(*tasks, return_exceptions=True)
