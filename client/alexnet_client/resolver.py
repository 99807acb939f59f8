"""The addresses of the replicas: a list, or a DNS name whose addresses may change."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from alexnet_client.errors import BadInput, Unavailable
from alexnet_client.files import reason

DNS = "dns:///"


@dataclass(frozen=True)
class Targets:
    """The addresses of the replicas, or the name to look up.

    Attributes:
        text: as the user wrote it.
        addresses: host:port of each replica, if the user listed them.
        name: host and port to look up otherwise; each address of the host is a replica.
    """

    text: str
    addresses: tuple[str, ...]
    name: tuple[str, int] | None = None

    async def resolve(self) -> list[str]:
        """The current addresses, host:port.

        Raises:
            Unavailable: the name has no address.
        """
        if self.name is None:
            return list(self.addresses)
        host, port = self.name
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # Python reports an empty or too long label as UnicodeError
            cause = reason(error) if isinstance(error, OSError) else str(error)
            raise Unavailable(f"{self.text}: the name has no address ({cause}); check the name") from None
        hosts = sorted({str(each[4][0]) for each in found})
        return [f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in hosts]


def parse_targets(text: str) -> Targets:
    """Parse ``host:port``, ``host:port,host:port`` or ``dns:///host:port``.

    Raises:
        BadInput: the text has another form.
    """
    if text.startswith(DNS):
        return Targets(text, (), _host_and_port(text.removeprefix(DNS)))
    addresses = [part.strip() for part in text.split(",")]
    for each in addresses:
        _host_and_port(each)
    if len(set(addresses)) < len(addresses):
        raise BadInput(f"{text}: contains an address twice")
    return Targets(text, tuple(addresses))


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadInput(f"{text}: not an address of the form host:port")
    return host.strip("[]"), int(port)
