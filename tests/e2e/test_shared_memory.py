"""Shared memory between a client and the real server: correct results, and no region remains after cancellation or a crash."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from servers import Load
from tritonclient.grpc import service_pb2, service_pb2_grpc
from waiting import until

from alexnet_client import BadInput, Client
from alexnet_client.admin import admin_metadata
from alexnet_client.batching import BatchOptions
from alexnet_client.errors import ClientError, DeadlineExceeded
from alexnet_client.events import SharedMemoryFallback
from alexnet_client.shared_memory_regions import MAX_REGIONS


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3)).astype(np.uint8)


def sharing(target: str, events: list[object], **options) -> Client:
    return Client(target, shared_memory=True, listeners=[events.append], **options)


def fallbacks(events: list[object]) -> list[object]:
    return [event for event in events if isinstance(event, SharedMemoryFallback)]


def regions(pid: int) -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"alexnet-client-{pid}-*")}


def correct(found, expected) -> bool:
    return np.allclose(found, expected, atol=1e-4 * np.ptp(expected))


async def registered(target: str) -> set[str]:
    """The regions that are registered at the server."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.SystemSharedMemoryStatusRequest()
        return set((await stub.SystemSharedMemoryStatus(request, metadata=admin_metadata(target))).regions)


async def test_results_equal_those_without_shared_memory_and_no_region_remains_after_close(server, images):
    events: list[object] = []
    async with Client(server.target) as plain, sharing(server.target, events) as client:
        expected = (await plain.infer(images)).logits
        batch = await client.infer(images)
        single = await asyncio.gather(
            *(client.classify(images[caller % 16][:, ::-1][:, ::-1]) for caller in range(100))  # not contiguous
        )
        assert regions(os.getpid()) == await registered(server.target) != set()
    assert correct(batch.logits, expected)
    assert all(correct(each.logits, expected[caller % 16]) for caller, each in enumerate(single))
    assert not fallbacks(events)
    assert not regions(os.getpid())
    assert not await registered(server.target)


async def test_cancelled_and_late_calls_never_corrupt_the_results_of_others(launch, repository, images):
    """With its own server: a few cancelled calls crash Triton 2.51 (its issue 7368, in pthread_mutex_lock). Then it is repeated."""
    for attempt in (1, 2):
        with launch(repository, "--probe-interval", 0) as server:
            try:
                await cancel_calls(server, images)
            except (ClientError, AssertionError):
                if attempt == 2 or "# pthread_mutex_lock in " not in server.log.read_text():
                    raise
            else:
                return


async def cancel_calls(server, images):
    """Calls are cancelled or exceed their deadline while the server executes them; other callers check their results."""
    rng, outcomes, seen = random.Random(0), [], set()
    triton = server.triton().pid

    async def cancelling(client: Client) -> None:
        while True:
            with suppress(DeadlineExceeded, TimeoutError):
                async with asyncio.timeout(rng.uniform(0.001, 0.1)):
                    await client.infer(255 - images[:4], timeout_s=rng.uniform(0.005, 0.1))
            seen.update(regions(os.getpid()))

    async def checking(client: Client, row: int) -> None:
        while len(outcomes) < 100 or len(seen) <= MAX_REGIONS:  # until regions were replaced
            found = (await client.infer(images[row : row + 1], timeout_s=20)).logits[0]
            outcomes.append(correct(found, expected[row]))

    async with sharing(server.target, [], batching=BatchOptions(max_batch=4)) as client:
        expected = (await client.infer(images)).logits
        cancelled = [asyncio.create_task(cancelling(client)) for _ in range(6)]
        await asyncio.gather(*(checking(client, row) for row in range(8)))
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
    assert all(outcomes)
    assert not regions(os.getpid())
    assert not await registered(server.target)
    assert server.triton().pid == triton


KILLED_CLIENT = """
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


async def test_the_next_client_removes_and_unregisters_the_regions_of_a_killed_client(server, images):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED_CLIENT, server.target, stdout=subprocess.PIPE
    )
    assert await process.stdout.readline() == b"served\n"
    left = regions(process.pid)
    async with sharing(server.target, []) as client:
        await client.infer(images)
        assert regions(process.pid) == left != set(), "the process still runs"
    process.kill()
    await process.wait()
    assert regions(process.pid) == left

    async def unregistered() -> bool:
        return regions(os.getpid()) == await registered(server.target) != set()

    async with sharing(server.target, []) as client:
        await client.infer(images)
        assert not regions(process.pid)
        await until(unregistered, "Triton completes the requests of the killed client and unregisters their regions")


async def test_without_the_key_the_call_fails_instead_of_falling_back(server, images, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    events: list[object] = []
    async with sharing(server.target, events) as client:
        with pytest.raises(BadInput, match=r"no administration key in .*while `alexnet-server serve` of the same user"):
            await client.infer(images)
        assert not fallbacks(events)
    assert not regions(os.getpid())


async def test_shared_memory_is_used_again_after_a_restart_of_triton_and_of_the_launcher(
    cheap_server, cheap, free_port, images
):
    """A restarted Triton has the same key, a new launcher has a new one."""
    ports = [free_port() for _ in range(3)]
    events: list[object] = []

    def start():
        return cheap_server("--probe-interval", 1, ports=iter(ports).__next__)

    async def shared() -> bool:
        events.clear()
        try:
            assert correct((await client.infer(images, timeout_s=2)).logits, expected)
        except ClientError:
            return False
        return not fallbacks(events)

    expected = cheap.logits(images)
    with start() as server:
        async with sharing(server.target, events) as client, Load(client, images, expected) as load:
            await load.wait_for_answers(20)
            server.triton().kill()
            await until(lambda: server.health()[1]["restarts"] == 1, "the launcher restarts Triton")
            await until(shared, "shared memory after the restart of Triton")
            key = admin_metadata(server.target)
            server.end()
            with start():
                assert admin_metadata(server.target) != key
                await until(shared, "shared memory at the new launcher")
                assert await registered(server.target) & regions(os.getpid())
                assert load.outcomes["wrong"] == 0
    assert not regions(os.getpid())
