"""What tritonserver is started with: its arguments and its environment. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alexnet_server.errors import LaunchError
from alexnet_server.wheel import Triton

RESTRICTED = "shared-memory,model-repository,statistics,trace,logging"
"""Protocol groups that need the administration key. model-config stays open: clients read max_batch_size from it."""
ADMIN_KEY_NAME = "admin"
SHARED_MEMORY_BYTES = 32 * 2**20
"""Shared memory of each backend process. A batch of 64 images has 9.6 MB; growing by the megabyte costs time."""
_KEPT_VARIABLES = frozenset(
    {"HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}
)


@dataclass(frozen=True)
class ServerOptions:
    """How to serve.

    Attributes:
        repository: the Triton model repository.
        address: to listen on; only loopback, see ``__post_init__``.
        grpc_port, metrics_port: TCP ports.
        http_port: TCP port; None leaves HTTP off.
        config_name: serve ``configs/<name>.pbtxt`` of each model instead of ``config.pbtxt``.
        exit_timeout_s: how long requests in flight may take to finish once the server is told to stop.
    """

    repository: Path
    address: str = "127.0.0.1"
    grpc_port: int = 8001
    metrics_port: int = 8002
    http_port: int | None = None
    config_name: str = ""
    exit_timeout_s: int = 30

    def __post_init__(self) -> None:
        try:
            loopback = ipaddress.IPv4Address(self.address).is_loopback
        except ValueError:
            raise LaunchError(f"--address {self.address}: not an IPv4 address such as 127.0.0.1") from None
        if len(set(self.ports.values())) < len(self.ports):
            raise LaunchError(f"each purpose needs a port of its own, got {self.ports}")
        if not loopback:
            raise LaunchError(
                f"--address {self.address}: this Triton (2.51) has 57 published vulnerabilities and is fit for loopback "
                "only; serve a network with NVIDIA's container, release 26.06 or later (the model repository is the same)"
            )

    @property
    def ports(self) -> dict[str, int]:
        """The ports that will be listened on, by what they are for."""
        ports = {"gRPC": self.grpc_port, "metrics": self.metrics_port}
        return ports if self.http_port is None else {**ports, "HTTP": self.http_port}

    @property
    def target(self) -> str:
        """host:port of the gRPC endpoint."""
        return f"{self.address}:{self.grpc_port}"


def arguments(options: ServerOptions, triton: Triton, backends: Path, *, admin_key: str, shm_prefix: str) -> list[str]:
    """Tritonserver's argument vector: loopback, no model control, no auto-complete, administration by key only."""
    restriction = f"{RESTRICTED}:{ADMIN_KEY_NAME}={admin_key}"
    flags = [
        f"--model-repository={options.repository.resolve()}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-default-byte-size={SHARED_MEMORY_BYTES}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        "--backend-config=python,stub-timeout-seconds=120",  # 30 is too short to load a large graph on two cores
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--exit-on-error=true",
        f"--exit-timeout-secs={options.exit_timeout_s}",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        "--trace-config=level=off",
        "--log-verbose=0",
        "--allow-grpc=true",
        f"--grpc-address={options.address}",
        f"--grpc-port={options.grpc_port}",
        f"--grpc-restricted-protocol={restriction}",
        "--allow-metrics=true",
        f"--metrics-address={options.address}",
        f"--metrics-port={options.metrics_port}",
    ]
    if options.http_port is None:
        flags.append("--allow-http=false")
    else:
        flags += [
            "--allow-http=true",
            f"--http-address={options.address}",
            f"--http-port={options.http_port}",
            f"--http-restricted-api={restriction}",
        ]
    if options.config_name:
        flags.append(f"--model-config-name={options.config_name}")
    return [str(triton.binary), *flags]


def environment(triton: Triton, *, libpython: Path, interpreter: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """Tritonserver's whole environment: what it needs, and a few harmless variables of the caller's.

    Args:
        triton: the wheel.
        libpython: the shared library of this interpreter.
        interpreter: ``sys.executable``. The stub embeds Python in isolated mode, which ignores PYTHONPATH and
            PYTHONHOME and takes the first ``python3`` on PATH for its prefix, virtual environment included.
        inherited: the caller's environment, of which only an allow-list is kept. AIP_MODE, for one, would open a
            Vertex AI endpoint.
    """
    return {
        **{key: value for key, value in inherited.items() if key in _KEPT_VARIABLES},
        "PATH": f"{interpreter.parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LD_LIBRARY_PATH": f"{triton.libraries}:{libpython.parent}",
        "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.32 would report to its makers otherwise
    }
