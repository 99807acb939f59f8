"""The blank request that tells a living model from a dead one."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2

from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, ServerFault, Unavailable
from alexnet_client.images import load_pixels
from alexnet_server.ready import probe


class Model:
    """A transport to one model of one input; its answer is what a test says."""

    target = "nowhere:1"

    def __init__(self, datatype, *, ready=True, answer=None):
        self.datatype, self.is_ready, self.answer, self.requests = datatype, ready, answer, []

    async def model_ready(self, model, deadline):
        return self.is_ready

    async def model_metadata(self, model, deadline):
        metadata = service_pb2.ModelMetadataResponse()
        metadata.inputs.add(name="x", datatype=self.datatype, shape=[-1, 2])
        metadata.outputs.add(name="y")
        return metadata

    async def infer(self, request, deadline):
        self.requests.append(request)
        if self.answer is not None:
            raise self.answer
        return service_pb2.ModelInferResponse()


async def test_numbers_are_asked_with_zeros_and_bytes_with_a_blank_image():
    numbers, files = Model("UINT8"), Model("BYTES")
    await probe(numbers, "m", Deadline.after(1))
    await probe(files, "m", Deadline.after(1))
    assert numbers.requests[0].raw_input_contents[0] == bytes(2)
    raw = files.requests[0].raw_input_contents[0]
    assert (load_pixels(raw[4 : 4 + int.from_bytes(raw[:4], "little")]) == 255).all()


async def test_a_refusal_of_the_blank_is_a_sign_of_life_and_a_failure_is_none():
    await probe(Model("BYTES", answer=BadInput("that is no text")), "m", Deadline.after(1))
    for error in (ServerFault("Stub process is not healthy"), Unavailable("gone")):
        with pytest.raises(type(error)):
            await probe(Model("UINT8", answer=error), "m", Deadline.after(1))


async def test_a_model_that_is_not_ready_is_not_asked():
    model = Model("UINT8", ready=False)
    with pytest.raises(Unavailable, match="m is not ready"):
        await probe(model, "m", Deadline.after(1))
    assert not model.requests


async def test_a_type_that_numpy_lacks_is_taken_at_its_word():
    model = Model("BF16")
    await probe(model, "m", Deadline.after(1))
    assert not model.requests
