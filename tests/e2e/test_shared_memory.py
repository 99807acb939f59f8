"""Shared memory between a client and the real server: right answers, and nothing left, whoever is killed or gives up."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from alexnet_client import BadInput, Client
from alexnet_client.admin import admin_metadata
from alexnet_client.batching import BatchOptions
from alexnet_client.errors import ClientError, DeadlineExceeded
from alexnet_client.events import SharedMemoryFallback
from alexnet_client.shared_memory_regions import MAX_REGIONS

PATIENCE_S = 30
SHM = Path("/dev/shm")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3)).astype(np.uint8)


def sharing(target: str, events: list[object], **options) -> Client:
    return Client(target, shared_memory=True, listeners=[events.append], **options)


def by_wire(events: list[object]) -> list[object]:
    return [event for event in events if isinstance(event, SharedMemoryFallback)]


def regions(pid: int) -> set[str]:
    return {path.name for path in SHM.glob(f"alexnet-client-{pid}-*")}


def right(found, expected) -> bool:
    return np.allclose(found, expected, atol=1e-4 * np.ptp(expected))


async def known(target: str) -> set[str]:
    """The regions that the server knows."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.SystemSharedMemoryStatusRequest()
        return set((await stub.SystemSharedMemoryStatus(request, metadata=admin_metadata(target))).regions)


async def until(condition, what: str):
    """The first true value of ``condition``, asked again and again."""
    give_up = time.monotonic() + PATIENCE_S
    while not (found := await condition()):
        assert time.monotonic() < give_up, f"{what}: not within {PATIENCE_S} s"
        await asyncio.sleep(0.05)
    return found


async def test_many_callers_get_the_answers_of_the_wire_and_nothing_is_left_after_close(server, images):
    events: list[object] = []
    async with Client(server.target) as plain, sharing(server.target, events) as client:
        expected = (await plain.infer(images)).logits
        batch = await client.infer(images)
        single = await asyncio.gather(
            *(client.classify(images[caller % 16][:, ::-1][:, ::-1]) for caller in range(100))  # not contiguous
        )
        assert regions(os.getpid()) == await known(server.target) != set()
    assert right(batch.logits, expected)
    assert all(right(each.logits, expected[caller % 16]) for caller, each in enumerate(single))
    assert not by_wire(events)
    assert not regions(os.getpid())
    assert not await known(server.target)


CALLS = 40
"""So many that callers give up while the server works, whatever a machine and a small network take for an answer."""


async def test_callers_who_give_up_never_corrupt_the_answers_of_others(own_server, images):
    """On a server of its own: a very few cancelled calls crash Triton 2.51 (its issue 7368).

    That crash, a lock of a call that is no more, is answered by a second try on a second server.
    """
    for again in (False, True):
        with own_server("--probe-interval", "0") as server:
            try:
                await give_up_again_and_again(server, images)
                break
            except (ClientError, AssertionError):
                if again or "# pthread_mutex_lock in " not in server.log.read_text():
                    raise


async def give_up_again_and_again(server, images):
    """Requests are cancelled or time out while the server works on them."""
    chance, outcomes, seen = random.Random(0), [], set()
    triton = server.triton().pid

    async def hasty(client: Client) -> None:
        while True:
            with suppress(DeadlineExceeded, TimeoutError):
                async with asyncio.timeout(chance.uniform(0.001, 0.1)):
                    await client.infer(255 - images[:4], timeout_s=chance.uniform(0.005, 0.1))
            seen.update(regions(os.getpid()))

    async def patient(client: Client, row: int) -> None:
        for _ in range(CALLS):
            found = (await client.infer(images[row : row + 1], timeout_s=20)).logits[0]
            outcomes.append(right(found, expected[row]))

    async with sharing(server.target, [], batching=BatchOptions(max_batch=4)) as client:
        expected = (await client.infer(images)).logits
        hurried = [asyncio.create_task(hasty(client)) for _ in range(6)]
        await asyncio.gather(*(patient(client, row) for row in range(8)))
        for task in hurried:
            task.cancel()
        await asyncio.gather(*hurried, return_exceptions=True)
    assert outcomes == [True] * 8 * CALLS
    assert len(seen) > MAX_REGIONS, "regions were given up and made anew"
    assert not regions(os.getpid())
    assert not await known(server.target)
    assert server.triton().pid == triton, "it was not started again"


KILLED = """
import asyncio, sys
import numpy as np
from alexnet_client import Client

async def main(target):
    async with Client(target, shared_memory=True) as client:
        await client.infer(np.zeros((4, 224, 224, 3), np.uint8))
        print("served", flush=True)
        while True:
            await client.infer(np.zeros((4, 224, 224, 3), np.uint8))

asyncio.run(main(sys.argv[1]))
"""


async def test_what_a_killed_client_leaves_is_removed_by_the_next_and_forgotten_by_the_server(server, images):
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, server.target, stdout=subprocess.PIPE)
    assert await process.stdout.readline() == b"served\n"
    left = regions(process.pid)
    async with sharing(server.target, []) as client:
        await client.infer(images)
        assert regions(process.pid) == left != set(), "it lives"
    process.kill()
    await process.wait()
    assert regions(process.pid) == left

    async def forgotten() -> bool:
        return regions(os.getpid()) == await known(server.target) != set()

    async with sharing(server.target, []) as client:
        await client.infer(images)
        assert not regions(process.pid)
        await until(forgotten, "what the killed one had in flight is over, too")


async def test_without_the_key_the_first_call_is_refused_and_does_not_fall_back(server, images, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    events: list[object] = []
    async with sharing(server.target, events) as client:
        with pytest.raises(BadInput, match=r"no administration key in .*while `alexnet-server serve` of the same user"):
            await client.infer(images)
        assert not by_wire(events)
    assert not regions(os.getpid())


async def test_a_model_that_reads_files_is_refused(server, images):
    async with sharing(server.target, [], model="alexnet_encoded") as client:
        with pytest.raises(BadInput, match="shared memory is for pixels"):
            await client.classify(Path("tests/golden/photo.jpg"))


async def test_a_server_that_was_killed_or_replaced_goes_on_to_be_served_through_shared_memory(
    launch, repository, tmp_path, free_port, images
):
    """Triton killed: the launcher starts it again, with the same key. The launcher replaced: there is a new key."""
    fixed = [free_port() for _ in range(3)]
    events: list[object] = []

    async def answered() -> bool:
        try:
            assert right((await client.infer(images, timeout_s=2)).logits, expected)
        except ClientError:
            return False
        return True

    async def shared() -> bool:
        del events[:]
        return await answered() and not by_wire(events)

    with launch(repository, tmp_path, iter(fixed).__next__, "--probe-interval", "1") as server:
        async with sharing(server.target, events) as client:
            expected = (await client.infer(images)).logits
            busy = [asyncio.create_task(answered()) for _ in range(4)]
            await asyncio.sleep(0.05)
            server.triton().send_signal(signal.SIGKILL)
            await asyncio.gather(*busy)
            await until(answered, "an answer after the kill")
            await until(shared, "a region after the kill")
            key = admin_metadata(server.target)
            server.stop()
            with launch(repository, tmp_path, iter(fixed).__next__, "--probe-interval", "1"):
                assert admin_metadata(server.target) != key
                await until(answered, "an answer of the new server")
                await until(shared, "a region at the new server")
                assert await known(server.target) & regions(os.getpid())
    assert not regions(os.getpid())
