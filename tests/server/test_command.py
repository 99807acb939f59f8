"""Command line and environment of tritonserver."""

from __future__ import annotations

from pathlib import Path

import pytest

from alexnet_client.errors import BadInput
from alexnet_server.command import RESTRICTED, ServerOptions, arguments, environment
from alexnet_server.wheel import Triton

TRITON = Triton(Path("/site/pytriton/tritonserver"), "0.7.0")
MODELS = Path("/models")
TRACES = "http://a:4318/v1/traces"


def flags(**options) -> set[str]:
    served = ServerOptions(MODELS, **options)
    return set(arguments(served, TRITON.binary, Path("/backends"), admin_key="s3cret", shm_prefix="mine_"))


def test_the_default_command_line_is_safe():
    assert flags() >= {
        "--backend-config=python,shm-region-prefix-name=mine_",
        "--allow-http=false",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--trace-config=level=off",
        "--grpc-restricted-protocol=shared-memory,model-repository,statistics,trace,logging:admin=s3cret",
    }
    assert not [flag for flag in flags() if "ssl" in flag or "rate-limit" in flag or "http-" in flag]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"http_port": 8000}, {"--allow-http=true", "--http-address=127.0.0.1", "--http-port=8000"}),
        ({"http_port": 8000}, {f"--http-restricted-api={RESTRICTED}:admin=s3cret"}),
        ({"rate_limit": True}, {"--rate-limit=execution_count"}),
        ({"config_name": "gpu"}, {"--model-config-name=gpu"}),
        ({"grpc_port": 1, "metrics_port": 2}, {"--grpc-port=1", "--metrics-port=2"}),
        ({"exit_timeout_s": 7}, {"--exit-timeout-secs=7"}),
        (
            {"trace_endpoint": TRACES, "trace_rate": 9},
            {"--trace-config=rate=9", f"--trace-config=opentelemetry,url={TRACES}"},
        ),
        (
            {"tls": Path("/certs")},
            {"--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true", "--grpc-root-cert=/certs/ca.crt"},
        ),
        ({"tls": Path("/certs")}, {"--grpc-server-cert=/certs/tls.crt", "--grpc-server-key=/certs/tls.key"}),
    ],
)
def test_each_option_adds_its_flags(options, expected):
    assert flags(**options) >= expected


def test_other_addresses_than_loopback_require_that_the_vulnerabilities_are_accepted():
    with pytest.raises(BadInput, match=r"57 published vulnerabilities.*2025/5612.*2026/5865.*loopback only"):
        ServerOptions(MODELS, address="0.0.0.0")
    assert ServerOptions(MODELS, address="0.0.0.0", accept_vulnerabilities=True).target == "0.0.0.0:8001"
    assert ServerOptions(MODELS, address="127.0.0.9").target == "127.0.0.9:8001"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *(("address", each, r"not an IPv4 address such as 127\.0\.0\.1") for each in ("localhost", "::1", "")),
        ("http_port", 8001, "the ports must be different"),
        *(
            ("trace_endpoint", each, "not a URL of a collector")
            for each in ("a:4318", "http://a,level=OFF", "file:///x", "http://")
        ),
    ],
)
def test_invalid_options_are_rejected(option, value, message):
    with pytest.raises(BadInput, match=message):
        ServerOptions(MODELS, **{option: value})


def test_the_environment_contains_no_secrets_of_the_caller():
    inherited = {"HOME": "/home/me", "AIP_MODE": "PREDICTION", "AWS_SECRET_ACCESS_KEY": "x", "PYTHONPATH": "/evil"}
    library, python = Path("/py/lib/libpython.so"), Path("/venv/bin/python")
    found = environment(TRITON, libpython=library, interpreter=python, inherited=inherited)
    assert found["LD_LIBRARY_PATH"] == "/site/nvidia_pytriton.libs:/py/lib"
    assert found["PATH"].startswith("/venv/bin:")
    ours = {"GLIBC_TUNABLES", "LD_LIBRARY_PATH", "ORT_DISABLE_TELEMETRY", "PATH"}
    assert set(found) == {"HOME", "PYTHONDONTWRITEBYTECODE"} | ours
