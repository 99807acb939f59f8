"""Atomic file writes, hashes, the cache directory, and texts for file errors."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from alexnet_client.errors import BadInput


def reason(error: OSError) -> str:
    """Cause of an ``OSError`` in lower case, without number and path, such as "permission denied"."""
    return (error.strerror or str(error)).lower()


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; when the block succeeds, flush it to disk and rename it to ``path``.

    Raises:
        BadInput: the disk is full or the directory is not writable; ``path`` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            yield temporary
            flush(temporary)
            temporary.replace(path)
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically. Raises ``BadInput``."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Flush a file, or the entries of a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Report an ``OSError`` while writing ``path`` as ``BadInput`` with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(f"{path}: the disk is full; free some space and run the command again") from error
        raise BadInput(f"{path}: cannot be written ({reason(error)}); choose another path") from error


def check_writable(path: Path) -> None:
    """Create the parent directory of ``path`` and check that a file can be written there. Raises ``BadInput``."""
    if path.is_dir():
        raise BadInput(f"{path}: is a directory; choose another path")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass


def cache_directory() -> Path:
    """Directory for files that can be created or downloaded again: ``alexnet-serving`` in XDG_CACHE_HOME or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet-serving"


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
