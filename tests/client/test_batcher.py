"""The batcher with a fake ``send``: which calls share a request, which results and errors they get, cancellation."""

from __future__ import annotations

import asyncio
import re

import numpy as np
import pytest
from waiting import until

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
from alexnet_client.results import BatchResult


class Server:
    """Returns the number of each image, while ``open`` is set."""

    def __init__(self):
        self.sizes: list[int] = []
        self.deadlines: list[float] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        self.bad: set[int] = set()
        self.lose = self.cancelled = self.in_flight = self.max_in_flight = 0

    async def send(self, parts, deadline):
        numbers = np.concatenate(parts)[:, 0].astype(np.float32)
        self.sizes.append(len(numbers))
        self.deadlines.append(deadline.timeout_s)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1
        if self.error is not None:
            raise self.error
        if self.bad & set(numbers.astype(int)):
            raise BadInput("an image is invalid")
        rows = numbers[: len(numbers) - self.lose, None]
        return BatchResult(rows, rows, "1")


@pytest.fixture
async def server():
    return Server()


@pytest.fixture
async def closed_server(server):
    """A server that sends no response until ``open`` is set."""
    server.open.clear()
    return server


def create(server, *, limit=4, **options):
    options = BatchOptions(**{"max_batch": 4, "max_delay_s": 0.005, **options})
    current = limit if callable(limit) else lambda: limit
    return Batcher(server.send, options=options, concurrency_limit=current, on_event=lambda event: None)


def submit(batcher, number, seconds=60.0, **how):
    return asyncio.create_task(batcher.submit(np.array([[number]]), Deadline.after(seconds), **how))


async def submit_all(batcher, numbers):
    return await results_of([submit(batcher, each) for each in numbers])


async def results_of(tasks):
    return await asyncio.gather(*tasks, return_exceptions=True)


async def sent(server, *sizes):
    await until(lambda: server.sizes == list(sizes), f"batches of {sizes} are sent")


def numbers(results):
    """The numbers of the calls that have a result."""
    return [each.logits[0, 0] for each in results if isinstance(each, BatchResult)]


def places(results, kind):
    return [place for place, each in enumerate(results) if isinstance(each, kind)]


async def fill(server, **options):
    """A batcher with one call in flight and one that fills its queue: (batcher, calls)."""
    batcher = create(server, limit=1, max_batch=1, max_queue_images=1, **options)
    calls = [submit(batcher, 0)]
    await sent(server, 1)
    calls.append(submit(batcher, 1))
    await until(lambda: batcher.queued == 1, "the queue is full")
    return batcher, calls


async def test_simultaneous_calls_share_batches_and_get_their_own_rows(server):
    assert numbers(await submit_all(create(server), range(10))) == list(range(10))
    assert server.sizes == [4, 4, 2]


async def test_an_incomplete_batch_waits_for_the_delay_while_a_request_is_in_flight(closed_server):
    batcher = create(closed_server, max_delay_s=0.2)
    batcher._latency_s = 1.0  # the delay is at most a quarter of the latency
    tasks = [submit(batcher, 1)]
    await sent(closed_server, 1)
    tasks.append(submit(batcher, 2))
    for _ in range(3):
        await asyncio.sleep(0)
    assert batcher.queued == 1
    await sent(closed_server, 1, 1)
    closed_server.open.set()
    assert numbers(await results_of(tasks)) == [1, 2]


async def test_the_concurrency_limit_bounds_batches_in_flight_and_waiting_calls_fill_the_next_batches(closed_server):
    batcher = create(closed_server, limit=1)
    tasks = [submit(batcher, number) for number in range(9)]
    await sent(closed_server, 4)
    await asyncio.sleep(0.02)
    assert (closed_server.sizes, batcher.queued, batcher.in_flight) == ([4], 5, 1)
    closed_server.open.set()
    await asyncio.gather(*tasks)
    assert closed_server.sizes == [4, 4, 1]
    assert (batcher.queued, batcher.in_flight) == (0, 0)


