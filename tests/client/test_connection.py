"""How a server is reached: TLS and mutual TLS with certificates made here, metadata, compression, channels, gRPC's balancing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from authority import Authority
from tritonclient.grpc import service_pb2, service_pb2_grpc

from alexnet_client.client import Client
from alexnet_client.connection import Connection, Tls
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, Unavailable
from alexnet_client.transport import Transport


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    authority = Authority(tmp_path_factory.mktemp("tls") / "ours", "ours")
    authority.sign("server", "triton.test")
    authority.sign("client", "client.test")
    return authority


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    authority = Authority(tmp_path_factory.mktemp("tls") / "strangers", "strangers")
    authority.sign("client", "client.test")
    return authority


class Listening(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Says that it is ready, and remembers what came with the question."""

    def __init__(self):
        self.metadata, self.peers = [], set()

    async def ServerReady(self, request, context):  # noqa: N802  the name is the protocol's
        self.metadata.append(dict(context.invocation_metadata()))
        self.peers.add(context.peer())
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelInfer(self, request, context):  # noqa: N802
        return await self.ServerReady(request, context) and service_pb2.ModelInferResponse()


@asynccontextmanager
async def listening(authority=None, *, mutual=False):
    servicer, server = Listening(), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    if authority is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = (authority.file("server.key").read_bytes(), authority.file("server.crt").read_bytes())
        roots = authority.file("ca.crt").read_bytes()
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair], roots, mutual))
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


async def ready(target, connection):
    transport = Transport(target, connection)
    try:
        return await transport.ready(Deadline.after(5))
    finally:
        await transport.close()


async def test_a_trusted_server_is_talked_to_in_secret(ours):
    tls = Tls(roots=ours.file("ca.crt"), server_name="triton.test")
    async with listening(ours) as (_, target):
        assert await ready(target, Connection(tls=tls))


async def test_a_server_that_nobody_vouches_for_is_not_talked_to(ours, strangers):
    tls = Tls(roots=strangers.file("ca.crt"), server_name="triton.test")
    async with listening(ours) as (servicer, target):
        with pytest.raises(Unavailable):
            await ready(target, Connection(tls=tls))
        with pytest.raises(Unavailable):
            await ready(target, Connection())  # without TLS neither
    assert not servicer.metadata


async def test_mutual_tls_lets_in_who_has_a_certificate_and_nobody_else(ours, strangers):
    def tls(of):
        files = {"key": of.file("client.key"), "certificate": of.file("client.crt")} if of else {}
        return Connection(tls=Tls(roots=ours.file("ca.crt"), server_name="triton.test", **files))

    async with listening(ours, mutual=True) as (_, target):
        assert await ready(target, tls(ours))
        for other in (None, strangers):
            with pytest.raises(Unavailable):
                await ready(target, tls(other))


async def test_metadata_goes_with_every_call_and_is_not_shown(ours):
    connection = Connection(metadata=(("authorization", "Bearer hush"),))
    async with listening() as (servicer, target):
        assert await ready(target, connection)
    assert servicer.metadata[0]["authorization"] == "Bearer hush"
    assert "hush" not in repr(connection)


@asynccontextmanager
async def counting(target):
    """A relay in front of a server; yields its address and the bytes that went to the server."""
    sent = [0]

    async def pump(reader, writer, *, count):
        while content := await reader.read(2**16):
            sent[0] += count * len(content)
            writer.write(content)
            await writer.drain()
        writer.close()

    async def relay(reader, writer):
        behind_reader, behind_writer = await asyncio.open_connection(*target.split(":"))
        await asyncio.gather(pump(reader, behind_writer, count=1), pump(behind_reader, writer, count=0))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", sent


async def test_requests_are_compressed_when_asked():
    sizes = {}
    async with listening() as (_, target):
        for compression in ("", "gzip"):
            async with counting(target) as (address, sent):
                transport = Transport(address, Connection(compression=compression))
                request = service_pb2.ModelInferRequest(raw_input_contents=[bytes(10**6)])
                await transport.infer(request, Deadline.after(5))
                await transport.close()
            sizes[compression] = sent[0]
    assert sizes[""] > 10**6 > 100 * sizes["gzip"]


async def test_channels_are_connections_of_their_own_used_in_turn():
    async with listening() as (servicer, target):
        transport = Transport(target, Connection(channels=3))
        for _ in range(6):
            await transport.infer(service_pb2.ModelInferRequest(), Deadline.after(5))
        await transport.close()
    assert len(servicer.peers) == 3


async def test_grpc_may_balance_by_itself():
    async with (
        listening() as (first, one),
        listening() as (second, two),
        Client(f"{one},{two}", connection=Connection(balance="grpc")) as client,
    ):
        for _ in range(20):
            assert await client._fleet.ask(lambda transport, until: transport.ready(until), Deadline.after(5))
    assert len(first.metadata) >= 5
    assert len(second.metadata) >= 5


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"compression": "zip"}, "gzip, deflate or empty"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"balance": "luck"}, "client or grpc"),
    ],
)
def test_senseless_connections_are_refused(wrong, says):
    with pytest.raises(BadInput, match=says):
        Connection(**wrong)


def test_missing_files_and_half_a_pair_are_named():
    with pytest.raises(BadInput, match=r"/nowhere/ca\.crt: no such file"):
        Tls(roots=Path("/nowhere/ca.crt")).credentials()
    with pytest.raises(BadInput, match="both the client's key and its certificate"):
        Tls(key=Path("client.key")).credentials()
