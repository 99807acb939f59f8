"""``FakeServer``: does what it is told, and refuses what a real server refuses."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest

from alexnet_client import BadInput, Client, Connection, DeadlineExceeded, Overloaded, ServerFault, Unavailable
from alexnet_client.codec import decode_response, encode_request
from alexnet_client.deadline import Deadline
from alexnet_client.fake import FakeServer, Step
from alexnet_client.images import BLANK_FILE
from alexnet_client.transport import Transport

CHEESE = Step(fail=(grpc.StatusCode.INTERNAL, "out of cheese"))


def images(*reds: int) -> np.ndarray:
    return np.stack([np.full((224, 224, 3), red, np.uint8) for red in reds])


def request(*reds: int, model="alexnet", name="pixels", outputs=("logits",), **options):
    return encode_request(model, {name: images(*reds)}, outputs, **options)


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  the server tells nobody
            await asyncio.sleep(0.002)


@pytest.fixture
async def server():
    async with FakeServer(labels=("cat", "dog", "bird: small")) as server:
        yield server


@pytest.fixture
async def connect(server):
    """Makes a function that sends a request on a connection of its own."""
    opened = []

    def make():
        transport = Transport(server.target)
        opened.append(transport)
        return lambda request, timeout_s=5.0: transport.infer(request, Deadline.after(timeout_s))

    yield make
    for transport in opened:
        await transport.close()


@pytest.fixture
def ask(connect):
    return connect()


async def test_an_answer_tells_which_image_it_belongs_to(ask):
    answer = decode_response(await ask(request(0, 5, 4, outputs=("logits", "probabilities"))))
    assert answer["logits"].argmax(1).tolist() == [0, 2, 1]
    assert answer["probabilities"].sum(1) == pytest.approx(1)


async def test_class_names_come_best_first_and_no_more_than_asked_for(ask):
    answer = decode_response(await ask(request(1, 2, classes=2)))
    assert answer["logits"].tolist() == [
        [b"5.000000:1:dog", b"0.000000:0:cat"],
        [b"5.000000:2:bird: small", b"0.000000:0:cat"],
    ]


async def test_a_request_is_remembered_without_its_images(server):
    async with Client(server.target, connection=Connection(metadata=(("key", "secret"),)), timeout_s=2) as client:
        await client.classify(images(1)[0])
    work, labels = server.requests
    assert (work.images, work.nbytes, work.input_name, work.model_version) == (1, 150_528, "pixels", "")
    assert 1_000_000 < work.parameters["timeout"] <= 2_000_000
    assert ("key", "secret") in work.metadata
    assert not work.asks_labels
    assert labels.asks_labels
    assert labels.model_version == "1"


async def test_no_more_than_the_latest_requests_are_remembered(server, ask):
    server.requests.extend([None] * 10_000)
    await ask(request(1))
    assert len(server.requests) == 10_000
    assert server.requests[-1].images == 1


async def test_an_inference_takes_as_long_as_it_is_told_to(server, ask):
    server.delay_s = 0.05
    server.next(Step(delay_s=0.05))
    started = time.monotonic()
    await ask(request(1))
    assert time.monotonic() - started >= 0.1


async def test_steps_are_taken_in_order_one_a_request_and_then_all_is_well(server, ask):
    server.next(CHEESE, Step(), times=2)
    outcomes = []
    for _ in range(5):
        try:
            await ask(request(1))
            outcomes.append("ok")
        except ServerFault:
            outcomes.append("fault")
    assert outcomes == ["fault", "ok", "fault", "ok", "ok"]


async def test_a_failure_that_is_set_stays_until_it_is_mended(server, ask):
    server.fail = (grpc.StatusCode.INTERNAL, "out of cheese")
    for _ in range(3):
        with pytest.raises(ServerFault, match="out of cheese"):
            await ask(request(1))
    server.fail = None
    await ask(request(1))


async def test_a_function_chooses_by_the_request(server, ask):
    server.choose = lambda received: CHEESE if received.images > 1 else Step()
    await ask(request(1))
    with pytest.raises(ServerFault):
        await ask(request(1, 1))


async def test_an_answer_can_be_mangled(server, ask):
    server.next(Step(mangle=lambda response: response.raw_output_contents.pop()))
    with pytest.raises(ServerFault, match="announces 1 outputs and carries 0"):
        decode_response(await ask(request(1)))


async def test_a_request_that_hangs_is_worked_on_until_its_caller_gives_up(server, ask):
    server.hang = True
    call = asyncio.create_task(ask(request(1), 0.3))
    await until(lambda: server.working == 1)
    with pytest.raises(DeadlineExceeded):
        await call
    await until(lambda: server.working == 0)


async def test_a_cut_connection_takes_down_its_own_calls_only(server, connect):
    one, other = connect(), connect()
    server.next(Step(hang=True), Step(delay_s=0.2), Step(cut=True))
    lost = asyncio.create_task(one(request(1)))
    await until(lambda: server.working == 1)
    kept = asyncio.create_task(other(request(2)))
    await until(lambda: server.working == 2)
    for call in (one(request(1)), lost):
        with pytest.raises(Unavailable):
            await call
    assert decode_response(await kept)["logits"].argmax() == 2
    assert (await one(request(1))).model_version == "1"


async def test_only_so_many_are_worked_on_at_a_time_and_a_full_queue_refuses_as_triton_does(server, ask):
    server.at_once, server.queue_size, server.delay_s = 2, 1, 0.1
    calls = [asyncio.create_task(ask(request(1))) for _ in range(3)]
    await until(lambda: (server.working, server.queued) == (2, 1))
    with pytest.raises(Overloaded, match="Exceeds maximum queue size"):
        await ask(request(1))
    await asyncio.gather(*calls)
    assert (server.working, server.queued) == (0, 0)


async def test_one_who_gives_up_waiting_leaves_its_place_to_others(server, ask):
    server.at_once = 1
    server.next(Step(delay_s=0.2))
    first = asyncio.create_task(ask(request(1)))
    await until(lambda: server.working == 1)
    with pytest.raises(DeadlineExceeded):
        await ask(request(1), 0.05)
    await asyncio.gather(first, ask(request(1)))


async def test_stopped_it_is_gone_at_once_and_comes_back_on_the_same_port(server, ask):
    server.hang = True
    call = asyncio.create_task(ask(request(1)))
    await until(lambda: server.working == 1)
    target, started = server.target, time.monotonic()
    await server.stop()
    with pytest.raises(Unavailable) as lost:
        await call
    assert "Cancelling all calls" not in str(lost.value), "what gRPC says when it stops in an orderly way"
    with pytest.raises(Unavailable):
        await ask(request(1))
    assert time.monotonic() - started < 2
    server.hang = False
    await server.start()
    assert server.target == target
    async with Client(target) as client:
        assert await client.ready()


async def test_a_grace_lets_calls_in_flight_end(server, ask):
    server.delay_s = 0.1
    call = asyncio.create_task(ask(request(1)))
    await until(lambda: server.working == 1)
    await server.stop(grace_s=5)
    assert (await call).model_version == "1"


async def test_a_port_that_is_taken_is_refused(server):
    with pytest.raises(RuntimeError, match="Failed to bind"):
        await FakeServer(port=server.port).start()


async def test_another_release_serves_from_one_request_to_the_next(server, ask):
    assert (await ask(request(1, version="1"))).model_version == "1"
    server.version = "2"
    assert (await ask(request(1))).model_version == "2"
    with pytest.raises(BadInput, match="version 1 is not found"):
        await ask(request(1, version="1"))


async def test_health_is_what_it_is_told_to_be(server):
    async with Client(server.target) as client:
        assert await client.ready()
        server.ready = False
        assert not await client.ready()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (request(1, model="other"), "unknown model: 'other' is not found"),
        (request(1, name="image"), "the model reads"),
        (request(1, outputs=("odds",)), "the model reads"),
        (request(*range(9)), "batch-size must be <= 8"),
        (encode_request("alexnet", {"pixels": images(1)[:, :9]}, ("logits",)), "the model reads"),
    ],
    ids=["model", "input", "output", "batch", "shape"],
)
async def test_what_does_not_fit_the_model_is_refused(ask, sent, said):
    with pytest.raises(BadInput, match=said):
        await ask(sent)


async def test_contents_that_are_not_what_was_announced_are_refused(ask):
    sent = request(1)
    sent.raw_input_contents[0] = b"short"
    with pytest.raises(BadInput, match="reshape"):
        await ask(sent)


async def test_a_model_that_reads_files_decodes_them():
    async with FakeServer(encoded=True) as server, Client(server.target) as client:
        assert (await client.signature()).encoded
        assert (await client.classify(BLANK_FILE)).top[0].index == 255 % 2
        with pytest.raises(BadInput, match="not a JPEG, PNG or WebP image"):
            await client.classify(b"no image")


def test_on_a_thread_of_its_own_it_serves_whoever_waits_and_stops_and_starts():
    async def ready(target: str) -> bool:
        async with Client(target) as client:
            return await client.ready()

    with FakeServer().in_thread() as server:
        assert asyncio.run(ready(server.target))
        server.run(server.stop())
        with pytest.raises(Unavailable):
            asyncio.run(ready(server.target))
        server.run(server.start())
        assert asyncio.run(ready(server.target))


def test_as_a_process_it_names_its_target_and_ends_when_told():
    command = [sys.executable, "-m", "alexnet_client.fake", "--delay-s", "0.001", "--at-once", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        target = json.loads(process.stdout.readline())["target"]

        async def classify() -> str:
            async with Client(target) as client:
                return (await client.classify(images(1)[0])).label

        assert asyncio.run(classify()) == "dog"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert not process.stdout.read()


def test_who_imports_the_package_does_not_import_the_fake():
    program = "import sys, alexnet_client; assert 'alexnet_client.fake' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
