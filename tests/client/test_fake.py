"""``FakeServer``: its instructions, and what it rejects like a real server."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from contextlib import AsyncExitStack

import grpc
import numpy as np
import pytest
from typer.testing import CliRunner
from waiting import until

from alexnet_client import BadInput, BlockingClient, Client, Connection, Overloaded, ServerFault, Unavailable
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
    async with AsyncExitStack() as stack:

        def create():
            transport = Transport(server.target)
            stack.push_async_callback(transport.close)
            return lambda request: transport.infer(request, Deadline.after(60))

        yield create


@pytest.fixture
def infer(connect):
    return connect()


async def working(server, *expected):
    await until(lambda: (server.working, server.queued) == expected, f"{expected} in progress and queued")


async def test_requests_are_recorded_without_their_images(server):
    async with Client(server.target, connection=Connection(metadata=(("key", "secret"),)), timeout_s=60) as client:
        await client.classify(images(1)[0])
    inference, labels = server.requests
    assert (inference.images, inference.input_name, inference.model_version) == (1, "pixels", "")
    assert 30_000_000 < inference.parameters["timeout"] <= 60_000_000
    assert ("key", "secret") in inference.metadata
    assert not inference.requests_labels
    assert labels.requests_labels
    assert labels.model_version == "1"


async def test_steps_are_used_in_order_before_the_function_and_the_lasting_failure(server, infer):
    async def outcomes(*sizes):
        results = await asyncio.gather(*(infer(request(*[1] * size)) for size in sizes), return_exceptions=True)
        return "".join("fault " if isinstance(each, ServerFault) else "ok " for each in results).split()

    server.next(FAILURE, Step(), times=2)
    assert [(await outcomes(1))[0] for _ in range(5)] == ["fault", "ok", "fault", "ok", "ok"]
    server.fail = STATUS
    assert await outcomes(1, 1) == ["fault", "fault"]
    server.choose = lambda received: FAILURE if received.images > 1 else Step()
    assert await outcomes(1, 2) == ["ok", "fault"]


async def test_cutting_a_connection_fails_only_its_own_calls(server, connect):
    one, other = connect(), connect()
    server.next(Step(hang=True), Step(delay_s=0.2), Step(cut=True))
    lost = asyncio.create_task(one(request(1)))
    await working(server, 1, 0)
    kept = asyncio.create_task(other(request(2)))
    await working(server, 2, 0)
    for call in (one(request(1)), lost):
        with pytest.raises(Unavailable):
            await call
    assert decode_response(await kept)["logits"].argmax() == 2
    assert (await one(request(1))).model_version == "1"


async def test_inferences_and_queue_are_limited_and_a_full_queue_rejects_like_triton(server, infer):
    server.at_once, server.queue_size = 2, 1
    server.next(Step(hang=True), times=2)
    calls = []
    for expected in ((1, 0), (2, 0), (2, 1)):
        calls.append(asyncio.create_task(infer(request(1))))
        await working(server, *expected)
    with pytest.raises(Overloaded, match="Exceeds maximum queue size"):
        await infer(request(1))
    for call, expected in zip(reversed(calls), ((2, 0), (1, 0), (0, 0)), strict=True):
        call.cancel()
        await working(server, *expected)
    assert (await infer(request(1))).model_version == "1"


async def test_stopping_simulates_a_killed_process_and_a_restart_keeps_the_port(server, infer):
    server.hang = True
    call = asyncio.create_task(infer(request(1)))
    await working(server, 1, 0)
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
    await working(server, 1, 0)
    await server.stop(grace_s=60)
    assert (await call).model_version == "1"


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
    for restart in (threaded_server.stop, threaded_server.start):
        threaded_server.run(restart())
        with BlockingClient(threaded_server.target) as client:
            if restart == threaded_server.start:
                assert client.ready()
            else:
                with pytest.raises(Unavailable):
                    client.ready()


def test_as_a_process_it_prints_its_target_and_ends_on_sigterm():
    command = [sys.executable, "-m", "alexnet_client.fake"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        with BlockingClient(json.loads(process.stdout.readline())["target"]) as client:
            assert client.classify(images(1)[0]).label == "dog"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not process.stdout.read()


def test_a_port_in_use_is_a_user_error(threaded_server):
    result = CliRunner().invoke(app, ["--port", str(threaded_server.port)])
    assert result.exit_code == 2
    assert "cannot listen there, the port is in use" in result.stderr
