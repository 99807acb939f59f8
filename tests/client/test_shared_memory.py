"""Regions of shared memory: sizes, leases, bounds, quarantine, leftovers. tests/e2e has the real server."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from alexnet_client import BadInput, Client, DeadlineExceeded, ServerFault, Unavailable, shared_memory
from alexnet_client.admin import key_file
from alexnet_client.codec import encode_batch
from alexnet_client.deadline import Deadline
from alexnet_client.events import SharedMemoryFallback
from alexnet_client.regions import MOST_BYTES, MOST_REGIONS, SIZES, Region, Regions, sweep
from alexnet_client.registration import check_local
from alexnet_client.shared_memory import SharedTransport

MIB = 2**20
KEY = (("triton-grpc-protocol-admin", "key"),)


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.fixture
def regions(tmp_path):
    pool = Regions(tmp_path, most=3, most_bytes=8 * MIB)
    yield pool
    for each in pool.all:
        pool.drop(each)


def test_a_lease_has_room_for_what_was_asked_for_in_one_of_few_sizes(regions):
    assert [regions.take(nbytes).size for nbytes in (1, MIB + 1)] == [SIZES[0], SIZES[1]]
    assert 64 * 224 * 224 * 3 <= 10 * MIB in SIZES, "a full batch wastes little"


def test_a_region_is_the_owners_alone_and_names_its_process(regions, tmp_path):
    region = regions.take(1)
    assert stat.S_IMODE(region.path.stat().st_mode) == 0o600
    assert region.path.parent == tmp_path
    assert region.name.startswith(f"alexnet-client-{os.getpid()}-")


def test_arrays_lie_one_after_the_other_in_row_major_order_also_if_they_are_not_contiguous(regions):
    region = regions.take(1)
    parts = [np.arange(12, dtype=np.uint8).reshape(3, 4).T, np.full((2, 3), 7, np.uint8)]
    region.write(parts)
    assert region.path.read_bytes()[:18] == parts[0].tobytes() + parts[1].tobytes()


def test_a_region_given_back_after_an_answer_is_leased_again_the_smallest_that_fits_first(regions):
    large, small = regions.take(2 * MIB), regions.take(1)
    assert large is not small
    for each in (large, small):
        regions.end(each, well=True)
    assert regions.take(10) is small
    assert regions.take(10) is large
    assert len(files(large.path.parent)) == 2


def test_a_region_whose_request_did_not_end_well_is_never_leased_again_nor_unlinked_by_itself(regions):
    region = regions.take(1)
    regions.end(region, well=False)
    assert regions.take(1) is not region
    assert region.path.exists()
    assert regions.quarantined == [region]
    regions.drop(region)
    assert not region.path.exists()


def test_there_are_no_more_regions_than_the_bound_and_those_in_quarantine_count(regions):
    for _ in range(3):
        regions.end(regions.take(1), well=False)
    assert regions.take(1) is None


def test_there_are_no_more_bytes_than_the_bound(regions):
    assert regions.take(5 * MIB)
    assert regions.take(5 * MIB) is None
    assert regions.take(2 * MIB), "a smaller one still fits"


def test_a_free_region_that_is_too_small_makes_room_for_the_next(regions):
    taken = [regions.take(1) for _ in range(3)]
    for each in taken:
        regions.end(each, well=True)
    assert regions.take(2 * MIB) is None
    assert regions.quarantined == taken[:1], "the server must unregister it first"
    regions.drop(taken[0])
    assert regions.take(2 * MIB).size == 2 * MIB


def test_more_than_the_largest_region_is_left_to_the_wire(tmp_path):
    assert Regions(tmp_path).take(SIZES[-1] + 1) is None
    assert not files(tmp_path)
    assert SIZES[-1] <= MOST_BYTES


def test_a_full_file_system_is_an_error_at_once_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Region.create(tmp_path, MIB)
    assert not files(tmp_path)


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_regions_of_a_client_that_was_killed_are_removed(tmp_path):
    code = (
        "import os, pathlib, sys; from alexnet_client.regions import Region;"
        "Region.create(pathlib.Path(sys.argv[1]), 4096); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], check=False).returncode == -9
    assert len(files(tmp_path)) == 1
    sweep(tmp_path)
    assert not files(tmp_path)


def test_regions_of_processes_that_run_are_left_alone(tmp_path):
    region = Region.create(tmp_path, 4096)
    other = tmp_path / f"alexnet-client-1-{'0' * 16}"
    other.touch()
    sweep(tmp_path)
    assert files(tmp_path) == {region.name, other.name}
    region.remove()


def test_a_region_that_somebody_holds_is_left_alone_though_its_process_is_not_seen_to_run(tmp_path, dead):
    region = Region.create(tmp_path, 4096)
    path = region.path.rename(tmp_path / f"alexnet-client-{dead}-{'0' * 16}")
    sweep(tmp_path)
    assert path.exists()
    region.memory.close()
    sweep(tmp_path)
    assert not path.exists()


def test_other_files_and_links_are_left_alone(tmp_path, dead):
    secret = tmp_path / "alexnet-client-notes"
    secret.touch()
    link = tmp_path / f"alexnet-client-{dead}-{'0' * 16}"
    link.symlink_to(secret)
    sweep(tmp_path)
    assert files(tmp_path) == {secret.name, link.name}


def test_a_request_names_the_region_and_carries_no_tensor():
    parts = [np.zeros((2, 4), np.uint8), np.zeros((1, 4), np.uint8)]
    placed = service_pb2.ModelInferRequest.FromString(
        encode_batch("m", "image", parts, ["y"], timeout_us=5, region="there")
    )
    assert not placed.raw_input_contents
    tensor = placed.inputs[0]
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("image", "UINT8", [3, 4])
    assert tensor.parameters["shared_memory_region"].string_param == "there"
    assert tensor.parameters["shared_memory_byte_size"].int64_param == 12
    assert placed.parameters["timeout"].int64_param == 5
    assert [output.name for output in placed.outputs] == ["y"]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("127.0.0.1:8001", "127.0.0.1:8001"),
        ("localhost:8001", "127.0.0.1:8001"),
        ("[::1]:8001", "::1:8001"),
    ],
)
def test_the_key_of_a_server_here_is_looked_for_by_its_loopback_address(address, name):
    assert check_local(address) == name


@pytest.mark.parametrize("address", ["10.0.0.1:8001", "example.org:8001", "0.0.0.0:8001"])
def test_a_server_that_may_be_elsewhere_is_refused_when_the_client_is_made(address):
    with pytest.raises(
        BadInput, match=r"shared memory and administration work with servers on this machine.*connect to others without"
    ):
        Client(f"127.0.0.1:1,{address}", shared_memory=True)


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Registers, unregisters and refuses as Triton 2.51 does; an inference waits for ``go`` if there is one."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.in_use: set[str] = set()
        self.refuse: tuple[grpc.StatusCode, str] | None = None
        self.go: asyncio.Event | None = None
        self.by_wire = self.placed = self.registrations = 0

    async def SystemSharedMemoryRegister(self, request, context):  # noqa: N802
        assert KEY[0] in context.invocation_metadata()
        self.registrations += 1
        if self.refuse:
            await context.abort(*self.refuse)
        assert request.key == f"/{request.name}"
        self.known[request.name] = request.byte_size
        return service_pb2.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(self, request, context):  # noqa: N802
        if request.name in self.in_use:
            text = f"Cannot unregister shared memory region '{request.name}', it is currently in use."
            await context.abort(grpc.StatusCode.INTERNAL, text)
        self.known.pop(request.name, None)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    async def SystemSharedMemoryStatus(self, request, context):  # noqa: N802
        response = service_pb2.SystemSharedMemoryStatusResponse()
        for name in self.known:
            response.regions[name].name = name
        return response

    async def ModelInfer(self, request, context):  # noqa: N802
        if request.raw_input_contents:
            self.by_wire += 1
            return service_pb2.ModelInferResponse()
        name = request.inputs[0].parameters["shared_memory_region"].string_param
        if name not in self.known:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Unable to find shared memory region: '{name}'")
        self.placed += 1
        if self.go:
            self.in_use.add(name)
            await asyncio.shield(self.go.wait())
        return service_pb2.ModelInferResponse()


@pytest.fixture
async def triton(tmp_path, monkeypatch):
    """(servicer, makes a transport to it, directory of the regions, what went over the wire instead)."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(shared_memory, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(shared_memory, "CLOSE_S", 0.2)
    servicer, server = Triton(), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    key_file(target).parent.mkdir()
    key_file(target).write_text(KEY[0][1])
    await server.start()
    directory = tmp_path / "shm"
    directory.mkdir()
    missed: list[SharedMemoryFallback] = []
    transport = SharedTransport(target, directory=directory, on_event=missed.append)
    yield servicer, transport, directory, missed
    await transport.close()
    await server.stop(None)
    assert not files(directory)


