"""``FakeServer``: its instructions, and what it rejects like a real server."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys

import grpc
import numpy as np
import pytest
from typer.testing import CliRunner
from waiting import until

from alexnet_client import BadInput, Client, Connection, DeadlineExceeded, Overloaded, ServerFault, Unavailable
from alexnet_client.codec import decode_response, encode_request
from alexnet_client.deadline import Deadline
from alexnet_client.fake import FakeServer, Step
from alexnet_client.fake.__main__ import app
from alexnet_client.images import BLANK_FILE
from alexnet_client.transport import Transport

STATUS = (grpc.StatusCode.INTERNAL, "out of memory")
FAILURE = Step(fail=STATUS)


def images(*reds: int) -> np.ndarray:
    return np.stack([np.full((224, 224, 3), red, np.uint8) for red in reds])


def request(*reds: int, model="alexnet", name="pixels", outputs=("logits",), **options):
    return encode_request(model, {name: images(*reds)}, outputs, **options)


@pytest.fixture
async def connect(server):
    """Creates functions that send a request, each on its own connection."""
    opened = []

    def create():
        transport = Transport(server.target)
        opened.append(transport)
        return lambda request, timeout_s=60.0: transport.infer(request, Deadline.after(timeout_s))

    yield create
    for transport in opened:
        await transport.close()


@pytest.fixture
def infer(connect):
    return connect()


async def working(server, number, queued=0):
    expected = (number, queued)
    await until(lambda: (server.working, server.queued) == expected, f"{number} in progress, {queued} queued")


async def test_the_result_depends_on_the_image(infer):
    result = decode_response(await infer(request(0, 5, 4, outputs=("logits", "probabilities"))))
    assert result["logits"].argmax(1).tolist() == [0, 2, 1]
    assert result["probabilities"].sum(1) == pytest.approx(1)


async def test_class_names_are_sorted_by_their_logits_and_limited_to_the_requested_number(infer):
    result = decode_response(await infer(request(1, 2, classes=2)))
    assert result["logits"].tolist() == [
        [b"5.000000:1:dog", b"0.000000:0:cat"],
        [b"5.000000:2:bird: small", b"0.000000:0:cat"],
    ]


async def test_requests_are_recorded_without_their_images(server):
    async with Client(server.target, connection=Connection(metadata=(("key", "secret"),)), timeout_s=60) as client:
        await client.classify(images(1)[0])
    inference, labels = server.requests
    assert (inference.images, inference.nbytes, inference.input_name, inference.model_version) == (
        *(1, 150_528, "pixels", ""),
    )
    assert 30_000_000 < inference.parameters["timeout"] <= 60_000_000
    assert ("key", "secret") in inference.metadata
    assert not inference.requests_labels
    assert labels.requests_labels
    assert labels.model_version == "1"


async def test_steps_are_used_in_order_one_per_request(server, infer):
    server.next(FAILURE, Step(), times=2)
    outcomes = []
    for _ in range(5):
        try:
            await infer(request(1))
            outcomes.append("ok")
        except ServerFault:
            outcomes.append("fault")
    assert outcomes == ["fault", "ok", "fault", "ok", "ok"]


async def test_a_failure_stays_until_it_is_unset(server, infer):
    server.fail = STATUS
    for _ in range(3):
        with pytest.raises(ServerFault, match="out of memory"):
            await infer(request(1))
    server.fail = None
    await infer(request(1))


async def test_a_function_chooses_the_step_of_each_request(server, infer):
    server.choose = lambda received: FAILURE if received.images > 1 else Step()
    await infer(request(1))
    with pytest.raises(ServerFault):
        await infer(request(1, 1))


async def test_a_response_can_be_modified(server, infer):
    server.next(Step(mangle=lambda response: response.raw_output_contents.pop()))
    with pytest.raises(ServerFault, match="declares 1 outputs but contains 0"):
        decode_response(await infer(request(1)))


async def test_the_delays_of_the_server_and_the_step_are_added(server, infer):
    server.delay_s = 0.05
    server.next(Step(delay_s=0.05))
    began_s = asyncio.get_running_loop().time()
    await infer(request(1))
    assert asyncio.get_running_loop().time() - began_s >= 0.1


async def test_a_hanging_request_ends_with_its_deadline(server, infer):
    server.hang = True
    call = asyncio.create_task(infer(request(1), 0.3))
    await working(server, 1)
    with pytest.raises(DeadlineExceeded):
        await call
    await working(server, 0)


async def test_cutting_a_connection_fails_only_its_own_calls(server, connect):
    one, other = connect(), connect()
    server.next(Step(hang=True), Step(delay_s=0.2), Step(cut=True))
    lost = asyncio.create_task(one(request(1)))
    await working(server, 1)
    kept = asyncio.create_task(other(request(2)))
    await working(server, 2)
    for call in (one(request(1)), lost):
        with pytest.raises(Unavailable):
            await call
    assert decode_response(await kept)["logits"].argmax() == 2
    assert (await one(request(1))).model_version == "1"


async def test_inferences_and_queue_are_limited_and_a_full_queue_rejects_like_triton(server, infer):
    server.at_once, server.queue_size = 2, 1
    server.next(Step(hang=True), times=2)
    calls = [asyncio.create_task(infer(request(1))) for _ in range(3)]
    await working(server, 2, queued=1)
    with pytest.raises(Overloaded, match="Exceeds maximum queue size"):
        await infer(request(1))
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await working(server, 0)


async def test_a_timeout_in_the_queue_frees_its_place(server, infer):
    server.at_once = 1
    server.next(Step(delay_s=0.2))
    first = asyncio.create_task(infer(request(1)))
    await working(server, 1)
    with pytest.raises(DeadlineExceeded):
        await infer(request(1), 0.05)
    await asyncio.gather(first, infer(request(1)))


async def test_stopping_simulates_a_killed_process_and_a_restart_keeps_the_port(server, infer):
    server.hang = True
    call = asyncio.create_task(infer(request(1)))
    await working(server, 1)
    target = server.target
    await server.stop()
    with pytest.raises(Unavailable) as error:
        await call
    assert "Cancelling all calls" not in str(error.value), "the message of gRPC for a graceful shutdown"
    with pytest.raises(Unavailable):
        await infer(request(1))
    server.hang = False
    await server.start()
    assert server.target == target
    async with Client(target) as client:
        assert await client.ready()


async def test_stopping_with_a_grace_period_completes_calls_in_flight(server, infer):
    server.delay_s = 0.1
    call = asyncio.create_task(infer(request(1)))
    await working(server, 1)
    await server.stop(grace_s=60)
    assert (await call).model_version == "1"


async def test_the_version_can_change_between_two_requests(server, infer):
    assert (await infer(request(1, version="1"))).model_version == "1"
    server.version = "2"
    assert (await infer(request(1))).model_version == "2"
    with pytest.raises(BadInput, match="version 1 is not found"):
        await infer(request(1, version="1"))


async def test_the_health_check_returns_the_attribute(server):
    async with Client(server.target) as client:
        assert await client.ready()
        server.ready = False
        assert not await client.ready()


def with_short_contents():
    short = request(1)
    short.raw_input_contents[0] = b"short"
    return short


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (request(1, model="other"), "unknown model: 'other' is not found"),
        (request(1, name="image"), "expected"),
        (request(1, outputs=("odds",)), "expected"),
        (request(*range(9)), "batch-size must be <= 8"),
        (encode_request("alexnet", {"pixels": images(1)[:, :9]}, ("logits",)), "expected"),
        (with_short_contents(), "reshape"),
    ],
    ids=["model", "input", "output", "batch", "shape", "contents"],
)
async def test_requests_that_do_not_match_the_model_are_rejected(infer, sent, message):
    with pytest.raises(BadInput, match=message):
        await infer(sent)


async def test_an_encoded_model_decodes_files():
    async with FakeServer(encoded=True) as server, Client(server.target) as client:
        assert (await client.signature()).encoded
        assert (await client.classify(BLANK_FILE)).top[0].index == 255 % 2
        with pytest.raises(BadInput, match="not a JPEG, PNG or WebP image"):
            await client.classify(b"no image")


def test_on_its_own_thread_it_can_be_stopped_and_started(threaded_server):
    async def ready() -> bool:
        async with Client(threaded_server.target) as client:
            return await client.ready()

    assert asyncio.run(ready())
    threaded_server.run(threaded_server.stop())
    with pytest.raises(Unavailable):
        asyncio.run(ready())
    threaded_server.run(threaded_server.start())
    assert asyncio.run(ready())


def test_as_a_process_it_prints_its_target_and_ends_on_sigterm():
    command = [sys.executable, "-m", "alexnet_client.fake", "--delay-s", "0.001", "--at-once", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        target = json.loads(process.stdout.readline())["target"]

        async def classify() -> str:
            async with Client(target) as client:
                return (await client.classify(images(1)[0])).label

        assert asyncio.run(classify()) == "dog"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not process.stdout.read()


def test_a_port_in_use_is_a_user_error(threaded_server):
    result = CliRunner().invoke(app, ["--port", str(threaded_server.port)])
    assert result.exit_code == 2
    assert "cannot listen there, the port is in use" in result.stderr
