"""``Client`` against a scripted server; tests/e2e has the real one."""

from __future__ import annotations

import asyncio
import time

import grpc
import numpy as np
import pytest

from alexnet_client import (
    BadInput,
    BatchOptions,
    Client,
    Closed,
    DeadlineExceeded,
    ImageError,
    Overloaded,
    ServerFault,
    Unavailable,
)
from alexnet_client.fake import FakeServer


def image(kind: int) -> np.ndarray:
    return np.full((224, 224, 3), kind, np.uint8)


async def test_the_best_label_comes_first_with_its_probability(scripted):
    _, target = scripted
    async with Client(target) as client:
        answer = await client.classify(image(1), top=2)
    assert (answer.label, answer.top[0].index) == ("dog", 1)
    assert answer.probability == pytest.approx(np.exp(5) / (np.exp(5) + 2))
    assert len(answer.top) == 2
    assert answer.logits.tolist() == [0, 5, 0]


async def test_the_tensors_are_named_as_the_server_names_them(scripted):
    server, target = scripted
    async with Client(target) as client:
        await client.classify(image(0))
    assert {request.input_name for request in server.requests} == {"pixels"}


async def test_labels_are_asked_for_once_a_release(scripted):
    server, target = scripted
    async with Client(target) as client:
        for _ in range(3):
            assert (await client.classify(image(2))).label == "bird: small"
        assert len(server.requests) == 3 + 1
        server.version = "2"
        assert (await client.classify(image(2))).model_version == "2"
        await client.classify(image(2))
    assert len(server.requests) == 3 + 1 + 2 + 1
    assert server.requests[-2].model_version == "2"


async def test_labels_are_asked_for_where_the_release_has_answered(scripted):
    """While a fleet is renewed, a release is on some of its servers only."""
    old, first = scripted
    async with FakeServer(labels=("old", "older", "oldest")) as other:
        old.version = "2"
        async with Client(f"{first},{other.target}") as client:
            for _ in range(10):
                answer = await client.classify(image(2))
                assert answer.label == {"1": "oldest", "2": "bird: small"}[answer.model_version]


async def test_a_large_batch_of_a_client_that_does_not_wait_is_let_in_part_by_part(scripted):
    _, target = scripted
    options = BatchOptions(max_queue_images=4, max_batch=4, wait_when_full=False)
    async with Client(target, batching=options) as client:
        answer = await client.infer(np.stack([image(number % 3) for number in range(200)]))
    assert answer.probabilities.argmax(1).tolist() == [number % 3 for number in range(200)]


@pytest.mark.parametrize("images", [1, 20])
async def test_a_call_hears_once_when_its_first_image_leaves(scripted, images):
    server, target = scripted
    heard = []
    async with Client(target) as client:
        await client.signature()
        server.delay_s = 0.05
        began = time.monotonic()
        call = asyncio.create_task(
            client.infer(np.stack([image(0)] * images), on_sent=lambda: heard.append(time.monotonic() - began))
        )
        while not heard:  # noqa: ASYNC110  that is what is tested
            await asyncio.sleep(0.001)
        assert not call.done(), "it leaves before it is answered"
        await call
    assert len(heard) == 1


async def test_a_batch_is_answered_row_by_row(scripted):
    _, target = scripted
    async with Client(target) as client:
        answer = await client.infer(np.stack([image(2), image(0), image(1)]))
    assert answer.probabilities.argmax(1).tolist() == [2, 0, 1]


async def test_a_broken_image_is_refused_without_a_request(scripted):
    server, target = scripted
    async with Client(target) as client:
        with pytest.raises(ImageError):
            await client.classify(b"no image")
    assert not server.requests


async def test_a_model_that_is_no_classifier_of_ours_is_refused(scripted):
    server, target = scripted
    server.outputs = ("other",)
    async with Client(target) as client:
        with pytest.raises(BadInput, match="not an image classifier"):
            await client.classify(image(0))


async def test_an_overloaded_server_is_told_from_a_dead_one(scripted, free_port):
    server, target = scripted
    server.fail = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
    async with Client(target) as client:
        with pytest.raises(Overloaded):
            await client.classify(image(0))
    async with Client(f"127.0.0.1:{free_port()}") as client:
        with pytest.raises(Unavailable, match="no server answers there"):
            await client.classify(image(0))