PARTS = [np.zeros((1, 8), np.uint8)]
IMAGES = (PARTS, ["y"])


async def ask(transport, timeout_s=10.0):
    """What a client's attempt does."""
    deadline = Deadline.after(timeout_s)
    lease = await transport.lease(PARTS, deadline)
    if lease is None:
        return await transport.infer(encode_batch("m", "x", *IMAGES), deadline)
    request = encode_batch("m", "x", *IMAGES, region=lease.name)
    return await lease.infer(request, deadline, by_wire=lambda: encode_batch("m", "x", *IMAGES))


async def eventually(condition):
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


async def test_a_region_is_registered_once_and_serves_many_requests(triton):
    server, transport, directory, missed = triton
    for _ in range(5):
        await ask(transport)
    assert (server.placed, server.by_wire, missed) == (5, 0, [])
    assert list(server.known.items()) == [(name, SIZES[0]) for name in files(directory)]


async def test_close_unregisters_and_unlinks(triton):
    server, transport, directory, _ = triton
    await asyncio.gather(*(ask(transport) for _ in range(3)))
    await transport.close()
    assert not server.known
    assert not files(directory)


async def test_a_region_in_use_after_a_timeout_or_a_cancellation_stays_until_the_server_is_done(triton):
    server, transport, directory, _ = triton
    server.go = asyncio.Event()
    with pytest.raises(DeadlineExceeded):
        await ask(transport, 0.1)
    cancelled = asyncio.create_task(ask(transport))
    await eventually(lambda: server.placed == 2)
    cancelled.cancel()
    await asyncio.wait({cancelled})
    await asyncio.sleep(0.1)  # the quarantine is looked at several times
    assert len(server.known) == len(files(directory)) == 2
    server.go.set()
    server.go = None
    await ask(transport)
    assert len(files(directory)) == 3, "another region is used meanwhile"
    server.in_use.clear()
    await eventually(lambda: len(server.known) == len(files(directory)) == 1)


