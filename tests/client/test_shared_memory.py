"""Shared memory: regions and their limits, leases, quarantine, restarts. tests/e2e uses the real server."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from waiting import until

from alexnet_client import BadInput, DeadlineExceeded, ServerFault, Unavailable
from alexnet_client.admin import key_file
from alexnet_client.codec import encode_batch
from alexnet_client.deadline import Deadline
from alexnet_client.events import SharedMemoryFallback
from alexnet_client.shared_memory import SharedMemoryTransport
from alexnet_client.shared_memory_regions import MAX_BYTES, SIZES, Region, RegionPool, remove_stale_regions

MIB = 2**20
KEY = ("triton-grpc-protocol-admin", "key")
RESTRICTED = (grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'x'")
CANNOT_OPEN = (grpc.StatusCode.INTERNAL, "Unable to open shared memory region: '/x'")


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.fixture
def pool(tmp_path):
    pool = RegionPool(tmp_path, max_regions=3, max_bytes=8 * MIB)
    yield pool
    for each in pool.all:
        pool.remove(each)


def test_a_region_is_a_file_of_the_smallest_sufficient_size_that_only_the_user_can_read(pool, tmp_path):
    regions = [pool.lease(nbytes) for nbytes in (1, MIB + 1)]
    assert [each.size for each in regions] == list(SIZES[:2])
    assert {stat.S_IMODE(each.path.stat().st_mode) for each in regions} == {0o600}
    assert {each.name for each in regions} == files(tmp_path)
    assert all(name.startswith(f"alexnet-client-{os.getpid()}-") for name in files(tmp_path))
    assert 64 * 224 * 224 * 3 <= 10 * MIB in SIZES, "a full batch wastes little memory"


def test_arrays_are_written_one_after_the_other_in_row_major_order(pool):
    region = pool.lease(1)
    parts = [np.arange(12, dtype=np.uint8).reshape(3, 4).T, np.full((2, 3), 7, np.uint8)]
    region.write(parts)
    assert region.path.read_bytes()[:18] == parts[0].tobytes() + parts[1].tobytes()


def test_a_released_region_is_leased_again_smallest_first(pool):
    large, small = pool.lease(2 * MIB), pool.lease(1)
    for each in (large, small):
        pool.release(each, reusable=True)
    assert [pool.lease(10), pool.lease(10)] == [small, large]
    assert len(files(large.path.parent)) == 2


def test_regions_in_quarantine_are_not_leased_but_count_against_the_limit_of_regions(pool):
    regions = [pool.lease(1) for _ in range(3)]
    for each in regions:
        pool.release(each, reusable=False)
    assert pool.lease(1) is None
    assert pool.quarantined == regions
    pool.remove(regions[0])
    assert not regions[0].path.exists()
    assert pool.lease(1) not in regions


def test_the_size_of_a_region_and_the_total_size_are_limited(pool, tmp_path):
    assert RegionPool(tmp_path).lease(SIZES[-1] + 1) is None
    assert SIZES[-1] <= MAX_BYTES
    assert pool.lease(5 * MIB)
    assert pool.lease(5 * MIB) is None
    assert pool.lease(2 * MIB), "a smaller region still fits"


def test_free_regions_that_are_too_small_are_given_up(pool):
    regions = [pool.lease(1) for _ in range(3)]
    for each in regions:
        pool.release(each, reusable=True)
    assert pool.lease(2 * MIB) is None
    assert pool.quarantined == regions[:1], "the server must unregister it first"
    pool.remove(regions[0])
    assert pool.lease(2 * MIB).size == 2 * MIB


@pytest.fixture
def dead_pid():
    """The number of a process that has ended."""
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    return process.pid


def test_only_unlocked_regions_of_processes_that_do_not_run_are_removed(tmp_path, dead_pid):
    running, locked = Region.create(tmp_path, 4096), Region.create(tmp_path, 4096)
    locked.path = locked.path.rename(tmp_path / f"alexnet-client-{dead_pid}-{'0' * 16}")
    (tmp_path / f"alexnet-client-1-{'0' * 16}").touch()
    (tmp_path / "alexnet-client-notes").touch()
    (tmp_path / f"alexnet-client-{dead_pid}-{'1' * 16}").symlink_to(tmp_path / "alexnet-client-notes")
    before = files(tmp_path)
    remove_stale_regions(tmp_path)
    assert files(tmp_path) == before
    locked.memory.close()
    remove_stale_regions(tmp_path)
    assert files(tmp_path) == before - {locked.name}
    running.remove()


def test_a_request_contains_the_name_of_the_region_and_no_tensor():
    parts = [np.zeros((2, 4), np.uint8), np.zeros((1, 4), np.uint8)]
    request = service_pb2.ModelInferRequest.FromString(
        encode_batch("m", "image", parts, ["y"], timeout_us=5, region="name")
    )
    assert not request.raw_input_contents
    tensor = request.inputs[0]
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("image", "UINT8", [3, 4])
    assert tensor.parameters["shared_memory_region"].string_param == "name"
    assert tensor.parameters["shared_memory_byte_size"].int64_param == 12
    assert request.parameters["timeout"].int64_param == 5


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Registers and unregisters regions like Triton 2.51; an inference waits for ``go`` if it is set."""

    def __init__(self) -> None:
        self.registered: dict[str, int] = {}
        self.in_use: set[str] = set()
        self.reject: tuple[grpc.StatusCode, str] | None = None
        self.go: asyncio.Event | None = None
        self.with_payload = self.with_region = self.registrations = 0

    async def SystemSharedMemoryRegister(self, request, context):  # noqa: N802
        assert KEY in context.invocation_metadata()
        self.registrations += 1
        if self.reject:
            await context.abort(*self.reject)
        assert request.key == f"/{request.name}"
        self.registered[request.name] = request.byte_size
        return service_pb2.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(self, request, context):  # noqa: N802
        if request.name in self.in_use:
            text = f"Cannot unregister shared memory region '{request.name}', it is currently in use."
            await context.abort(grpc.StatusCode.INTERNAL, text)
        self.registered.pop(request.name, None)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    async def SystemSharedMemoryStatus(self, request, context):  # noqa: N802
        response = service_pb2.SystemSharedMemoryStatusResponse()
        for name in self.registered:
            response.regions[name].name = name
        return response

    async def ModelInfer(self, request, context):  # noqa: N802
        if request.raw_input_contents:
            self.with_payload += 1
            return service_pb2.ModelInferResponse()
        name = request.inputs[0].parameters["shared_memory_region"].string_param
        if name not in self.registered:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Unable to find shared memory region: '{name}'")
        self.with_region += 1
        if self.go:
            self.in_use.add(name)
            await asyncio.shield(self.go.wait())
        return service_pb2.ModelInferResponse()


