"""The administration key of a server on this machine: for shared memory and statistics.

The launcher creates a new key at each start and writes it to a file that only its user can read.
Triton 2.51 reads the key only from its command line: other users of this machine can see it in the process list, unless /proc
is mounted with ``hidepid=2``.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from alexnet_client.errors import BadInput
from alexnet_client.files import cache_directory, reason

ADMIN_KEY_NAME = "admin"


def key_file(target: str) -> Path:
    """The key file of the server at ``target`` (host:port)."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    directory = Path(runtime, "alexnet-serving") if runtime else cache_directory() / "run"
    return directory / f"{target.replace(':', '-')}.key"


def admin_metadata(target: str) -> tuple[tuple[str, str], ...]:
    """The gRPC metadata for administrative calls to the server at ``target`` (host:port).

    Raises:
        BadInput: there is no key: no launcher of this user runs the server.
    """
    try:
        key = key_file(target).read_text().strip()
    except OSError as error:
        raise BadInput(
            f"{target}: no administration key in {key_file(target)} ({reason(error)}); the file exists while "
            "`alexnet-server serve` of the same user runs on this machine"
        ) from None
    return ((f"triton-grpc-protocol-{ADMIN_KEY_NAME}", key),)


def loopback_address(address: str) -> str:
    """The host:port for which the launcher writes the key of the server at ``address``.

    Raises:
        BadInput: the address may belong to another machine.
    """
    host, _, port = address.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise BadInput(
            f"{address}: shared memory requires a server on this machine with a loopback address (127.0.0.1:8001); connect "
            "to other servers without shared memory"
        )
    return f"{host}:{port}"
