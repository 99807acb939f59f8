"""How tritonserver is started: options, command line and environment. Starts nothing.

The administration key is an argument, because Triton 2.51 reads it from nowhere else. While the server runs, every user
of this machine can read it in the process list (unless /proc is mounted with ``hidepid=2``). With the key, a user who
reaches the gRPC port can register shared memory, read statistics, and change the log level and the trace level. Triton 2.51
rejects a new path for its log file or trace file, and ``--model-control-mode=none`` rejects loading models.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alexnet_client.admin import ADMIN_KEY_NAME
from alexnet_client.certificates import dns_names, expiries
from alexnet_client.connection import Connection, Tls
from alexnet_client.errors import BadInput
from alexnet_server.wheel import Triton

RESTRICTED = "shared-memory,model-repository,statistics,trace,logging"
"""Protocol groups that require the administration key. model-config stays open: clients read max_batch_size from it."""
SHARED_MEMORY_BYTES = 32 * 2**20
"""Initial shared memory of each backend process. A batch of 64 images has 9.6 MB; growing in steps of 1 MB takes time."""
SPAN_EXPORT_INTERVAL_MS = 1000
"""How often Triton exports finished spans, milliseconds; its default is 5,000."""
BULLETINS = (
    *("2025/5612", "2025/5687", "2025/5691", "2025/5723", "2025/5734", "2026/5790", "2026/5816", "2026/5828"),
    *("2026/5848", "2026/5853", "2026/5860", "2026/5865"),
)
"""NVIDIA's security bulletins with vulnerabilities of Triton 2.51 (release 24.10), as of August 2026."""
VULNERABILITIES = (
    f"Triton 2.51 has 57 published vulnerabilities, 6 of them critical (NVIDIA's bulletins {', '.join(BULLETINS)})"
)
_MALLOC = "glibc.malloc.mmap_threshold=16777216:glibc.malloc.trim_threshold=33554432:glibc.malloc.arena_max=2"
"""Memory of requests, batches (9.6 MB) and intermediate results (12 MB) is reused instead of returned to the kernel: with an mmap
threshold of 4 MiB, OpenVINO had 5 to 15 page faults for each image, now hardly any. Two heaps for each process instead of sixteen
save 33 MB after a load test, at the same speed."""
_INHERITED_VARIABLES = frozenset(
    {"HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}
)


@dataclass(frozen=True)
class ServerOptions:
    """How to serve a model repository.

    Attributes:
        repository: the Triton model repository.
        address: IPv4 address to listen on; other addresses than loopback require ``accept_vulnerabilities``.
        grpc_port, metrics_port: TCP ports.
        http_port: TCP port; None disables HTTP.
        health_port: TCP port of the launcher's health endpoint; None disables it.
        accept_vulnerabilities: allow an address that other machines can reach, in spite of ``VULNERABILITIES``.
        config_name: use ``configs/<name>.pbtxt`` of each model instead of ``config.pbtxt``.
        rate_limit: enable Triton's rate limiter, which schedules models by the ``rate_limiter`` of their instance groups.
        trace_endpoint: OTLP/HTTP endpoint for OpenTelemetry traces, such as http://127.0.0.1:4318/v1/traces; empty for none.
        trace_rate: trace 1 in N requests.
        tls: directory with ca.crt, tls.crt and tls.key for mutual TLS; None for no TLS.
        exit_timeout_s: drain timeout: how long requests in flight may take during a graceful shutdown, seconds.

    Raises:
        BadInput: an option is invalid, or two ports are equal.
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
    exit_timeout_s: int = 30

    def __post_init__(self) -> None:
        if self.trace_endpoint and not re.fullmatch(r"https?://[^\s,]+", self.trace_endpoint):
            raise BadInput(
                f"--trace-endpoint {self.trace_endpoint}: not a URL of a collector, such as http://127.0.0.1:4318/v1/traces"
            )
        try:
            loopback = ipaddress.IPv4Address(self.address).is_loopback
        except ValueError:
            raise BadInput(f"--address {self.address}: not an IPv4 address such as 127.0.0.1") from None
        if len(set(self.ports.values())) < len(self.ports):
            raise BadInput(f"the ports must be different, got {self.ports}")
        if not loopback and not self.accept_vulnerabilities:
            raise BadInput(
                f"--address {self.address}: {VULNERABILITIES}, so it must listen on loopback only. To serve a network, use "
                "NVIDIA's container, release 26.06 or later, with the same model repository, or accept the risk with "
                "--accept-known-vulnerabilities"
            )

    @property
    def ports(self) -> dict[str, int]:
        """TCP ports to listen on, by purpose."""
        optional = (("HTTP", self.http_port), ("health", self.health_port))
        ports = {"gRPC": self.grpc_port, "metrics": self.metrics_port}
        return ports | {purpose: port for purpose, port in optional if port is not None}

    @property
    def target(self) -> str:
        """host:port of the gRPC endpoint."""
        return f"{self.address}:{self.grpc_port}"

    @property
    def connection(self) -> Connection:
        """Connection of the launcher to the server. With TLS: the server's certificate, and the first name in it."""
        if self.tls is None:
            return Connection()
        return Connection.secured(self.tls, next(iter(dns_names(self.tls / "tls.crt")), ""))

    @property
    def expiries(self) -> dict[str, float]:
        """Unix time at which the first certificate of each file expires, by "ca" and "tls"."""
        return {} if self.tls is None else expiries(Tls.of_directory(self.tls))


def arguments(options: ServerOptions, binary: Path, backends: Path, *, admin_key: str, shm_prefix: str) -> list[str]:
    """Command line of tritonserver: no model control, no automatic configuration, administration only with the key.

    Names of shared memory regions start with ``shm_prefix``.
    """
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
        f"--trace-config=opentelemetry,bsp_schedule_delay={SPAN_EXPORT_INTERVAL_MS}",
    ]


def _security(options: ServerOptions) -> list[str]:
    """Mutual TLS for gRPC. Without ``mutual``, Triton would accept clients without a certificate."""
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
    """The complete environment of tritonserver: required variables, and an allow-list of inherited ones.

    Args:
        triton: the wheel.
        libpython: shared library of the running interpreter.
        interpreter: ``sys.executable``. The stub embeds Python in isolated mode, which ignores PYTHONPATH and PYTHONHOME.
            Its prefix (and virtual environment) is that of the first ``python3`` on PATH.
        inherited: environment of the caller. An allow-list, because variables such as AIP_MODE open further endpoints.
    """
    return {
        **{key: value for key, value in inherited.items() if key in _INHERITED_VARIABLES},
        "PATH": f"{interpreter.parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LD_LIBRARY_PATH": f"{triton.libraries}:{libpython.parent}",
        "GLIBC_TUNABLES": _MALLOC,
        "PYTHONDONTWRITEBYTECODE": "1",  # the packages may be read-only
        "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.32 sends telemetry otherwise
    }
