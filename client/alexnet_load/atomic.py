"""A file is there whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile

from alexnet_client.errors import BadInput


def write_atomically(path: Path, text: str) -> None:
    """Write a text file beside its place, then move it there; raises ``OSError``."""
    with NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8") as file:
        try:
            file.write(text)
            file.close()
            umask = os.umask(0)
            os.umask(umask)
            Path(file.name).chmod(0o666 & ~umask)  # temporary files are their owner's alone
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def check_writable(path: Path) -> None:
    """Make a file's directory, and make sure that a file can be written there.

    Raises:
        BadInput: none can.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadInput(f"{path}: nothing can be written there ({reason}); name another place") from None
