"""Processes that belong to this one: they end when it does, and their exit codes are counted as a shell counts."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence

from alexnet_server.errors import LaunchError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)


class Companion:
    """A command that runs as long as the server does.

    Args:
        command: with its arguments.
        output: descriptor for its lines; None lets them through.
    """

    def __init__(self, command: Sequence[str], *, output: int | None = None) -> None:
        self._process = subprocess.Popen(
            command,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            preexec_fn=die_with(os.getpid()),  # noqa: PLW1509  it allocates nothing and takes no lock
        )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        code = self._process.poll()
        return None if code is None else exit_code(code)

    def end(self) -> int:
        """Tell it to end, wait for it, and return its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
        return exit_code(self._process.wait())


def check_command(command: Sequence[str]) -> None:
    """Raises ``LaunchError`` if a companion would not start."""
    if shutil.which(command[0]) is None:
        raise LaunchError(f"{command[0]}: no such program, so Triton is not started for it")


def exit_code(code: int) -> int:
    """128 plus the signal for a process that a signal ended, as a shell counts."""
    return 128 - code if code < 0 else code


def die_with(parent: int) -> Callable[[], None]:
    """For a child between fork and exec: it ends when the thread that started it does, whatever ends that."""

    def arrange() -> None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above took effect
            os._exit(1)

    return arrange
