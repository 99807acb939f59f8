"""The real Triton returns what PyTorch computes, and an invalid request does not affect others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alexnet_client import BadInput, Client
from alexnet_client.codec import encode_request
from alexnet_client.deadline import Deadline
from alexnet_client.transport import Transport
from alexnet_export.model import ServedModel


@pytest.fixture(scope="session")
def canvases(digits):
    """200 held-out images, uint8 [200, 224, 224, 3]."""
    return np.stack([digits.test.sample(index, 0)[0] for index in range(200)])


@pytest.fixture(scope="session")
def expected(checkpoint, canvases):
    """PyTorch's logits and probabilities for these images, float32 [200, 10]."""
    model = ServedModel(checkpoint.network(), checkpoint.normalization).eval()
    with torch.inference_mode():
        logits, probabilities = model(torch.from_numpy(canvases))
    return logits.numpy(), probabilities.numpy()


async def test_the_answers_to_batches_of_every_size_equal_those_of_pytorch(server, canvases, expected):
    async with Client(server.target) as client:
        answers = [await client.infer(batch) for batch in np.split(canvases, np.cumsum([1, 2, 7, 63, 64]))]
    logits, probabilities = (
        np.concatenate([getattr(answer, name) for answer in answers]) for name in ("logits", "probabilities")
    )
    assert np.abs(logits - expected[0]).max() <= 1e-4 * np.ptp(expected[0])
    assert np.abs(probabilities - expected[1]).max() <= 1e-4
    assert (logits.argmax(1) == expected[0].argmax(1)).all()


async def test_a_file_is_classified_by_name(server, digits, tmp_path, canvases, expected):
    from PIL import Image

    Image.fromarray(np.pad(canvases[3], ((16, 16), (16, 16), (0, 0)))).save(tmp_path / "digit.png")
    async with Client(server.target) as client:
        answer = await client.classify(tmp_path / "digit.png", top=3)
        assert await client.labels() == digits.labels
        assert await client.server_version() == "2.51.0"
    best = np.argsort(-expected[1][3])[:3]
    assert [guess.label for guess in answer.top] == [digits.labels[index] for index in best]
    assert answer.probability == pytest.approx(float(expected[1][3].max()), abs=1e-4)
    assert answer.model_version == "1"


@pytest.fixture
def infer(server):
    """Send images as they are, without the checks of the client."""

    async def infer(images, output="logits"):
        transport = Transport(server.target)
        try:
            request = encode_request("alexnet", {"image": images}, [output])
            return await transport.infer(request, Deadline.after(10))
        finally:
            await transport.close()

    return infer


@pytest.mark.parametrize(
    ("images", "output", "message"),
    [
        (np.zeros((1, 200, 224, 3), np.uint8), "logits", r"Expected \[-1,224,224,3\], got \[1,200,224,3\]"),
        (np.zeros((1, 224, 224), np.uint8), "logits", r"Expected \[-1,224,224,3\], got \[1,224,224\]"),
        (np.zeros((1, 224, 224, 3), np.float32), "logits", "data-type is 'FP32', but model 'alexnet' expects 'UINT8'"),
        (np.zeros((65, 224, 224, 3), np.uint8), "logits", "batch-size must be <= 64 for 'alexnet'"),
        (np.zeros((1, 224, 224, 3), np.uint8), "colour", "unexpected inference output 'colour'"),
    ],
    ids=["height", "rank", "type", "batch size", "output"],
)
async def test_an_invalid_request_is_rejected_and_the_next_one_gets_only_its_output(
    infer, canvases, images, output, message
):
    with pytest.raises(BadInput, match=message):
        await infer(images, output)
    response = await infer(canvases[:1])
    assert [(output.name, list(output.shape)) for output in response.outputs] == [("logits", [1, 10])]


async def test_an_unknown_model_is_rejected(server, canvases):
    async with Client(server.target, model="resnet") as client:
        with pytest.raises(BadInput, match="unknown model: 'resnet' is not found"):
            await client.infer(canvases[:1])
