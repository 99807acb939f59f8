"""One sender against a scripted server: on schedule whatever the answers do, each request recorded."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from alexnet_client.errors import BadInput, Unavailable
from alexnet_client.fake import FakeServer
from alexnet_load.arrivals import parse_arrivals, schedule
from alexnet_load.run import Plan
from alexnet_load.sender import Sender


@pytest.fixture
async def server():
    async with FakeServer(max_batch_size=8) as running:
        yield running


async def sent(server, *, number=0, stop_after_s=None, stops=1, **plan):
    """The records of a run, in the order of their planned times, and the sender's tally."""
    plan = Plan(**{"target": server.target, "duration_s": 0.5, "timeout_s": 2.0, **plan})
    async with Sender(plan, number=number) as sender:
        await sender.prepare()
        running = asyncio.create_task(sender.run(time.monotonic()))
        if stop_after_s is not None:
            await asyncio.sleep(stop_after_s)
            for _ in range(stops):
                sender.stop()
        await running
        return sorted(sender.take()), sender.tally


async def test_what_is_planned_is_sent_when_it_is_planned(server):
    records, tally = await sent(server, arrivals="poisson:100")
    planned = schedule(parse_arrivals("poisson:100"), duration_s=0.5, seed=0).times_s
    assert [each.planned_s for each in records] == planned.tolist()
    assert all(each.late_s >= 0 and each.planned_s <= each.sent_s <= each.ended_s for each in records)
    assert {each.outcome for each in records} == {"ok"}
    assert sum(images * count for images, count in tally.batches.items()) == len(records) == len(planned)


async def test_requests_go_on_though_nothing_is_answered(server):
    server.delay_s = 1.0
    records, _ = await sent(server, arrivals="constant:40", batching={"max_in_flight": 64, "min_in_flight": 64})
    assert len(records) == 20
    assert max(each.sent_s for each in records) < 0.9 < min(each.ended_s for each in records)


async def test_what_waits_in_the_client_counts_from_its_planned_time_and_not_from_the_sent_time(server):
    """One request in flight, each takes 50 ms, ten come at once: the last one waits for nine others."""
    server.delay_s = 0.05
    batching = {"max_batch": 1, "min_in_flight": 1, "max_in_flight": 1}
    records, _ = await sent(server, arrivals="burst:10/10", batching=batching)
    response = [each.ended_s - each.planned_s for each in records]
    service = [each.ended_s - each.sent_s for each in records]
    assert max(response) >= 0.5
    assert all(0.05 <= each < 0.2 for each in service)
    assert max(each.late_s for each in records) < 0.2, "the sender itself is not to blame"


async def test_every_error_is_a_record_with_an_example(server):
    server.fail = (grpc.StatusCode.INVALID_ARGUMENT, "these pixels are wrong")
    records, tally = await sent(server, arrivals="constant:20", duration_s=0.2)
    assert [each.outcome for each in records] == ["bad_input"] * 4
    assert "these pixels are wrong" in tally.errors["bad_input"]
    assert all(each.sent_s <= each.ended_s for each in records)


async def test_a_request_that_never_left_counts_as_sent_when_that_was_clear(server):
    server.hang = True
    batching = {"max_batch": 1, "min_in_flight": 1, "max_in_flight": 1}
    records, _ = await sent(server, arrivals="burst:3/10", timeout_s=0.2, batching=batching)
    assert [each.outcome for each in records] == ["deadline_exceeded"] * 3
    assert sum(each.sent_s == each.ended_s for each in records) == 2


async def test_requests_have_the_sizes_of_the_mix(server):
    records, _ = await sent(server, arrivals="constant:100", sizes=((1, 0.5), (4, 0.5)))
    sizes = [each.images for each in records]
    assert set(sizes) == {1, 4}
    assert sum(each.images for each in server.requests) == sum(sizes)


async def test_a_recorded_trace_is_replayed_with_its_sizes(server, tmp_path):
    (tmp_path / "trace.csv").write_text("0.01,2\n0.05,1\n0.2,3\n")
    records, _ = await sent(server, arrivals=f"trace:{tmp_path / 'trace.csv'}")
    assert [(each.planned_s, each.images) for each in records] == [(0.01, 2), (0.05, 1), (0.2, 3)]


async def test_several_senders_send_each_request_once(server):
    parts = [
        await sent(server, number=number, senders=3, arrivals="poisson:100", duration_s=0.3) for number in range(3)
    ]
    planned = sorted(each.planned_s for records, _ in parts for each in records)
    assert planned == schedule(parse_arrivals("poisson:100"), duration_s=0.3, seed=0).times_s.tolist()


