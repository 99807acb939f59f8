"""``Client`` with a fake server; tests/e2e uses the real one."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from waiting import until

from alexnet_client import BadInput, BatchOptions, Client, Closed, DeadlineExceeded, ImageError, ServerFault
from alexnet_client.fake import FakeServer, Step


@pytest.fixture
async def client(server):
    async with Client(server.target) as client:
        yield client


async def test_the_most_probable_class_comes_first(server, client, image):
    result = await client.classify(image(1), top=2)
    assert (result.label, result.top[0].index, len(result.top)) == ("dog", 1, 2)
    assert result.probability == pytest.approx(np.exp(5) / (np.exp(5) + 2))
    assert result.logits.tolist() == [0, 5, 0]
    assert {request.input_name for request in server.requests} == {"pixels"}, "the name comes from the server"


async def test_concurrent_calls_share_requests_and_labels_are_fetched_once_per_version(server, client, image):
    results = await asyncio.gather(*(client.classify(image(number % 3)) for number in range(20)))
    assert [result.top[0].index for result in results] == [number % 3 for number in range(20)]
    sizes = [request.images for request in server.requests if not request.requests_labels]
    assert (sum(sizes), max(sizes), len(server.requests)) == (20, server.max_batch_size, len(sizes) + 1)
    server.requests.clear()
    server.version = "2"
    for _ in range(2):
        assert (await client.classify(image(2))).model_version == "2"
    assert [each.model_version for each in server.requests] == ["", "2", ""]


async def test_during_a_rolling_update_labels_come_from_a_server_with_the_version(server, image):
    async with FakeServer(labels=("old", "older", "oldest")) as other:
        server.version = "2"
        async with Client(f"{server.target},{other.target}") as client:
            for _ in range(10):
                result = await client.classify(image(2))
                assert result.label == {"1": "oldest", "2": "bird: small"}[result.model_version]


async def test_a_batch_larger_than_the_queue_is_accepted_in_parts(server, image):
    options = BatchOptions(max_queue_images=4, max_batch=4, wait_when_full=False)
    async with Client(server.target, batching=options) as client:
        result = await client.infer(np.stack([image(number % 3) for number in range(200)]))
    assert result.probabilities.argmax(1).tolist() == [number % 3 for number in range(200)]


@pytest.mark.parametrize(("images", "requests"), [(1, 1), (20, 2)])
async def test_on_sent_is_called_once_before_the_result(server, client, image, images, requests):
    await client.signature()
    server.hang = True
    calls, batch = [], np.stack([image(0)] * images)
    task = asyncio.create_task(client.infer(batch, on_sent=lambda: calls.append(client._model.batcher.in_flight)))
    await until(lambda: server.working == requests, "as many requests are at the server as may be in flight")
    assert calls == [0]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_model_that_is_not_a_classifier_is_rejected(server, client, image):
    server.outputs = ("other",)
    with pytest.raises(BadInput, match="not an image classifier"):
        await client.classify(image(0))


async def test_the_deadline_covers_the_whole_call(server, client, image):
    await client.classify(image(0))
    server.hang = True
    with pytest.raises(DeadlineExceeded, match=r"no response within 0\.1 s"):
        await client.classify(image(0), timeout_s=0.1)


async def test_each_call_has_its_own_deadline_while_another_fetches_the_signature(client, monkeypatch):
    async def never(transport, model, deadline):
        await asyncio.Event().wait()

    monkeypatch.setattr("alexnet_client.served_model.fetch_signature", never)
    first = asyncio.create_task(client.signature(timeout_s=60))
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded, match="waiting for the signature"):
        await client.signature(timeout_s=0.05)
    assert not first.done()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_ready_includes_the_health_check_and_an_inference(server, client):
    assert await client.ready()
    server.ready = False
    assert not await client.ready()
    server.ready = True
    server.fail = (grpc.StatusCode.INTERNAL, "Stub process is not healthy")
    with pytest.raises(ServerFault, match="Stub process is not healthy"):
        await client.ready()


@pytest.mark.parametrize("lost", ["logits", "probabilities"])
async def test_a_response_without_a_tensor_is_a_server_fault(server, client, image, lost):
    def remove(response):
        for place, output in enumerate(response.outputs):
            if output.name == lost:
                del response.outputs[place], response.raw_output_contents[place]

    server.mangle = remove
    with pytest.raises(ServerFault, match=f"does not contain {lost}"):
        await client.classify(image(0))


async def test_invalid_arguments_and_images_are_rejected_without_a_request(server, client, image):
    with pytest.raises(BadInput, match="timeout_s"):
        Client(timeout_s=0)
    with pytest.raises(BadInput, match="top"):
        await client.classify(image(0), top=0)
    with pytest.raises(ImageError):
        await client.classify(b"no image")
    for images in ([1, 2], np.uint8(1), np.array(7, np.uint8)):
        with pytest.raises(BadInput, match="a batch must be uint8"):
            await client.infer(images)
    assert not server.requests


async def test_errors_in_a_stream_are_yielded_in_their_place_and_a_stream_closed_early_leaves_no_task(client, image):
    await client.classify(image(0))
    before = len(asyncio.all_tasks())
    images = (image(0) if number % 2 == 0 else b"no image" for number in range(1000))
    stream = client.classify_many(images, return_errors=True)
    first, error = await anext(stream), await anext(stream)
    assert (first.label, type(error)) == ("cat", ImageError)
    await stream.aclose()
    await until(lambda: len(asyncio.all_tasks()) <= before, "the requests in flight end")


async def test_an_exception_of_a_listener_does_not_affect_calls(server, image, caplog):
    def listener(event):
        raise ZeroDivisionError

    async with Client(server.target, listeners=[listener]) as client:
        assert (await client.classify(image(1))).label == "dog"
    assert "a listener raised an exception" in caplog.text


async def test_closing_fails_calls_in_flight_and_later_calls(server, client, image):
    await client.signature()
    server.choose = lambda _: Step(hang=True)
    tasks = [asyncio.create_task(call) for call in (client.labels(), client.classify(image(0)))]
    await until(lambda: server.working == 2, "both requests are at the server")
    await client.close()
    for task in tasks:
        with pytest.raises(Closed):
            await task
    with pytest.raises(Closed):
        await client.classify(image(0))
