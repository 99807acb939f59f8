"""Options of the gRPC channel to a server: transport security and metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio

from alexnet_client.errors import BadInput
from alexnet_client.files import reason

MAX_MESSAGE_BYTES = 256 * 2**20
"""The default of gRPC, 4 MiB, is less than 28 images; the largest batch of 64 images has 9.6 MB."""

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),  # gRPC's own retries would bypass the deadline, the retry budget and the metrics
    ("grpc.enable_http_proxy", 0),  # an HTTP proxy must not receive calls to 127.0.0.1
    ("grpc.use_local_subchannel_pool", 1),  # otherwise all channels to an address share one connection
    ("grpc.initial_reconnect_backoff_ms", 100),  # the defaults are 1 s, and up to two minutes
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 20_000),  # detects a lost connection while calls are in flight
    ("grpc.keepalive_timeout_ms", 5_000),
)


@dataclass(frozen=True)
class Tls:
    """Transport security.

    Attributes:
        roots: file with the trusted CA certificates (PEM); None for those of the system.
        key, certificate: files of the client certificate (PEM), for servers that require mutual TLS.
        server_name: name in the server's certificate, if it differs from the address.
    """

    roots: Path | None = None
    key: Path | None = None
    certificate: Path | None = None
    server_name: str = ""

    @classmethod
    def of_directory(cls, directory: Path, *, server_name: str = "") -> Self:
        """The files of a Kubernetes TLS secret as created by cert-manager: ca.crt, tls.crt and tls.key."""
        return cls(directory / "ca.crt", directory / "tls.key", directory / "tls.crt", server_name)

    def credentials(self) -> grpc.ChannelCredentials:
        """The channel credentials of gRPC.

        Raises:
            BadInput: a file cannot be read, or only one of key and certificate is given.
        """
        if (self.key is None) != (self.certificate is None):
            raise BadInput("mutual TLS needs both the key and the certificate of the client")
        return grpc.ssl_channel_credentials(
            *(None if path is None else _read(path) for path in (self.roots, self.key, self.certificate))
        )


@dataclass(frozen=True)
class Connection:
    """Options of the connections to all replicas.

    Attributes:
        tls: transport security; None for plain text.
        metadata: sent with each call, such as ``(("authorization", "Bearer ..."),)``; never logged.
    """

    tls: Tls | None = None
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def secured(cls, directory: Path | None, server_name: str = "") -> Self:
        """Mutual TLS with the files of a directory, see ``Tls.of_directory``; plain text if it is None."""
        return cls(tls=None if directory is None else Tls.of_directory(directory, server_name=server_name))

    def open(self, target: str) -> grpc.aio.Channel:
        """Create a channel, in a running event loop."""
        options = list(CHANNEL_OPTIONS)
        if self.tls is None:
            return grpc.aio.insecure_channel(target, options=options)
        if self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return grpc.aio.secure_channel(target, self.tls.credentials(), options=options)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {reason(error)}") from None
