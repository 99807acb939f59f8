"""One sender and a fake server: requests are sent on schedule, and each one is recorded."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from waiting import until

from alexnet_client.errors import BadInput
from alexnet_client.fake import FakeServer
from alexnet_load.arrivals import parse_arrivals, schedule
from alexnet_load.run import Plan
from alexnet_load.sender import Sender


@pytest.fixture(autouse=True)
def fast_prepare(monkeypatch):
    """A full garbage collection takes long after other tests have imported torch."""
    monkeypatch.setattr("gc.collect", lambda: 0)


@pytest.fixture
async def server():
    async with FakeServer(max_batch_size=8) as running:
        yield running


async def sent(server, *, number=0, grace_s=1.0, stop_after_s=None, stops=1, **plan):
    """Records of a run in the order of their planned times, and the statistics of the sender."""
    plan = Plan(**{"target": server.target, "duration_s": 0.5, "timeout_s": 2.0, **plan})
    async with Sender(plan, number=number, grace_s=grace_s) as sender:
        await sender.prepare()
        running = asyncio.create_task(sender.run(time.monotonic()))
        if stop_after_s is not None:
            await asyncio.sleep(stop_after_s)
            for _ in range(stops):
                sender.stop()
        await running
        return sorted(sender.take_records()), sender.statistics


ONE_IN_FLIGHT = {"max_batch": 1, "min_in_flight": 1, "max_in_flight": 1}


async def test_requests_have_their_planned_times_and_sizes(server):
    records, statistics = await sent(server, arrivals="poisson:100", sizes=((1, 0.5), (4, 0.5)))
    planned = schedule(parse_arrivals("poisson:100"), duration_s=0.5, seed=0).times_s
    assert [each.planned_s for each in records] == planned.tolist()
    assert all(each.lag_s >= 0 and each.planned_s <= each.sent_s <= each.ended_s for each in records)
    assert {each.outcome for each in records} == {"ok"}
    assert {each.images for each in records} == {1, 4}
    assert statistics.attempts == {"ok": sum(statistics.batches.values())}, "without the requests of prepare()"
    assert statistics.images == sum(each.images for each in records) == sum(each.images for each in server.requests)
    assert statistics.cpu_s[0] > 0


async def test_requests_are_sent_although_none_is_answered(server):
    server.delay_s = 1.0
    records, _ = await sent(server, arrivals="constant:40", batching={"max_in_flight": 64, "min_in_flight": 64})
    assert len(records) == 20
    assert max(each.sent_s for each in records) < min(each.ended_s for each in records)


async def test_time_in_the_client_queue_is_part_of_the_response_time_but_not_of_the_service_time(server):
    """One request is in flight and takes 50 ms; of ten simultaneous requests the last one waits for nine others."""
    server.delay_s = 0.05
    records, _ = await sent(server, arrivals="burst:10/10", batching=ONE_IN_FLIGHT)
    response = [each.ended_s - each.planned_s for each in records]
    service = [each.ended_s - each.sent_s for each in records]
    assert max(response) >= 0.5
    assert min(service) >= 0.05
    assert sum(service) < sum(response) / 2


async def test_every_error_is_recorded_with_an_example(server):
    server.fail = (grpc.StatusCode.INVALID_ARGUMENT, "these pixels are wrong")
    records, statistics = await sent(server, arrivals="constant:20", duration_s=0.2)
    assert [each.outcome for each in records] == ["bad_input"] * 4
    assert "these pixels are wrong" in statistics.errors["bad_input"]
    assert all(each.sent_s <= each.ended_s for each in records)


async def test_a_request_that_was_not_sent_counts_as_sent_when_it_failed(server):
    server.hang = True
    records, _ = await sent(server, arrivals="burst:3/10", timeout_s=0.2, batching=ONE_IN_FLIGHT)
    assert [each.outcome for each in records] == ["deadline_exceeded"] * 3
    assert sum(each.sent_s == each.ended_s for each in records) in (1, 2), "one is in flight, another may follow it"


async def test_a_trace_is_replayed_with_its_sizes_and_an_idle_sender_stops_immediately(server, tmp_path):
    (tmp_path / "trace.csv").write_text("0,2\n0.05,1\n3599,3\n")
    records, _ = await sent(server, arrivals=f"trace:{tmp_path / 'trace.csv'}", duration_s=3600, stop_after_s=0.5)
    assert [(each.planned_s, each.images) for each in records] == [(0, 2), (0.05, 1)]


async def test_a_closed_loop_has_one_open_request_per_caller(server):
    server.delay_s = 0.05
    batching = {"max_batch": 1, "min_in_flight": 64, "max_in_flight": 64}
    records, _ = await sent(server, arrivals="closed:4", batching=batching)
    ends = sorted(each.ended_s for each in records)
    begins = sorted(each.planned_s for each in records)
    assert begins[3] < ends[0]
    assert all(begin >= end for begin, end in zip(begins[4:], ends, strict=False)), "it sends only after an answer"
    assert len(records) >= 8, "each caller sends repeatedly"
    assert max(begins) < 0.5


async def test_the_callers_of_a_closed_loop_are_divided_among_the_senders(server):
    server.delay_s = 5.0
    plan = {"arrivals": "closed:3", "duration_s": 0.1, "timeout_s": 0.3}
    found = [await sent(server, number=each, senders=4, **plan) for each in range(4)]
    assert [len(records) for records, _ in found] == [1, 1, 1, 0]


@pytest.mark.parametrize("arrivals", ["constant:20", "closed:2"])
async def test_stop_ends_sending_and_waits_for_open_requests(server, arrivals):
    server.delay_s = 0.1
    records, _ = await sent(server, arrivals=arrivals, duration_s=3600, stop_after_s=0.2)
    assert {each.outcome for each in records} == {"ok"}


async def test_the_second_stop_cancels_open_requests_and_leaves_no_tasks(server):
    server.hang = True
    before = len(asyncio.all_tasks())
    plan = {"arrivals": "constant:20", "duration_s": 3600, "timeout_s": 3600.0}
    records, _ = await sent(server, stop_after_s=0.2, stops=2, **plan)
    assert {each.outcome for each in records} == {"cancelled"}
    await until(lambda: len(asyncio.all_tasks()) <= before, "no tasks are left")


async def test_a_request_without_an_outcome_is_cancelled_after_its_deadline(server, monkeypatch):
    monkeypatch.setattr("alexnet_client.Client.infer", lambda *_, **__: asyncio.Event().wait())
    records, _ = await sent(server, arrivals="constant:10", timeout_s=0.2, grace_s=0.1)
    assert [each.outcome for each in records] == ["cancelled"] * 5


async def test_a_closed_loop_whose_requests_fail_immediately_can_be_stopped(server, monkeypatch):
    async def infer(self, images, **_):
        raise BadInput("wrong shape")

    monkeypatch.setattr("alexnet_client.Client.infer", infer)
    records, _ = await sent(server, arrivals="closed:2", duration_s=3600, stop_after_s=0.1)
    assert {each.outcome for each in records} == {"bad_input"}


async def test_an_error_of_the_sender_itself_is_raised(server, monkeypatch):
    monkeypatch.setattr(Sender, "_send", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await sent(server, arrivals="constant:10")