async def test_queued_calls_are_sent_when_the_concurrency_limit_grows(closed_server):
    limit = [1]
    batcher = create(closed_server, limit=lambda: limit[0])
    tasks = [submit(batcher, number) for number in range(5)]
    await sent(closed_server, 4)
    limit[0] = 2
    batcher.wake()
    await sent(closed_server, 4, 1)
    closed_server.open.set()
    assert numbers(await results_of(tasks)) == [0, 1, 2, 3, 4]


async def test_the_images_of_a_call_stay_together(server):
    batcher = create(server)
    parts = [np.array([[1], [2], [3]]), np.array([[4], [5]])]
    one, two = await asyncio.gather(*(batcher.submit(part, Deadline.after(60)) for part in parts))
    assert (one.logits.ravel().tolist(), two.logits.ravel().tolist()) == ([1, 2, 3], [4, 5])
    assert server.sizes == [3, 2]


async def test_cancelled_calls_leave_the_queue_and_do_not_affect_the_others_of_their_batch(closed_server):
    batcher = create(closed_server, limit=1)
    tasks = [submit(batcher, number) for number in range(6)]
    await sent(closed_server, 4)
    for task in (tasks[1], tasks[4]):
        task.cancel()
    await until(lambda: batcher.queued == 1, "the call leaves the queue")
    closed_server.open.set()
    results = await results_of(tasks)
    assert places(results, asyncio.CancelledError) == [1, 4]
    assert numbers(results) == [0, 2, 3, 5]
    assert (closed_server.sizes, closed_server.cancelled) == ([4, 1], 0)


async def test_a_batch_is_cancelled_when_all_its_calls_are(closed_server):
    batcher = create(closed_server)
    tasks = [submit(batcher, number) for number in range(3)]
    await sent(closed_server, 3)
    for task in tasks:
        task.cancel()
    await results_of(tasks)
    await until(lambda: batcher.in_flight == 0, "the batch ends")
    assert closed_server.cancelled == 1


@pytest.mark.parametrize(
    ("cause", "value", "expected"),
    [
        ("error", Unavailable("gone"), "^gone"),
        ("error", RequestRejected("unknown model"), "^unknown model"),
        ("error", ZeroDivisionError("a bug"), "internal error of the client: ZeroDivisionError"),
        ("lose", 1, "3 rows for 4 images"),
    ],
)
async def test_each_call_of_a_failed_batch_gets_its_own_exception(server, caplog, cause, value, expected):
    setattr(server, cause, value)
    errors = await submit_all(create(server), range(4))
    assert all(re.search(expected, str(each)) for each in errors)
    assert {type(each) for each in errors} <= {Unavailable, RequestRejected, ServerFault}
    assert len({id(each) for each in errors}) == 4
    assert server.sizes == [4], "only invalid images cause a second request"


async def test_a_batch_with_invalid_images_is_split_in_halves_until_only_their_calls_fail(server):
    server.bad = {5, 9}
    batcher = create(server, limit=1, max_batch=16)
    results = await submit_all(batcher, range(16))
    assert places(results, BadInput) == [5, 9]
    assert numbers(results) == [*range(5), 6, 7, 8, *range(10, 16)]
    assert server.sizes == [16, 8, 4, 4, 2, 1, 1, 2, 8, 4, 2, 1, 1, 2, 4]
    assert (server.max_in_flight, batcher.in_flight) == (1, 0), "the concurrency limit applies to the halves"


async def test_the_halves_of_a_rejected_batch_do_not_contain_cancelled_calls(closed_server):
    closed_server.bad = {0}
    batcher = create(closed_server)
    tasks = [submit(batcher, number) for number in range(4)]
    await sent(closed_server, 4)
    for task in tasks[2:]:
        task.cancel()
    await asyncio.sleep(0)
    closed_server.open.set()
    results = await results_of(tasks)
    assert [type(each) for each in results] == [BadInput, BatchResult, asyncio.CancelledError, asyncio.CancelledError]
    assert closed_server.sizes == [4, 2, 1, 1]