@pytest.fixture
async def triton():
    servicer, server = Triton(), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    servicer.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield servicer
    await server.stop(None)


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "shm").mkdir()
    return tmp_path / "shm"


@pytest.fixture
async def connect(triton, directory, tmp_path, monkeypatch):
    """Creates transports with an administration key; all events are in ``connect.fallbacks``."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    opened = []

    def create(target=triton.target, *, max_regions=2, **options):
        key_file(target).parent.mkdir(exist_ok=True)
        key_file(target).write_text(KEY[1])
        pool = RegionPool(directory, max_regions=max_regions)
        options = {"cleanup_interval_s": 0.02, "close_timeout_s": 0.2, "retry_interval_s": 60.0, **options}
        opened.append(SharedMemoryTransport(target, regions=pool, on_event=create.fallbacks.append, **options))
        return opened[-1]

    create.fallbacks = []
    yield create
    for transport in opened:
        await transport.close()
    assert not files(directory)


PARTS = [np.zeros((1, 8), np.uint8)]


async def infer(transport, timeout_s=60.0):
    """One request like that of a client."""

    def encode(**how):
        return encode_batch("m", "x", PARTS, ["y"], **how)

    deadline = Deadline.after(timeout_s)
    lease = await transport.lease(PARTS, deadline)
    if lease is None:
        return await transport.infer(encode(), deadline)
    return await lease.infer(encode(region=lease.region.name), deadline, encode_payload=encode)


async def test_a_region_is_registered_once_for_many_requests_and_close_unregisters_and_unlinks_it(
    triton, connect, directory
):
    transport = connect()
    for _ in range(5):
        await infer(transport)
    assert (triton.with_region, triton.with_payload, connect.fallbacks) == (5, 0, [])
    assert list(triton.registered.items()) == [(name, SIZES[0]) for name in files(directory)]
    await asyncio.gather(*(infer(transport) for _ in range(2)))
    assert len(files(directory)) == 2
    await transport.close()
    assert not triton.registered
    assert not files(directory)


async def test_after_a_timeout_or_a_cancellation_a_region_is_kept_until_the_server_has_read_it(
    triton, connect, directory
):
    transport = connect(max_regions=4)
    triton.go = asyncio.Event()
    with pytest.raises(DeadlineExceeded):
        await infer(transport, 0.1)
    cancelled = asyncio.create_task(infer(transport))
    await until(lambda: triton.with_region == 2, "the second request is at the server")
    cancelled.cancel()
    await asyncio.wait({cancelled})
    await asyncio.sleep(0.1)  # several attempts to unregister
    assert len(triton.registered) == len(files(directory)) == 2
    triton.go.set()
    triton.go = None
    await infer(transport)
    assert len(files(directory)) == 3, "the next request uses another region"
    triton.in_use.clear()
    await until(lambda: len(triton.registered) == len(files(directory)) == 1, "the quarantine is empty")


async def test_close_does_not_wait_for_a_hanging_server_and_the_next_client_cleans_up(triton, connect, directory):
    transport = connect()
    triton.go = asyncio.Event()
    with pytest.raises(DeadlineExceeded):
        await infer(transport, 0.1)
    await transport.close()
    assert not files(directory)
    assert len(triton.registered) == 1
    triton.go.set()
    triton.go = None
    await infer(connect())
    await asyncio.sleep(0.1)
    assert len(triton.registered) == 2, "the region of the first client is still in use"
    triton.in_use.clear()
    await until(lambda: set(triton.registered) == files(directory), "the region is unregistered")


async def test_requests_beyond_the_limits_fall_back_to_the_grpc_payload(triton, connect):
    transport = connect(max_regions=2)
    triton.go = asyncio.Event()
    tasks = [asyncio.create_task(infer(transport)) for _ in range(2)]
    await until(lambda: triton.with_region == 2, "all regions are in use")
    await infer(transport)
    assert (triton.with_payload, connect.fallbacks) == (1, [SharedMemoryFallback(triton.target, "full")])
    triton.go.set()
    await asyncio.gather(*tasks)
    triton.in_use.clear()


async def test_after_a_server_restart_regions_are_registered_again(triton, connect, directory):
    transport = connect()
    await infer(transport)
    triton.registered.clear()
    await infer(transport)
    assert set(triton.registered) == files(directory)
    assert (triton.with_region, triton.with_payload, connect.fallbacks) == (2, 0, [])


@pytest.mark.parametrize(("retry_interval_s", "registrations"), [(60.0, 2), (0.0, 4)])
async def test_if_a_restarted_server_rejects_regions_requests_fall_back_and_registrations_pause(
    triton, connect, retry_interval_s, registrations
):
    transport = connect(retry_interval_s=retry_interval_s)
    await infer(transport)
    triton.registered.clear()
    triton.reject = CANNOT_OPEN
    for _ in range(3):
        await infer(transport)
    assert (triton.with_region, triton.with_payload, triton.registrations) == (1, 3, registrations)
    # The first request had a region and fell back after its rejection, without an event.
    assert connect.fallbacks == [SharedMemoryFallback(triton.target, "rejected")] * 2


@pytest.mark.parametrize(
    ("status", "message"),
    [(CANNOT_OPEN, "so it runs elsewhere"), (RESTRICTED, "administration key"), (None, "no admin")],
)
async def test_the_rejection_of_the_first_region_or_a_missing_key_is_raised(
    triton, connect, directory, status, message
):
    transport = connect()
    triton.reject = status
    if status is None:
        key_file(triton.target).unlink()
    for _ in range(3):
        with pytest.raises(BadInput, match=message):
            await infer(transport)
    assert triton.with_payload == 0
    assert not files(directory)


async def test_an_unavailable_server_is_raised_for_the_first_region(connect, free_port):
    with pytest.raises(Unavailable):
        await infer(connect(f"127.0.0.1:{free_port()}"))


async def test_a_full_file_system_is_raised_for_the_first_region_and_leaves_no_file(connect, directory, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(BadInput, match=r"cannot create shared memory \(no space left on device\)"):
        await infer(connect())
    assert not files(directory)


async def test_a_region_is_not_used_again_after_a_server_fault(connect, directory, monkeypatch):
    transport = connect()
    await infer(transport)
    before = files(directory)

    async def fail(*_):
        raise ServerFault("broken")

    with monkeypatch.context() as patch:
        patch.setattr(transport, "infer", fail)
        with pytest.raises(ServerFault):
            await infer(transport)
    await until(lambda: not files(directory), "the region is removed")
    await infer(transport)
    assert not files(directory) & before


async def test_files_are_rejected(connect):
    with pytest.raises(BadInput, match="shared memory supports pixels only"):
        await connect().lease([np.array([[b"file"]], object)], Deadline.after(1))
