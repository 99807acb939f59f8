"""What tritonserver is started with: its arguments and its environment. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alexnet_client.admin import ADMIN_KEY_NAME
from alexnet_client.certificates import dns_names, expiries
from alexnet_client.connection import Connection, Tls
from alexnet_server.errors import LaunchError
from alexnet_server.wheel import Triton

RESTRICTED = "shared-memory,model-repository,statistics,trace,logging"
"""Protocol groups that need the administration key. model-config stays open: clients read max_batch_size from it."""
SHARED_MEMORY_BYTES = 32 * 2**20
"""Shared memory of each backend process. A batch of 64 images has 9.6 MB; growing by the megabyte costs time."""
SPANS_EVERY_MS = 1000
"""Triton sends the spans that have ended so often, milliseconds; 5,000 by itself."""
BULLETINS = (
    *("2025/5612", "2025/5687", "2025/5691", "2025/5723", "2025/5734", "2026/5790", "2026/5816", "2026/5828"),
    *("2026/5848", "2026/5853", "2026/5860", "2026/5865"),
)
"""NVIDIA's security bulletins with vulnerabilities of Triton 2.51 (release 24.10), as of August 2026."""
VULNERABILITIES = (
    f"Triton 2.51 has 57 published vulnerabilities, 6 of them critical (NVIDIA's bulletins {', '.join(BULLETINS)})"
)
_KEPT_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4194304:glibc.malloc.trim_threshold=33554432:glibc.malloc.arena_max=2",
    "PILLOW_BLOCKS_MAX": "16",
}
"""Freed memory of requests and images is used again instead of being given back: a third of the time of decoding a
photo were page faults (411 an image, 2 with this). With two heaps for all threads of a process instead of sixteen, 33 MB
less stay behind after a load, at the same speed."""
_KEPT_VARIABLES = frozenset(
    {"HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}
)


@dataclass(frozen=True)
class ServerOptions:
    """How to serve.

    Attributes:
        repository: the Triton model repository.
        address: to listen on; others than loopback only with ``accept_vulnerabilities``.
        grpc_port, metrics_port: TCP ports.
        http_port: TCP port; None leaves HTTP off.
        health_port: TCP port of the launcher's own health endpoint; None for none.
        accept_vulnerabilities: listen on an address that others can reach, for all that is known of this Triton.
        config_name: serve ``configs/<name>.pbtxt`` of each model instead of ``config.pbtxt``.
        rate_limit: let executions of all models take turns by the ``rate_limiter`` of their instance groups.
        trace_endpoint: where OpenTelemetry traces go, such as http://127.0.0.1:4318/v1/traces (OTLP over HTTP); empty for none.
        trace_rate: one request in so many is traced.
        tls: directory with ca.crt, tls.crt and tls.key: callers must show a certificate of that authority; None for no TLS.
        rollouts: let the launcher's user load and unload models while it serves, and pin what serves (``rollout``).
        exit_timeout_s: how long requests in flight may take to finish once the server is told to stop.
    """

    repository: Path
    address: str = "127.0.0.1"
    grpc_port: int = 8001
    metrics_port: int = 8002
    http_port: int | None = None
    health_port: int | None = 8004
    accept_vulnerabilities: bool = False
    config_name: str = ""
    rate_limit: bool = False
    trace_endpoint: str = ""
    trace_rate: int = 1
    tls: Path | None = None
    rollouts: bool = False
    exit_timeout_s: int = 30

    def __post_init__(self) -> None:
        if self.trace_endpoint and not re.fullmatch(r"https?://[^\s,]+", self.trace_endpoint):
            raise LaunchError(
                f"--trace-endpoint {self.trace_endpoint}: not the address of a collector, such as http://127.0.0.1:4318/v1/traces"
            )
        try:
            loopback = ipaddress.IPv4Address(self.address).is_loopback
        except ValueError:
            raise LaunchError(f"--address {self.address}: not an IPv4 address such as 127.0.0.1") from None
        if len(set(self.ports.values())) < len(self.ports):
            raise LaunchError(f"each purpose needs a port of its own, got {self.ports}")
        if not loopback and self.rollouts:
            raise LaunchError(
                f"--address {self.address} with --rollouts: who may load models may run programs; that is for loopback only"
            )
        if not loopback and not self.accept_vulnerabilities:
            raise LaunchError(
                f"--address {self.address}: {VULNERABILITIES} and is fit for loopback only; serve a network with NVIDIA's "
                "container, release 26.06 or later (the model repository is the same), or accept the risk with "
                "--accept-known-vulnerabilities"
            )

    @property
    def ports(self) -> dict[str, int]:
        """The ports that will be listened on, by what they are for."""
        given = {"gRPC": self.grpc_port, "metrics": self.metrics_port}
        return given | {
            purpose: port
            for purpose, port in (("HTTP", self.http_port), ("health", self.health_port))
            if port is not None
        }

    @property
    def target(self) -> str:
        """host:port of the gRPC endpoint."""
        return f"{self.address}:{self.grpc_port}"

    @property
    def connection(self) -> Connection:
        """How the launcher itself reaches the server: under TLS with the server's own certificate, by the first name in it."""
        if self.tls is None:
            return Connection()
        return Connection.secured(self.tls, next(iter(dns_names(self.tls / "tls.crt")), ""))

    @property
    def expiries(self) -> dict[str, float]:
        """Unix time at which the first certificate of each file expires, by "roots" and "own"."""
        return {} if self.tls is None else expiries(Tls.of_directory(self.tls))


def arguments(
    options: ServerOptions,
    binary: Path,
    backends: Path,
    *,
    admin_key: str,
    shm_prefix: str,
    models: Sequence[str] = (),
    staging: Path | None = None,
) -> list[str]:
    """Tritonserver's argument vector: loopback, no model control, no auto-complete, administration by key only.

    Args:
        options: how to serve.
        binary: tritonserver.
        backends: directory of the backends.
        admin_key: what administrative calls must show.
        shm_prefix: first letters of the names of shared memory.
        models: to load at the start, where ``options.rollouts`` allows others later.
        staging: the launcher's own model repository, for those others.
    """
    restriction = f"{RESTRICTED}:{ADMIN_KEY_NAME}={admin_key}"
    flags = [
        f"--model-repository={options.repository.resolve()}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-default-byte-size={SHARED_MEMORY_BYTES}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        "--backend-config=python,stub-timeout-seconds=120",  # 30 is too short to load a large graph on two cores
        *_model_control(options, models, staging),
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--exit-on-error=true",
        f"--exit-timeout-secs={options.exit_timeout_s}",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        *_tracing(options),
        *_security(options),
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
    if options.rate_limit:
        flags.append("--rate-limit=execution_count")
    if options.config_name:
        flags.append(f"--model-config-name={options.config_name}")
    return [str(binary), *flags]


def _tracing(options: ServerOptions) -> list[str]:
    if not options.trace_endpoint:
        return ["--trace-config=level=off"]
    return [
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        f"--trace-config=rate={options.trace_rate}",
        f"--trace-config=opentelemetry,url={options.trace_endpoint}",
        f"--trace-config=opentelemetry,bsp_schedule_delay={SPANS_EVERY_MS}",
    ]


def _model_control(options: ServerOptions, models: Sequence[str], staging: Path | None) -> list[str]:
    if not options.rollouts:
        return ["--model-control-mode=none"]
    return [
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in models),
        f"--model-repository={staging}",
    ]


def _security(options: ServerOptions) -> list[str]:
    """Mutual TLS on gRPC. Without ``mutual`` Triton would take calls from anybody."""
    if options.tls is None:
        return []
    directory = options.tls.resolve()
    return [
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={directory}/tls.crt",
        f"--grpc-server-key={directory}/tls.key",
        f"--grpc-root-cert={directory}/ca.crt",
    ]


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
        **_KEPT_MEMORY,
        "PYTHONDONTWRITEBYTECODE": "1",  # the packages may be read-only
        "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.32 would report to its makers otherwise
    }