async def test_a_closed_loop_has_as_many_requests_under_way_as_callers(server):
    server.delay_s = 0.05
    batching = {"max_batch": 1, "min_in_flight": 64, "max_in_flight": 64}
    records, _ = await sent(server, arrivals="closed:4", batching=batching)
    ends = sorted(each.ended_s for each in records)
    begins = sorted(each.planned_s for each in records)
    assert len([each for each in begins if each < 0.04]) == 4
    assert all(begin >= end for begin, end in zip(begins[4:], ends, strict=False)), "nobody sends before an answer"
    assert 20 <= len(records) <= 44
    assert max(each.planned_s for each in records) < 0.5


async def test_the_callers_of_a_closed_loop_are_shared_out_among_the_senders(server):
    found = [await sent(server, number=each, senders=2, arrivals="closed:3", max_count=3) for each in range(2)]
    assert [len(records) for records, _ in found] == [2, 1]


@pytest.mark.parametrize("arrivals", ["poisson:200", "closed:2"])
async def test_a_run_ends_with_its_count(server, arrivals):
    records, _ = await sent(server, arrivals=arrivals, duration_s=30, max_count=7)
    assert len(records) == 7


@pytest.mark.parametrize("arrivals", ["constant:20", "closed:2"])
async def test_stopped_it_sends_nothing_more_and_waits_for_what_is_under_way(server, arrivals):
    server.delay_s = 0.1
    records, _ = await sent(server, arrivals=arrivals, duration_s=30, stop_after_s=0.2)
    assert records
    assert {each.outcome for each in records} == {"ok"}
    assert max(each.planned_s for each in records) < 1


async def test_stopped_twice_it_waits_for_nothing(server):
    server.hang = True
    records, _ = await sent(server, arrivals="constant:20", duration_s=30, stop_after_s=0.2, stops=2, timeout_s=20.0)
    assert {each.outcome for each in records} == {"cancelled"}
    assert max(each.ended_s for each in records) < 5


async def test_an_idle_sender_stops_at_once(server, tmp_path):
    (tmp_path / "trace.csv").write_text("0\n29\n")
    began = time.monotonic()
    records, _ = await sent(server, arrivals=f"trace:{tmp_path / 'trace.csv'}", duration_s=30, stop_after_s=0.1)
    assert time.monotonic() - began < 10
    assert len(records) == 1


async def test_a_dead_server_is_said_before_the_run(free_port):
    async with Sender(Plan(target=f"127.0.0.1:{free_port()}", timeout_s=0.3)) as sender:
        with pytest.raises(Unavailable, match="no server responds"):
            await sender.prepare()


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"arrivals": "sometimes:3"}, "constant:RATE, poisson:RATE"),
        ({"duration_s": 0.0}, "duration must be positive"),
        ({"images": "/no/such/directory"}, "no JPEG, PNG or WebP file"),
    ],
)
async def test_a_plan_that_makes_no_sense_is_said_before_the_run(server, plan, says):
    async with Sender(Plan(target=server.target, **plan)) as sender:
        with pytest.raises(BadInput, match=says):
            await sender.prepare()


async def test_what_was_asked_to_prepare_is_no_load(server):
    _, tally = await sent(server, arrivals="constant:10", duration_s=0.3)
    assert tally.attempts == {"ok": 3}
    assert tally.cpu_s > 0


async def test_nothing_is_left_behind(server):
    before = len(asyncio.all_tasks())
    await sent(server, arrivals="constant:50", stop_after_s=0.1)
    await asyncio.sleep(0.05)
    assert len(asyncio.all_tasks()) <= before


async def test_more_senders_than_callers_leave_some_without_work(server):
    records, _ = await sent(server, number=2, senders=3, arrivals="closed:2")
    assert records == []


async def test_what_the_client_never_answers_is_given_up_and_recorded(server, monkeypatch):
    monkeypatch.setattr("alexnet_load.sender.PATIENCE_S", 0.1)

    async def infer(self, images, **_):
        await asyncio.Event().wait()

    monkeypatch.setattr("alexnet_client.Client.infer", infer)
    records, _ = await sent(server, arrivals="constant:10", timeout_s=0.2)
    assert [each.outcome for each in records] == ["cancelled"] * 5


async def test_a_closed_loop_whose_requests_are_refused_at_once_can_be_stopped(server, monkeypatch):
    async def infer(self, images, **_):
        raise BadInput("it takes other pixels")

    monkeypatch.setattr("alexnet_client.Client.infer", infer)
    records, _ = await sent(server, arrivals="closed:2", duration_s=30, stop_after_s=0.1)
    assert {each.outcome for each in records} == {"bad_input"}
    assert max(each.planned_s for each in records) < 5


async def test_a_fault_of_the_sender_itself_is_no_short_run(server, monkeypatch):
    monkeypatch.setattr(Sender, "_start", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await sent(server, arrivals="constant:10")
