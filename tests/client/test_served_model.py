"""The attempts of a batch: encoded once, and not kept after the call."""

from __future__ import annotations

import gc
import sys

import grpc
import numpy as np
import pytest

from alexnet_client import Client, RetryOptions, ServerFault, codec
from alexnet_client.events import Hedged
from alexnet_client.fake import FakeServer, Step
from alexnet_client.fake.server import QUEUE_FULL
from alexnet_client.transport import Transport


@pytest.fixture
async def other_server(server):
    async with FakeServer(labels=server.labels) as other:
        yield other


@pytest.fixture
def encoded(monkeypatch):
    """The results of ``encode_batch``."""
    return record(monkeypatch, codec, "encode_batch", lambda arguments, result: result)


@pytest.fixture
def attempts(monkeypatch):
    """The requests given to a transport."""
    return record(monkeypatch, Transport, "infer", lambda arguments, result: arguments[1])


def record(monkeypatch, owner, name, select):
    """Replace a function by one that also records an argument or the result of each call."""
    calls, function = [], getattr(owner, name)

    def recorded(*arguments, **options):
        result = function(*arguments, **options)
        calls.append(select(arguments, result))
        return result

    monkeypatch.setattr(owner, name, recorded)
    return calls


async def infer(client, image):
    """Send three images of different classes and check their order."""
    result = await client.infer(np.stack([image(2), image(0), image(1)]))
    assert result.probabilities.argmax(1).tolist() == [2, 0, 1]


def ids(requests):
    return [id(each) for each in requests]


async def test_a_batch_that_is_retried_at_both_replicas_is_encoded_once(server, other_server, image, encoded, attempts):
    for each in (server, other_server):
        each.next(Step(fail=QUEUE_FULL))
    async with Client(f"{server.target},{other_server.target}") as client:
        await infer(client, image)
    assert ids(attempts) == ids(encoded) * 3
    received = [*server.requests, *other_server.requests]
    assert {each.images for each in received} == {3}
    assert {len(each.requests) for each in (server, other_server)} == {1, 2}


async def test_a_hedged_batch_is_encoded_once(server, other_server, image, encoded, attempts):
    events = []
    retries = RetryOptions(hedge_quantile=0.95)
    async with Client(f"{server.target},{other_server.target}", retries=retries, listeners=[events.append]) as client:
        for _ in range(60):  # the hedging delay needs latencies
            await infer(client, image)
        server.hang = True
        for calls in (encoded, attempts, events):
            calls.clear()
        for _ in range(2):  # the first attempt of at least one of them is at the server that hangs
            await infer(client, image)
    hedges = sum(isinstance(each, Hedged) for each in events)
    assert hedges
    assert (len(encoded), len(attempts)) == (2, 2 + hedges)
    assert set(ids(attempts)) == set(ids(encoded))


async def test_the_error_of_a_batch_does_not_keep_its_request(server, image, encoded):
    server.fail = (grpc.StatusCode.INTERNAL, "broken")
    async with Client(server.target) as client:
        with pytest.raises(ServerFault, match="broken") as error:
            await infer(client, image)
        gc.collect()
        references = sys.getrefcount(encoded[0])
        assert isinstance(error.value.__cause__, ServerFault)
        assert references == 2, "the list and the argument"
