"""TLS and mutual TLS with certificates created here, and metadata."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from authority import Authority
from tritonclient.grpc import service_pb2, service_pb2_grpc

from alexnet_client.connection import Connection, Tls
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, Unavailable
from alexnet_client.transport import Transport


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    """Two authorities: that of the server, and another one with a client certificate of the same name."""
    both = [Authority(tmp_path_factory.mktemp("tls") / name, name) for name in ("ours", "foreign")]
    both[0].sign("server", "triton.test")
    for each in both:
        each.sign("client", "client.test")
    return both


def tls(authority, client=None):
    files = {"key": client.file("client.key"), "certificate": client.file("client.crt")} if client else {}
    return Connection(tls=Tls(roots=authority.file("ca.crt"), server_name="triton.test", **files))


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Always ready; records the metadata of the calls."""

    def __init__(self):
        self.metadata = []

    async def ServerReady(self, request, context):  # noqa: N802  the name is the protocol's
        self.metadata.append(dict(context.invocation_metadata()))
        return service_pb2.ServerReadyResponse(ready=True)


@asynccontextmanager
async def serving(authority=None, *, mutual=False):
    servicer, server = Servicer(), grpc.aio.server()
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
        return await transport.ready(Deadline.after(60))
    finally:
        await transport.close()


async def test_only_a_server_with_a_trusted_certificate_is_used(authorities):
    ours, foreign = authorities
    async with serving(ours) as (servicer, target):
        for connection in (tls(foreign), Connection()):
            with pytest.raises(Unavailable):
                await ready(target, connection)
        assert not servicer.metadata
        assert await ready(target, tls(ours))


async def test_mutual_tls_requires_a_client_certificate_of_the_right_authority(authorities):
    ours, foreign = authorities
    async with serving(ours, mutual=True) as (_, target):
        assert await ready(target, tls(ours, client=ours))
        for client in (None, foreign):
            with pytest.raises(Unavailable):
                await ready(target, tls(ours, client=client))


async def test_metadata_is_sent_with_every_call_and_not_printed():
    connection = Connection(metadata=(("authorization", "Bearer secret"),))
    async with serving() as (servicer, target):
        assert await ready(target, connection)
    assert servicer.metadata[0]["authorization"] == "Bearer secret"
    assert "secret" not in repr(connection)


def test_missing_files_and_incomplete_pairs_are_rejected():
    with pytest.raises(BadInput, match=r"/nowhere/ca\.crt: no such file"):
        Tls(roots=Path("/nowhere/ca.crt")).credentials()
    with pytest.raises(BadInput, match="both the key and the certificate"):
        Tls(key=Path("client.key")).credentials()
