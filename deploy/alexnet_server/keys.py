"""The key for administrative calls: new at each start of a launcher, in a file that only its user can read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from alexnet_client.admin import key_file
from alexnet_server.errors import LaunchError


@contextmanager
def admin_key(target: str) -> Iterator[str]:
    """A new key for administrative calls, in its file while the block runs.

    Raises:
        LaunchError: the file cannot be written.
    """
    path, key = key_file(target), secrets.token_urlsafe(32)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # left over from a launcher that was killed
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{key}\n")
    except OSError as error:
        raise LaunchError(
            f"{path}: the administration key cannot be written ({error.strerror}); set XDG_RUNTIME_DIR to another place"
        ) from None
    try:
        yield key
    finally:
        path.unlink(missing_ok=True)
