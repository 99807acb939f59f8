"""From what a user writes to addresses of replicas: a comma list, or a name whose addresses may change."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from alexnet_client.errors import BadInput, Unavailable

DNS = "dns:///"


@dataclass(frozen=True)
class Targets:
    """Where the replicas are.

    Attributes:
        text: as the user wrote it.
        addresses: host:port of each, if they were listed.
        name: host and port to look up otherwise; each of its addresses is a replica.
    """

    text: str
    addresses: tuple[str, ...]
    name: tuple[str, int] | None = None

    @property
    def grpc_name(self) -> str:
        """All of them as one name for gRPC, which then balances by itself."""
        return self.text if self.name is not None else f"ipv4:{','.join(self.addresses)}"

    async def resolve(self) -> list[str]:
        """The addresses now.

        Raises:
            Unavailable: the name has none.
        """
        if self.name is None:
            return list(self.addresses)
        host, port = self.name
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # a label that is empty or too long is no Unicode for Python
            cause = getattr(error, "strerror", None) or error
            raise Unavailable(f"{self.text}: the name has no address ({cause}); check it") from None
        hosts = sorted({str(each[4][0]) for each in found})
        return [f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in hosts]


def parse_targets(text: str) -> Targets:
    """Read ``host:port``, ``host:port,host:port`` or ``dns:///host:port``.

    Raises:
        BadInput: it is none of these.
    """
    if text.startswith(DNS):
        return Targets(text, (), _host_and_port(text.removeprefix(DNS)))
    addresses = [part.strip() for part in text.split(",")]
    for each in addresses:
        _host_and_port(each)
    if len(set(addresses)) < len(addresses):
        raise BadInput(f"{text}: an address is named twice")
    return Targets(text, tuple(addresses))


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadInput(f"{text}: not an address of the form host:port")
    return host.strip("[]"), int(port)
