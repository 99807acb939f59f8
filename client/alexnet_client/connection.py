"""How a server is reached: gRPC's options, transport security, what is sent with each call. Makes channels, calls nobody."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio

from alexnet_client.errors import BadInput

MAX_MESSAGE_BYTES = 256 * 2**20
"""gRPC's default of 4 MiB is less than 28 images; the largest batch of 64 has 9.6 MB."""

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),  # gRPC's own retries would hide attempts from the deadline and the metrics
    ("grpc.enable_http_proxy", 0),  # a proxy set for the web must not swallow calls to 127.0.0.1
    ("grpc.use_local_subchannel_pool", 1),  # else all channels to an address share one connection
    ("grpc.initial_reconnect_backoff_ms", 100),  # gRPC waits a second, and up to two minutes, by itself
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 20_000),  # finds a peer that vanished without a word, while calls are in flight
    ("grpc.keepalive_timeout_ms", 5_000),
)
ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'
COMPRESSIONS = {"": None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}


@dataclass(frozen=True)
class Tls:
    """Transport security.

    Attributes:
        roots: file of the certificates to trust (PEM); None for the system's.
        key, certificate: files of the client's own (PEM), for a server that asks for them.
        server_name: the name in the server's certificate, if it is not the address's.
    """

    roots: Path | None = None
    key: Path | None = None
    certificate: Path | None = None
    server_name: str = ""

    @classmethod
    def of_directory(cls, directory: Path, *, server_name: str = "") -> Self:
        """The files of a Kubernetes TLS secret, as cert-manager makes them: ca.crt, tls.crt and tls.key."""
        return cls(directory / "ca.crt", directory / "tls.key", directory / "tls.crt", server_name)

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC wants of it.

        Raises:
            BadInput: a file cannot be read, or one of key and certificate is missing.
        """
        if (self.key is None) != (self.certificate is None):
            raise BadInput("mutual TLS needs both the client's key and its certificate")
        return grpc.ssl_channel_credentials(
            *(None if path is None else _read(path) for path in (self.roots, self.key, self.certificate))
        )


@dataclass(frozen=True)
class Connection:
    """How a server is reached.

    Attributes:
        tls: transport security; None for none.
        metadata: sent with each call, such as ``(("authorization", "Bearer ..."),)``; never logged.
        compression: "gzip" or "deflate" for requests; pixels hardly shrink, and it costs more than a local network does.
        channels: connections to each server, used in turn; one is enough up to about a gigabyte a second.
        balance: "client" for this package's balancing, "grpc" for gRPC's round robin.
    """

    tls: Tls | None = None
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    compression: str = ""
    channels: int = 1
    balance: str = "client"

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise BadInput(f"compression {self.compression!r}; it is gzip, deflate or empty")
        if self.channels < 1:
            raise BadInput(f"channels must be at least 1, got {self.channels}")
        if self.balance not in ("client", "grpc"):
            raise BadInput(f"balance {self.balance!r}; it is client or grpc")

    @classmethod
    def secured(cls, directory: Path | None, server_name: str = "") -> Self:
        """With mutual TLS by the files of a directory, see ``Tls.of_directory``; None: without."""
        return cls(tls=None if directory is None else Tls.of_directory(directory, server_name=server_name))

    def open(self, target: str) -> grpc.aio.Channel:
        """A channel; inside a running event loop."""
        options = list(CHANNEL_OPTIONS)
        if self.balance == "grpc":
            options.append(("grpc.service_config", ROUND_ROBIN))
        compression = COMPRESSIONS[self.compression]
        if self.tls is None:
            return grpc.aio.insecure_channel(target, options=options, compression=compression)
        if self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return grpc.aio.secure_channel(target, self.tls.credentials(), options=options, compression=compression)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {(error.strerror or str(error)).lower()}") from None