async def test_close_does_not_wait_for_a_server_that_never_finishes(triton):
    server, transport, directory, _ = triton
    server.go = asyncio.Event()
    with pytest.raises(DeadlineExceeded):
        await ask(transport, 0.1)
    began_s = time.monotonic()
    await transport.close()
    assert time.monotonic() - began_s < 2
    assert not files(directory)
    assert len(server.known) == 1, "it is left to the next client"
    server.go.set()
    server.go = None
    next_one = SharedTransport(transport.target, directory=directory)
    await ask(next_one)
    await asyncio.sleep(0.1)
    assert len(server.known) == 2, "the lost one is still in use"
    server.in_use.clear()
    await eventually(lambda: set(server.known) == files(directory))
    await next_one.close()


async def test_requests_beyond_the_bounds_go_over_the_wire_at_once(triton):
    server, transport, _, missed = triton
    transport.regions._most = 2
    server.go = asyncio.Event()
    waiting = [asyncio.create_task(ask(transport)) for _ in range(2)]
    await eventually(lambda: server.placed == 2)
    await ask(transport)
    assert (server.by_wire, missed) == (1, [SharedMemoryFallback(transport.target, "full")])
    server.go.set()
    await asyncio.gather(*waiting)
    server.in_use.clear()


async def test_a_server_that_was_started_again_is_told_of_the_regions_again(triton):
    server, transport, directory, missed = triton
    await ask(transport)
    server.known.clear()
    await ask(transport)
    assert set(server.known) == files(directory)
    assert (server.placed, server.by_wire, missed) == (2, 0, [])


async def test_a_server_that_was_started_again_and_refuses_is_asked_over_the_wire(triton):
    server, transport, _, missed = triton
    await ask(transport)
    server.known.clear()
    server.refuse = (grpc.StatusCode.INTERNAL, "Unable to open shared memory region: '/x'")
    for _ in range(3):
        await ask(transport)
    assert (server.placed, server.by_wire) == (1, 3)
    assert server.registrations == 2, "it is left alone for a while"
    assert missed == [SharedMemoryFallback(transport.target, "rejected")] * 2, (
        "the first one was found out by its request"
    )
    server.refuse = None
    transport._rests_until_s = 0.0
    await ask(transport)
    assert server.placed == 2


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((grpc.StatusCode.INTERNAL, "Unable to open shared memory region: '/x'"), "so it runs elsewhere"),
        ((grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'x'"), "administration key"),
    ],
)
async def test_the_first_refusal_is_told_and_not_hidden_by_the_wire(triton, refusal, message):
    server, transport, directory, _ = triton
    server.refuse = refusal
    for _ in range(MOST_REGIONS + 1):
        with pytest.raises(BadInput, match=message):
            await ask(transport)
    assert server.by_wire == 0
    assert not files(directory)


async def test_no_key_a_dead_server_and_no_memory_are_told_too(triton, monkeypatch, free_port):
    server, transport, directory, _ = triton
    path = key_file(transport.target)
    key = path.read_text()
    path.unlink()
    for _ in range(MOST_REGIONS + 1):
        with pytest.raises(BadInput, match="no administration key"):
            await ask(transport)
    path.write_text(key)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(BadInput, match=r"no shared memory to be had \(no space left on device\)"):
            await ask(transport)
    nobody = SharedTransport(f"127.0.0.1:{free_port()}", directory=directory)
    key_file(nobody.target).write_text("key")
    with pytest.raises(Unavailable):
        await ask(nobody)
    await nobody.close()
    assert server.by_wire == 0


async def test_a_region_is_not_used_again_after_the_servers_error(triton):
    _, transport, directory, _ = triton
    await ask(transport)
    before = files(directory)

    async def fail(*_):
        raise ServerFault("broken")

    transport.infer, whole = fail, transport.infer
    with pytest.raises(ServerFault):
        await ask(transport)
    transport.infer = whole
    await eventually(lambda: not files(directory))
    await ask(transport)
    assert not files(directory) & before


async def test_a_model_that_reads_files_is_refused(triton):
    _, transport, _, _ = triton
    with pytest.raises(BadInput, match="shared memory is for pixels"):
        await transport.lease([np.array([[b"file"]], object)], Deadline.after(1))
