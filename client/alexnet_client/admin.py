"""The key for a local server's administrative calls (shared memory, statistics), in a file only its owner can read.

The launcher makes a new key at each start. Triton 2.51 takes it from its arguments alone: until it serves, anybody who can
list this machine's processes can see it there; then the launcher overwrites it.
"""

from __future__ import annotations

import os
from pathlib import Path

from alexnet_client.errors import BadInput

ADMIN_KEY_NAME = "admin"


def key_file(target: str) -> Path:
    """Where the launcher of the server at ``target`` (host:port) leaves its key."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(runtime, "alexnet-serving") if runtime else cache / "alexnet-serving" / "run"
    return directory / f"{target.replace(':', '-')}.key"


def admin_metadata(target: str) -> tuple[tuple[str, str], ...]:
    """The gRPC metadata that opens the administrative calls of the server at ``target``.

    Raises:
        BadInput: there is no key: the server was not started by this user's launcher, or has ended.
    """
    try:
        key = key_file(target).read_text().strip()
    except OSError as error:
        raise BadInput(
            f"{target}: no administration key in {key_file(target)} ({(error.strerror or str(error)).lower()}); it is there "
            "while `alexnet-server serve` of the same user runs on this machine"
        ) from None
    return ((f"triton-grpc-protocol-{ADMIN_KEY_NAME}", key),)
