"""What tritonserver is started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from alexnet_server.command import ServerOptions, arguments, environment
from alexnet_server.errors import LaunchError
from alexnet_server.wheel import Triton

TRITON = Triton(Path("/site/pytriton/tritonserver"), "0.7.0")


def flags(**options) -> list[str]:
    return arguments(
        ServerOptions(Path("/models"), **options),
        TRITON.binary,
        Path("/backends"),
        admin_key="s3cret",
        shm_prefix="mine_",
    )


@pytest.mark.parametrize(
    "flag",
    [
        "--model-repository=/models",
        "--backend-directory=/backends",
        "--backend-config=python,shm-region-prefix-name=mine_",
        "--allow-http=false",
        "--grpc-address=127.0.0.1",
        "--grpc-port=8001",
        "--metrics-address=127.0.0.1",
        "--metrics-port=8002",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--exit-on-error=true",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        "--trace-config=level=off",
        "--grpc-restricted-protocol=shared-memory,model-repository,statistics,trace,logging:admin=s3cret",
    ],
)
def test_the_safe_flags_are_always_there(flag):
    assert flag in flags()


def test_http_is_off_unless_asked_for_and_then_on_loopback_and_restricted():
    assert not [flag for flag in flags() if "http" in flag and flag != "--allow-http=false"]
    asked = flags(http_port=8000)
    assert {"--allow-http=true", "--http-address=127.0.0.1", "--http-port=8000"} <= set(asked)
    assert [flag for flag in asked if flag.startswith("--http-restricted-api=shared-memory,model-repository")]
    assert "--allow-http=false" not in asked


def test_a_named_configuration_and_other_ports_are_passed_on():
    assert "--rate-limit=execution_count" not in flags()
    assert "--rate-limit=execution_count" in flags(rate_limit=True)
    found = flags(config_name="gpu", grpc_port=1, metrics_port=2)
    assert {"--model-config-name=gpu", "--grpc-port=1", "--metrics-port=2"} <= set(found)


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.5"])
def test_an_address_others_can_reach_is_refused_with_the_bulletins_unless_they_are_accepted(address):
    with pytest.raises(
        LaunchError, match=r"57 published vulnerabilities.*2025/5612.*2026/5865.* fit for loopback only"
    ):
        ServerOptions(Path("/models"), address=address)
    accepted = ServerOptions(Path("/models"), address=address, accept_vulnerabilities=True)
    assert accepted.target == f"{address}:8001"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9"])
def test_any_loopback_address_will_do(address):
    assert ServerOptions(Path("/models"), address=address).target == f"{address}:8001"


@pytest.mark.parametrize("address", ["localhost", "::1", ""])
def test_what_triton_cannot_listen_on_is_refused(address):
    with pytest.raises(LaunchError, match=r"not an IPv4 address such as 127\.0\.0\.1"):
        ServerOptions(Path("/models"), address=address)


def test_one_port_for_two_purposes_is_refused():
    with pytest.raises(LaunchError, match="each purpose needs a port of its own"):
        ServerOptions(Path("/models"), grpc_port=8000, http_port=8000)


def test_the_environment_holds_what_is_needed_and_nothing_of_the_callers_secrets():
    inherited = {"HOME": "/home/me", "AIP_MODE": "PREDICTION", "AWS_SECRET_ACCESS_KEY": "x", "PYTHONPATH": "/evil"}
    found = environment(
        TRITON, libpython=Path("/py/lib/libpython.so"), interpreter=Path("/venv/bin/python"), inherited=inherited
    )
    assert found["LD_LIBRARY_PATH"] == "/site/nvidia_pytriton.libs:/py/lib"
    assert found["PATH"].startswith("/venv/bin:")
    ours = {"GLIBC_TUNABLES", "LD_LIBRARY_PATH", "ORT_DISABLE_TELEMETRY", "PATH", "PILLOW_BLOCKS_MAX"}
    assert set(found) == {"HOME", "PYTHONDONTWRITEBYTECODE"} | ours


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4318", "http://a,level=OFF", "file:///tmp/x", "http://"])
def test_a_trace_endpoint_that_is_no_address_is_refused(endpoint):
    with pytest.raises(LaunchError, match="not the address of a collector"):
        ServerOptions(Path("/models"), trace_endpoint=endpoint)


def test_mutual_tls_is_never_half_of_it():
    given = flags(tls=Path("/certs"))
    assert {each.partition("=")[0] for each in given if "ssl" in each or "cert" in each or "-key" in each} == {
        "--grpc-use-ssl",
        "--grpc-use-ssl-mutual",
        "--grpc-server-cert",
        "--grpc-server-key",
        "--grpc-root-cert",
    }
    assert not [each for each in flags() if "ssl" in each]


def test_model_control_is_explicit_only_where_rollouts_are_wanted():
    given = arguments(
        ServerOptions(Path("/models"), rollouts=True),
        TRITON.binary,
        Path("/backends"),
        admin_key="s3cret",
        shm_prefix="mine_",
        models=["alexnet", "alexnet_decode"],
        staging=Path("/run/staging"),
    )
    assert "--model-control-mode=explicit" in given
    assert [each for each in given if each.startswith("--load-model")] == [
        "--load-model=alexnet",
        "--load-model=alexnet_decode",
    ]
    assert [each for each in given if each.startswith("--model-repository")] == [
        "--model-repository=/models",
        "--model-repository=/run/staging",
    ]
    assert any(each.startswith("--grpc-restricted-protocol=") and "model-repository" in each for each in given)
