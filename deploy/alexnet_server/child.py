"""Child processes: they end together with this process, and their exit codes follow the convention of shells."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence

from alexnet_client.errors import BadInput

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)


class ChildProcess:
    """A program that runs beside the server. Its output is sent to a file descriptor, or inherited if that is None."""

    def __init__(self, command: Sequence[str], *, output: int | None = None) -> None:
        self._process = subprocess.Popen(
            command,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            preexec_fn=end_with_parent(os.getpid()),  # noqa: PLW1509  it allocates nothing and takes no lock
        )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        code = self._process.poll()
        return None if code is None else shell_exit_code(code)

    def end(self) -> int:
        """Send SIGTERM, wait for the end, and return the exit code."""
        if self._process.poll() is None:
            self._process.terminate()
        return shell_exit_code(self._process.wait())


def check_command(command: Sequence[str]) -> None:
    """Raise ``BadInput`` if there is no such program."""
    if shutil.which(command[0]) is None:
        raise BadInput(f"{command[0]}: command not found; Triton was not started")


def shell_exit_code(code: int) -> int:
    """Exit code as shells report it: 128 plus the signal number if a signal ended the process."""
    return 128 - code if code < 0 else code


def end_with_parent(parent: int) -> Callable[[], None]:
    """Return a ``preexec_fn``: the kernel sends the child SIGTERM when the thread that started it ends for any reason."""

    def arrange() -> None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent ended before the line above took effect
            os._exit(1)

    return arrange
