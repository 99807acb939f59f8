"""The real Triton returns what PyTorch computes, and an invalid request does not affect others."""

from __future__ import annotations

import asyncio

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


async def test_the_served_answers_equal_those_of_pytorch(server, canvases, expected):
    logits, probabilities = expected
    async with Client(server.target) as client:
        answers = [await client.infer(canvases[start : start + 50]) for start in range(0, 200, 50)]
    served = np.concatenate([answer.logits for answer in answers])
    assert np.abs(served - logits).max() <= 1e-4 * np.ptp(logits)
    assert np.abs(np.concatenate([answer.probabilities for answer in answers]) - probabilities).max() <= 1e-4
    assert (served.argmax(1) == logits.argmax(1)).all()


async def test_single_answers_agree_with_batched_ones_row_by_row(server, canvases, expected):
    before = server.metric("nv_inference_exec_count")
    async with Client(server.target, timeout_s=60) as client:
        answers = await asyncio.gather(*(client.infer(canvases[row : row + 1]) for row in range(200)))
    for row, answer in enumerate(answers):
        assert np.abs(answer.logits[0] - expected[0][row]).max() <= 1e-4 * np.ptp(expected[0]), row
    executions = server.metric("nv_inference_exec_count") - before
    assert executions < 100, "Triton batches requests that are in flight at the same time"


@pytest.mark.parametrize("size", [1, 2, 7, 63, 64])
async def test_every_batch_size_is_answered_in_order(server, canvases, expected, size):
    async with Client(server.target, timeout_s=60) as client:
        answer = await client.infer(canvases[100 : 100 + size])
    assert np.abs(answer.logits - expected[0][100 : 100 + size]).max() <= 1e-4 * np.ptp(expected[0])


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


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 200, 224, 3), np.uint8), r"Expected \[-1,224,224,3\], got \[1,200,224,3\]"),
        (np.zeros((1, 224, 224), np.uint8), r"Expected \[-1,224,224,3\], got \[1,224,224\]"),
        (np.zeros((1, 224, 224, 3), np.float32), "data-type is 'FP32', but model 'alexnet' expects 'UINT8'"),
        (np.zeros((65, 224, 224, 3), np.uint8), "batch-size must be <= 64 for 'alexnet'"),
    ],
)
async def test_an_invalid_request_is_rejected_and_the_next_one_succeeds(server, canvases, images, message):
    transport = Transport(server.target)
    with pytest.raises(BadInput, match=message):
        await transport.infer(encode_request("alexnet", {"image": images}, ["logits"]), Deadline.after(10))
    response = await transport.infer(encode_request("alexnet", {"image": canvases[:1]}, ["logits"]), Deadline.after(10))
    assert list(response.outputs[0].shape) == [1, 10]
    await transport.close()


async def test_an_unknown_model_or_output_is_rejected(server, canvases):
    async with Client(server.target, model="resnet") as client:
        with pytest.raises(BadInput, match="unknown model: 'resnet' is not found"):
            await client.infer(canvases[:1])
    transport = Transport(server.target)
    with pytest.raises(BadInput, match="unexpected inference output 'colour'"):
        await transport.infer(encode_request("alexnet", {"image": canvases[:1]}, ["colour"]), Deadline.after(10))
    await transport.close()


async def test_only_the_requested_output_is_returned(server, canvases):
    transport = Transport(server.target)
    response = await transport.infer(encode_request("alexnet", {"image": canvases[:1]}, ["logits"]), Deadline.after(10))
    assert [output.name for output in response.outputs] == ["logits"]
    await transport.close()


async def test_a_cancelled_call_does_not_affect_the_others(server, canvases, expected):
    async with Client(server.target, timeout_s=60) as client:
        tasks = [asyncio.create_task(client.infer(canvases[row : row + 1])) for row in range(60)]
        await asyncio.sleep(0.1)
        for task in tasks[::2]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    for row in range(1, 60, 2):
        assert np.abs(answers[row].logits[0] - expected[0][row]).max() <= 1e-4 * np.ptp(expected[0])
