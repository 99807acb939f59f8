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
pytestmark = pytest.mark.xdist_group("test_hardening")


@pytest.fixture(scope="module")
def open_server(cheap, tmp_path_factory, free_port, launch):
    """A server with HTTP, started with secrets and dangerous variables in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in SECRETS.items():
            patch.setenv(key, value)
        http = free_port()
        with launch(cheap.repository, tmp_path_factory.mktemp("open"), free_port, "--http-port", str(http)) as server:
            yield server, f"http://127.0.0.1:{http}"


@pytest.fixture
def stub(open_server):
    with grpc.insecure_channel(open_server[0].target) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


pb = service_pb2
OWNED = Path(tempfile.gettempdir()) / f"alexnet-owned-{os.getpid()}"
"""A file that the server would write if the call were permitted."""
RESTRICTED = {
    "register shared memory": (
        "SystemSharedMemoryRegister",
        pb.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=1),
    ),
    "list shared memory": ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
    "unregister shared memory": ("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest()),
    "register GPU memory": ("CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="x", raw_handle=b"x")),
    "list GPU memory": ("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest()),
    "list models": ("RepositoryIndex", pb.RepositoryIndexRequest()),
    "load a model": ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="alexnet")),
    "load with a configuration": (
        "RepositoryModelLoad",
        pb.RepositoryModelLoadRequest(
            model_name="alexnet", parameters={"config": pb.ModelRepositoryParameter(string_param="{}")}
        ),
    ),
    "unload a model": ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="alexnet")),
    "write a log file": (
        "LogSettings",
        pb.LogSettingsRequest(settings={"log_file": pb.LogSettingsRequest.SettingValue(string_param=str(OWNED))}),
    ),
    "write a trace file": (
        "TraceSetting",
        pb.TraceSettingRequest(settings={"trace_file": pb.TraceSettingRequest.SettingValue(value=[str(OWNED)])}),
    ),
    "read statistics": ("ModelStatistics", pb.ModelStatisticsRequest(name="alexnet")),
}
RESTRICTED_HTTP = {
    "list models": ("POST", "/v2/repository/index", {}),
    "load a model": ("POST", "/v2/repository/models/alexnet/load", {}),
    "load with a configuration": ("POST", "/v2/repository/models/alexnet/load", {"parameters": {"config": "{}"}}),
    "unload a model": ("POST", "/v2/repository/models/alexnet/unload", {}),
    "list shared memory": ("GET", "/v2/systemsharedmemory/status", None),
    "register shared memory": (
        "POST",
        "/v2/systemsharedmemory/region/x/register",
        {"key": "/x", "offset": 0, "byte_size": 1},
    ),
    "unregister shared memory": ("POST", "/v2/systemsharedmemory/unregister", {}),
    "list GPU memory": ("GET", "/v2/cudasharedmemory/status", None),
    "write a log file": ("POST", "/v2/logging", {"log_file": str(OWNED)}),
    "write a trace file": ("POST", "/v2/trace/setting", {"trace_file": str(OWNED)}),
    "read statistics": ("GET", "/v2/models/alexnet/stats", None),
}


@pytest.mark.parametrize(("call", "request_"), RESTRICTED.values(), ids=list(RESTRICTED))
def test_grpc_rejects_restricted_calls_without_the_key(stub, call, request_):
    for metadata in ((), (("triton-grpc-protocol-admin", "wrong"),)):
        with pytest.raises(grpc.RpcError, match="This protocol is restricted"):
            getattr(stub, call)(request_, timeout=10, metadata=metadata)
    assert not OWNED.exists()


def http_error(request):
    """Status and body of a rejected HTTP request."""
    with pytest.raises(urllib.error.HTTPError) as rejected:
        urllib.request.urlopen(request, timeout=10)
    with rejected.value as response:
        return response.code, response.read()


@pytest.mark.parametrize(("method", "path", "body"), RESTRICTED_HTTP.values(), ids=list(RESTRICTED_HTTP))
def test_http_rejects_restricted_calls_without_the_key(open_server, method, path, body):
    content = None if body is None else json.dumps(body).encode()
    code, text = http_error(urllib.request.Request(open_server[1] + path, method=method, data=content))
    assert code == 403
    assert b"restricted" in text
    assert not OWNED.exists()


@pytest.mark.parametrize("path", ["/invocations", "/ping", "/predict", "/v1/endpoints/1/deployedModels/1"])
def test_the_endpoints_of_cloud_platforms_do_not_exist(open_server, path):
    assert http_error(urllib.request.Request(open_server[1] + path, data=b"{}"))[0] in (400, 404, 405)


def test_the_key_permits_administration_but_not_loading_models(open_server, stub):
    metadata = admin_metadata(open_server[0].target)
    stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(), timeout=10, metadata=metadata)
    statistics = stub.ModelStatistics(pb.ModelStatisticsRequest(name="alexnet"), timeout=10, metadata=metadata)
    assert statistics.model_stats[0].name == "alexnet"
    with pytest.raises(grpc.RpcError, match="explicit model load / unload is not allowed"):
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="alexnet"), timeout=10, metadata=metadata)


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


def test_a_second_launcher_on_the_same_port_fails_and_does_not_change_the_key(open_server, cheap):
    server = open_server[0]
    key = key_file(server.target).read_text()
    ports = ("--grpc-port", server.target.split(":")[1], "--health-port", server.health_port)
    done = run_command("alexnet_server", "serve", "--repository", cheap.repository, *ports)
    assert done.returncode == 1
    assert f"(health): in use by python3 (pid {server.process.pid})" in done.stderr.replace("python (", "python3 (")
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
