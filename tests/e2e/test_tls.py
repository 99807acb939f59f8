"""Mutual TLS with the real server: who shows a certificate of our authority is answered, nobody else is, and ends are foreseen."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request

import grpc
import numpy as np
import pytest
from authority import Authority
from prometheus_client import CollectorRegistry, generate_latest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from alexnet_client import Client
from alexnet_client.admin import admin_metadata
from alexnet_client.connection import Connection, Tls
from alexnet_client.errors import Unavailable
from alexnet_client.metrics import ClientMetrics

DAY_S = 86_400
IMAGES = np.arange(2 * 224 * 224 * 3, dtype=np.uint8).reshape(2, 224, 224, 3)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    authority = Authority(tmp_path_factory.mktemp("tls") / "ours", "ours")
    for name in ("triton.test", "caller.test"):
        authority.hand_out(name)
    return authority


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    authority = Authority(tmp_path_factory.mktemp("tls") / "strangers", "strangers")
    authority.hand_out("caller.test")
    return authority


@pytest.fixture(scope="module")
def secured(ours, cheap, tmp_path_factory, free_port, launch):
    directory = tmp_path_factory.mktemp("secured")
    with launch(cheap.repository, directory, free_port, "--tls", ours.handed("triton.test")) as server:
        yield server


async def ask(server, tls, **more):
    async with Client(server.target, timeout_s=3, connection=Connection(tls=tls), **more) as client:
        return (await client.infer(IMAGES)).logits


async def test_a_caller_with_a_certificate_of_our_authority_is_answered(secured, ours, cheap):
    tls = Tls.of_directory(ours.handed("caller.test"), server_name="triton.test")
    assert np.allclose(await ask(secured, tls), cheap.logits(IMAGES), atol=1e-4)


async def test_a_caller_without_tls_is_refused(secured):
    with pytest.raises(Unavailable):
        await ask(secured, None)


async def test_a_caller_without_a_certificate_is_refused(secured, ours):
    with pytest.raises(Unavailable):
        await ask(secured, Tls(roots=ours.file("ca.crt"), server_name="triton.test"))


async def test_a_caller_with_a_stranger_s_certificate_is_refused(secured, ours, strangers):
    theirs = strangers.handed("caller.test")
    tls = Tls(ours.file("ca.crt"), theirs / "tls.key", theirs / "tls.crt", "triton.test")
    with pytest.raises(Unavailable):
        await ask(secured, tls)


async def test_a_server_that_our_authority_does_not_know_is_not_talked_to(secured, ours, strangers):
    own = ours.handed("caller.test")
    tls = Tls(strangers.file("ca.crt"), own / "tls.key", own / "tls.crt", "triton.test")
    with pytest.raises(Unavailable, match="certificate"):
        await ask(secured, tls)


def test_the_administration_key_alone_opens_nothing(secured):
    with grpc.insecure_channel(secured.target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.RepositoryIndex(
                service_pb2.RepositoryIndexRequest(), timeout=3, metadata=admin_metadata(secured.target)
            )
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_launcher_and_the_client_tell_when_their_certificates_expire(secured, ours):
    registry = CollectorRegistry()
    tls = Tls.of_directory(ours.handed("caller.test"), server_name="triton.test")
    Client(secured.target, connection=Connection(tls=tls), listeners=[ClientMetrics(registry)])
    with urllib.request.urlopen(f"http://127.0.0.1:{secured.health_port}/metrics", timeout=5) as response:
        told = response.read().decode() + generate_latest(registry).decode()
    for side in ("server", "client"):
        for name in ("ca", "tls"):
            metric = f'alexnet_{side}_certificate_expiry_timestamp_seconds{{certificate="{name}"}} '
            (value,) = [line.removeprefix(metric) for line in told.splitlines() if line.startswith(metric)]
            assert 0 < float(value) - time.time() <= DAY_S


def test_the_command_lines_speak_it_too(secured, ours, tmp_path):
    secret = ("--target", secured.target, "--tls", ours.handed("caller.test"), "--tls-name", "triton.test", "--json")

    def said(module, *arguments):
        command = [sys.executable, "-m", module, *map(str, (*arguments, *secret))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    assert said("alexnet_client", "health")["ready"]
    run = said("alexnet_load", "run", "--rate", "50", "--duration", "1", "--warm-up", "0")
    assert run["server"]["success"] == run["client"]["attempts"]["ok"] > 0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda directory, other: (directory / "tls.key").unlink(), "tls.key: no such file"),
        (lambda directory, other: (directory / "tls.key").chmod(0o644), "every user of this machine can read it"),
        (lambda directory, other: (directory / "tls.key").write_bytes((other / "tls.key").read_bytes()), "MISMATCH"),
        (lambda directory, other: (directory / "ca.crt").write_text("no certificate"), "ca.crt: NO_CERTIFICATE"),
    ],
    ids=["missing", "open", "of another", "damaged"],
)
def test_files_that_cannot_be_right_are_named_before_anything_is_started(ours, cheap, tmp_path, free_port, spoil, said):
    copy = ours.handed("triton.test", into=tmp_path / "tls")
    spoil(copy, ours.handed("caller.test"))
    ports = ("--grpc-port", free_port(), "--metrics-port", free_port(), "--health-port", 0)
    command = [sys.executable, "-m", "alexnet_server", "serve", "--repository", cheap.repository, "--tls", copy, *ports]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
