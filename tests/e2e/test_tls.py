"""Mutual TLS with the real server: only clients with a certificate from our CA are served; expiry times are exported."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request

import grpc
import numpy as np
import pytest
from authority import Authority
from prometheus_client import CollectorRegistry, generate_latest
from servers import run, run_command, serve_command
from tritonclient.grpc import service_pb2, service_pb2_grpc

from alexnet_client import Client
from alexnet_client.admin import admin_metadata
from alexnet_client.connection import Connection, Tls
from alexnet_client.errors import Unavailable
from alexnet_client.metrics import ClientMetrics
from alexnet_server.preflight import check_certificates

DAY_S = 86_400
IMAGES = np.arange(2 * 224 * 224 * 3, dtype=np.uint8).reshape(2, 224, 224, 3)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    authority = Authority(tmp_path_factory.mktemp("tls") / "ours", "ours")
    for name in ("triton.test", "client.test"):
        authority.issue_directory(name)
    return authority


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    authority = Authority(tmp_path_factory.mktemp("tls") / "others", "others")
    authority.issue_directory("client.test")
    return authority


@pytest.fixture(scope="module")
def secured(ours, cheap_server):
    with cheap_server("--tls", ours.directory_of("triton.test")) as server:
        yield server


async def infer(server, tls):
    async with Client(server.target, timeout_s=3, connection=Connection(tls=tls)) as client:
        return (await client.infer(IMAGES)).logits


async def test_a_client_with_a_certificate_from_our_ca_is_served(secured, ours, cheap):
    tls = Tls.of_directory(ours.directory_of("client.test"), server_name="triton.test")
    assert np.allclose(await infer(secured, tls), cheap.logits(IMAGES), atol=1e-4)


@pytest.mark.parametrize(
    ("roots", "certificate", "reason"),
    [("", "", None), ("ours", "", None), ("ours", "others", None), ("others", "ours", "certificate")],
    ids=["no TLS", "no client certificate", "client certificate from another CA", "server certificate from another CA"],
)
async def test_clients_and_servers_without_a_certificate_from_the_ca_of_the_other_side_are_rejected(
    secured, ours, others, roots, certificate, reason
):
    authorities, files = {"ours": ours, "others": others}, (None, None)
    if certificate:
        directory = authorities[certificate].directory_of("client.test")
        files = directory / "tls.key", directory / "tls.crt"
    tls = Tls(authorities[roots].file("ca.crt"), *files, server_name="triton.test") if roots else None
    with pytest.raises(Unavailable, match=reason):
        await infer(secured, tls)


def test_the_administration_key_without_a_certificate_is_rejected(secured):
    with grpc.insecure_channel(secured.target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as rejected:
            stub.RepositoryIndex(
                service_pb2.RepositoryIndexRequest(), timeout=3, metadata=admin_metadata(secured.target)
            )
    assert rejected.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_launcher_and_the_client_export_when_their_certificates_expire(secured, ours):
    registry = CollectorRegistry()
    tls = Tls.of_directory(ours.directory_of("client.test"), server_name="triton.test")
    Client(secured.target, connection=Connection(tls=tls), listeners=[ClientMetrics(registry)])
    with urllib.request.urlopen(f"http://127.0.0.1:{secured.health_port}/metrics", timeout=5) as response:
        exported = response.read().decode() + generate_latest(registry).decode()
    for side in ("server", "client"):
        for name in ("ca", "tls"):
            metric = f'alexnet_{side}_certificate_expiry_timestamp_seconds{{certificate="{name}"}} '
            (value,) = [line.removeprefix(metric) for line in exported.splitlines() if line.startswith(metric)]
            assert 0 < float(value) - time.time() <= DAY_S


def test_the_command_lines_support_mutual_tls(secured, ours):
    directory = ours.directory_of("client.test")
    connection = ("--target", secured.target, "--tls", directory, "--tls-name", "triton.test", "--json")

    def result(module, *arguments):
        done = run_command(module, *arguments, *connection)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    assert result("alexnet_client", "health")["ready"]
    load = result("alexnet_load", "run", "--rate", 50, "--duration", 1, "--warm-up", 0)
    assert load["server"]["success"] == load["client"]["attempts"]["ok"] > 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda directory, other: (directory / "tls.key").chmod(0o644), "every user of this machine can read it"),
        (lambda directory, other: (directory / "tls.key").write_bytes((other / "tls.key").read_bytes()), "MISMATCH"),
        (lambda directory, other: (directory / "ca.crt").write_text("no certificate"), "ca.crt: NO_CERTIFICATE"),
    ],
    ids=["readable", "of another certificate", "damaged"],
)
def test_the_check_before_the_start_finds_invalid_files(ours, tmp_path, damage, reason):
    directory = shutil.copytree(ours.directory_of("triton.test"), tmp_path / "tls")
    damage(directory, ours.directory_of("client.test"))
    assert reason in check_certificates(directory, {}).found


def test_invalid_files_are_reported_before_triton_starts(ours, cheap, tmp_path, free_port):
    directory = shutil.copytree(ours.directory_of("triton.test"), tmp_path / "tls")
    (directory / "tls.crt").unlink()
    done = run(serve_command(cheap.repository, free_port, "--tls", directory))
    assert done.returncode == 1
    assert "tls.crt: no such file" in done.stderr
