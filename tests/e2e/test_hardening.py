"""Restricted calls by gRPC and HTTP are rejected; other users of the machine see no key and no image."""

from __future__ import annotations

import json
import os
import stat
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import psutil
import pytest
from servers import run_command
from tritonclient.grpc import service_pb2, service_pb2_grpc

from alexnet_client.admin import admin_metadata, key_file

SECRETS = {"AWS_SECRET_ACCESS_KEY": "hush", "AIP_MODE": "PREDICTION", "TRITONSERVER_DELAY_SCHEDULER": "9"}


@pytest.fixture(scope="module")
def open_server(cheap_server, free_port):
    """A server with HTTP, started with secrets and dangerous variables in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in SECRETS.items():
            patch.setenv(key, value)
        http = free_port()
        with cheap_server("--http-port", http) as server:
            yield server, f"http://127.0.0.1:{http}"


@pytest.fixture
def stub(open_server):
    with grpc.insecure_channel(open_server[0].target) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


OWNED = Path(tempfile.gettempdir()) / f"alexnet-owned-{os.getpid()}"
"""A file that the server would write if the call were permitted."""
RESTRICTED = [
    ("SystemSharedMemoryRegister", {"name": "x", "key": "/x", "byte_size": 1}),
    ("SystemSharedMemoryStatus", {}),
    ("SystemSharedMemoryUnregister", {}),
    ("CudaSharedMemoryRegister", {"name": "x", "raw_handle": b"x"}),
    ("CudaSharedMemoryStatus", {}),
    ("RepositoryIndex", {}),
    ("RepositoryModelLoad", {"model_name": "alexnet"}),
    ("RepositoryModelLoad", {"model_name": "alexnet", "parameters": {"config": {"string_param": "{}"}}}),
    ("RepositoryModelUnload", {"model_name": "alexnet"}),
    ("LogSettings", {"settings": {"log_file": {"string_param": str(OWNED)}}}),
    ("TraceSetting", {"settings": {"trace_file": {"value": [str(OWNED)]}}}),
    ("ModelStatistics", {"name": "alexnet"}),
]
RESTRICTED_HTTP = [
    ("POST", "repository/index", {}),
    ("POST", "repository/models/alexnet/load", {}),
    ("POST", "repository/models/alexnet/load", {"parameters": {"config": "{}"}}),
    ("POST", "repository/models/alexnet/unload", {}),
    ("GET", "systemsharedmemory/status", None),
    ("POST", "systemsharedmemory/region/x/register", {"key": "/x", "offset": 0, "byte_size": 1}),
    ("POST", "systemsharedmemory/unregister", {}),
    ("GET", "cudasharedmemory/status", None),
    ("POST", "logging", {"log_file": str(OWNED)}),
    ("POST", "trace/setting", {"trace_file": str(OWNED)}),
    ("GET", "models/alexnet/stats", None),
]


def call(stub, method, fields, **options):
    """Send a gRPC request: method and fields of the request."""
    return getattr(stub, method)(getattr(service_pb2, f"{method}Request")(**fields), timeout=10, **options)


@pytest.mark.parametrize(("method", "fields"), RESTRICTED)
def test_grpc_rejects_restricted_calls_without_the_key(stub, method, fields):
    for metadata in ((), (("triton-grpc-protocol-admin", "wrong"),)):
        with pytest.raises(grpc.RpcError, match="This protocol is restricted"):
            call(stub, method, fields, metadata=metadata)
    assert not OWNED.exists()


def http_error(request):
    """Status and body of a rejected HTTP request."""
    with pytest.raises(urllib.error.HTTPError) as rejected:
        urllib.request.urlopen(request, timeout=10)
    with rejected.value as response:
        return response.code, response.read()


@pytest.mark.parametrize(("method", "path", "body"), RESTRICTED_HTTP)
def test_http_rejects_restricted_calls_without_the_key(open_server, method, path, body):
    content = None if body is None else json.dumps(body).encode()
    code, text = http_error(urllib.request.Request(f"{open_server[1]}/v2/{path}", method=method, data=content))
    assert code == 403
    assert b"restricted" in text
    assert not OWNED.exists()


@pytest.mark.parametrize("path", ["/invocations", "/ping", "/predict", "/v1/endpoints/1/deployedModels/1"])
def test_the_endpoints_of_cloud_platforms_do_not_exist(open_server, path):
    assert http_error(urllib.request.Request(open_server[1] + path, data=b"{}"))[0] in (400, 404, 405)


def test_the_key_permits_administration_but_not_loading_models(open_server, stub):
    metadata = admin_metadata(open_server[0].target)
    call(stub, "SystemSharedMemoryStatus", {}, metadata=metadata)
    statistics = call(stub, "ModelStatistics", {"name": "alexnet"}, metadata=metadata)
    assert statistics.model_stats[0].name == "alexnet"
    with pytest.raises(grpc.RpcError, match="explicit model load / unload is not allowed"):
        call(stub, "RepositoryModelLoad", {"model_name": "alexnet"}, metadata=metadata)


def test_only_the_owner_can_read_the_key_file_and_the_log_and_the_key_is_deleted_after_the_stop(cheap_server):
    with cheap_server() as server:
        path = key_file(server.target)
        key = path.read_text().strip()
        assert len(key) >= 40
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.log.stat().st_mode) == 0o600
        assert server.stop() == 0
        assert key not in server.log.read_text()
        assert key not in server.process.stdout.read() + server.process.stderr.read()
    assert not path.exists()


def test_a_second_launcher_on_the_same_ports_reports_their_owners_and_does_not_change_the_key(open_server, cheap):
    server = open_server[0]
    key, port = key_file(server.target).read_text(), server.target.split(":")[1]
    done = run_command(
        *("alexnet_server", "serve", "--repository", cheap.repository),
        *("--grpc-port", port, "--health-port", server.health_port),
    )
    assert done.returncode == 1
    assert f"port {port} (gRPC): in use by tritonserver (pid {server.triton().pid})" in done.stderr
    assert f"(health): in use by python3 (pid {server.process.pid})" in done.stderr.replace("python (", "python3 (")
    assert "choose another port (--grpc-port" in done.stderr
    assert key_file(server.target).read_text() == key


def test_only_the_owner_can_read_shared_memory_with_images(open_server):
    regions = list(Path("/dev/shm").glob(f"alexnet_{open_server[0].process.pid}_*"))
    assert len(regions) >= 2, "one for each backend process"
    assert {stat.S_IMODE(region.stat().st_mode) for region in regions} == {0o600}


def test_triton_inherits_no_secrets_from_the_environment(open_server):
    server = open_server[0]
    for process in (server.triton(), *server.stubs()):
        assert not set(SECRETS) & set(process.environ())


def test_only_the_configured_ports_are_open_and_only_on_loopback(open_server):
    server, url = open_server
    family = [psutil.Process(server.process.pid), server.triton(), *server.stubs()]
    listening = {
        connection.laddr[1]: connection.laddr[0].removeprefix("::ffff:")  # IPv4 by way of an IPv6 socket
        for process in family
        for connection in process.net_connections("tcp")
        if connection.status == "LISTEN"
    }
    configured = {int(server.target.split(":")[1]), server.metrics_port, server.health_port, int(url.split(":")[2])}
    assert set(listening) == configured
    assert set(listening.values()) == {"127.0.0.1"}


def test_an_address_that_other_machines_can_reach_is_rejected_with_the_security_bulletins(cheap):
    done = run_command("alexnet_server", "serve", "--repository", cheap.repository, "--address", "0.0.0.0")
    assert done.returncode == 2
    assert "57 published vulnerabilities" in done.stderr
    assert "2026/5865" in done.stderr
    assert "--accept-known-vulnerabilities" in done.stderr