async def test_the_deadline_covers_the_whole_call(scripted):
    server, target = scripted
    async with Client(target, timeout_s=30) as client:
        await client.classify(image(0))
        server.hang = True
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.5 s"):
            await client.classify(image(0), timeout_s=0.5)
        assert 0.4 < time.monotonic() - started < 5


async def test_many_callers_at_once_share_requests_and_ask_for_the_labels_once(scripted):
    server, target = scripted
    async with Client(target) as client:
        answers = await asyncio.gather(*(client.classify(image(number % 3)) for number in range(20)))
    assert [answer.top[0].index for answer in answers] == [number % 3 for number in range(20)]
    sizes = [request.nbytes // image(0).nbytes for request in server.requests]
    assert sum(sizes) == 20 + 1
    assert max(sizes) == 8, "the server takes no more at a time"
    assert len(sizes) < 10


async def test_ready_is_proved_by_an_answer(scripted):
    server, target = scripted
    async with Client(target) as client:
        assert await client.ready()
        server.fail = (grpc.StatusCode.INTERNAL, "Stub process is not healthy")
        with pytest.raises(ServerFault, match="Stub process is not healthy"):
            await client.ready()


@pytest.mark.parametrize("lost", ["logits", "probabilities"])
async def test_an_answer_without_a_tensor_is_the_servers_fault(scripted, lost):
    server, target = scripted

    def drop(response):
        for place, output in enumerate(response.outputs):
            if output.name == lost:
                del response.outputs[place], response.raw_output_contents[place]

    server.mangle = drop
    async with Client(target) as client:
        with pytest.raises(ServerFault, match=f"lacks {lost}"):
            await client.classify(image(0))


async def test_a_closed_client_says_so(scripted):
    _, target = scripted
    client = Client(target)
    await client.close()
    with pytest.raises(Closed):
        await client.classify(image(0))


async def test_nonsense_options_are_refused_at_once(scripted):
    _, target = scripted
    with pytest.raises(BadInput):
        Client(target, timeout_s=0)
    for nowhere in ("127.0.0.1", "127.0.0.1:99999", ":8001", "127.0.0.1:http"):
        with pytest.raises(BadInput, match="not an address of the form host:port"):
            Client(nowhere)
    async with Client(target) as client:
        with pytest.raises(BadInput):
            await client.classify(image(0), top=0)
        for nothing in ([1, 2], np.uint8(1), np.array(7, np.uint8)):
            with pytest.raises(BadInput, match="a batch is uint8"):
                await client.infer(nothing)


async def test_a_stream_that_is_left_early_leaves_no_calls(scripted):
    _, target = scripted
    async with Client(target) as client:
        await client.classify(image(0))
        before = len(asyncio.all_tasks())
        stream = client.classify_many(image(number % 3) for number in range(1000))
        assert (await anext(stream)).top[0].index == 0
        await stream.aclose()
        await asyncio.sleep(0.05)  # what was sent is answered
        assert len(asyncio.all_tasks()) <= before


async def test_each_caller_keeps_its_own_deadline_while_one_asks_for_the_signature(scripted, monkeypatch):
    _, target = scripted
    answered = asyncio.Event()

    async def ask(transport, model, deadline):
        await answered.wait()

    monkeypatch.setattr("alexnet_client.served_model.ask_signature", ask)
    async with Client(target) as client:
        first = asyncio.create_task(client.signature(timeout_s=5))
        await asyncio.sleep(0)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="waiting for the model's signature"):
            await client.signature(timeout_s=0.05)
        assert time.monotonic() - began < 2
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_a_listener_that_fails_harms_no_call(scripted, caplog):
    _, target = scripted

    def listener(event):
        raise ZeroDivisionError

    async with Client(target, listeners=[listener]) as client:
        assert (await client.classify(image(1))).label == "dog"
    assert "a listener failed" in caplog.text


async def test_closing_tells_who_asks_for_the_labels(scripted):
    server, target = scripted
    async with Client(target) as client:
        await client.signature()
        server.hang = True
        task = asyncio.create_task(client.labels())
        await asyncio.sleep(0.05)
    with pytest.raises(Closed):
        await task