async def test_without_waiting_a_full_queue_rejects_new_calls_but_no_further_part_of_an_accepted_one(closed_server):
    batcher, calls = await fill(closed_server, wait_when_full=False)
    calls += [submit(batcher, number, more=True) for number in (2, 3)]
    with pytest.raises(QueueFull, match="client queue is full: 1 of 1 images"):
        await submit(batcher, 4)
    closed_server.open.set()
    assert numbers(await results_of(calls)) == [0, 1, 2, 3]


async def test_calls_wait_for_a_full_queue_until_their_deadline_and_are_accepted_in_order(closed_server):
    batcher, calls = await fill(closed_server)
    with pytest.raises(DeadlineExceeded, match=r"deadline of 0\.02 s passed while waiting for a place in the queue"):
        await submit(batcher, 99, seconds=0.02)
    calls += [submit(batcher, number) for number in range(2, 20)]
    closed_server.open.set()
    assert numbers(await results_of(calls)) == list(range(20))
    assert closed_server.sizes == [1] * 20


async def test_the_queue_is_also_limited_in_bytes_and_accepts_a_call_of_any_size_if_it_is_empty(closed_server):
    batcher = create(closed_server, limit=1, max_batch=1, max_queue_bytes=900, wait_when_full=False)
    file = np.array([[b"7".rjust(1000)]], object)
    calls = []
    for in_flight_and_queued in ((1, 0), (1, 1)):
        calls.append(asyncio.create_task(batcher.submit(file, Deadline.after(60))))
        await until(lambda: (batcher.in_flight, batcher.queued) == in_flight_and_queued, "accepted")  # noqa: B023
    with pytest.raises(QueueFull, match="1,000 of 900 bytes"):
        await batcher.submit(file, Deadline.after(60))
    closed_server.open.set()
    assert numbers(await results_of(calls)) == [7, 7]


async def test_a_batch_has_the_latest_deadline_of_its_calls_and_each_call_ends_at_its_own(closed_server):
    batcher = create(closed_server)
    tasks = [submit(batcher, 0, seconds=0.05), submit(batcher, 1, seconds=60)]
    with pytest.raises(DeadlineExceeded, match=r"no response within 0\.05 s"):
        await tasks[0]
    closed_server.open.set()
    assert numbers(await results_of(tasks)) == [1]
    assert closed_server.deadlines == [60]


@pytest.mark.parametrize("max_queue_images", [4096, 1], ids=["queued", "waiting for the queue"])
async def test_closing_fails_all_calls(closed_server, max_queue_images):
    batcher = create(closed_server, limit=1, max_queue_images=max_queue_images)
    tasks = [submit(batcher, number) for number in range(6)]
    await until(lambda: closed_server.sizes, "the first batch is sent")
    await batcher.close()
    assert places(await results_of([*tasks, submit(batcher, 9)]), Closed) == [0, 1, 2, 3, 4, 5, 6]
    assert batcher.queued == 0


async def test_closing_while_halves_are_sent_fails_all_calls(closed_server):
    closed_server.bad = {0}
    batcher = create(closed_server)
    tasks = [submit(batcher, number) for number in range(4)]
    await sent(closed_server, 4)
    closed_server.open.set()
    closed_server.open.clear()  # the first request continues, the next one waits
    await sent(closed_server, 4, 2)
    await batcher.close()
    assert places(await results_of(tasks), Closed) == [0, 1, 2, 3]


async def test_two_thousand_calls_of_which_half_are_cancelled_leave_nothing_behind(server):
    batcher = create(server, max_batch=32, limit=2)
    before = len(asyncio.all_tasks())
    tasks = [submit(batcher, number) for number in range(2000)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await results_of(tasks)
    assert places(results, asyncio.CancelledError) == list(range(0, 2000, 2))
    assert numbers(results) == list(range(1, 2000, 2))
    await until(lambda: batcher.in_flight == 0, "the last batch ends")
    assert (batcher.queued, len(asyncio.all_tasks())) == (0, before)
