"""The tritonserver process: started, watched until it serves, told to drain, and reaped. Owns signals."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from alexnet_client.errors import ClientError
from alexnet_server.checks import SHARED_MEMORY_MOUNT, check_all, models
from alexnet_server.command import ServerOptions, arguments, environment
from alexnet_server.errors import LaunchError
from alexnet_server.ready import wait_until_serving
from alexnet_server.wheel import assemble_backends, cache_directory, find_triton, shared_libpython

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)
REMIND_AFTER_S = 5
KILL_AFTER_S = 10
"""How much longer than its own exit timeout a stopping server may take before it is killed, seconds."""


class Server:
    """A running tritonserver. Made by ``start``; must be ended by ``stop`` or ``wait``."""

    def __init__(
        self, process: subprocess.Popen[bytes], options: ServerOptions, log: Path | None, shm_prefix: str
    ) -> None:
        self.process, self.options, self.log, self._shm_prefix = process, options, log, shm_prefix
        self.stopping = False
        """Whether somebody has asked it to stop."""
        self.companion: subprocess.Popen[bytes] | None = None
        """A command that runs as long as the server does; signals are passed on to it too."""

    @property
    def models(self) -> list[str]:
        """Names of the models in the repository."""
        return [model.name for model in models(self.options.repository)]

    def wait_until_serving(self, timeout_s: float) -> None:
        """Wait until every model has answered.

        Raises:
            LaunchError: the server ended, was told to, or did not answer in time; it is stopped then.
        """
        try:
            waiting = wait_until_serving(
                self.options.target, self.models, timeout_s=timeout_s, alive=lambda: self.process.poll() is None
            )
            serving = asyncio.run(waiting)
        except ClientError as error:
            self.stop()
            raise LaunchError(f"Triton started but does not serve: {error}{self._last_words()}") from error
        if self.stopping:
            raise LaunchError("stopped before it served")
        if not serving:
            raise LaunchError(f"Triton ended while starting, exit code {self.process.returncode}{self._last_words()}")

    def forward(self, number: int, _frame: FrameType | None) -> None:
        """Signal handler: ask the server to drain and stop; a second Ctrl-C kills it."""
        impatient = self.stopping and number == signal.SIGINT
        self.stopping = True
        self.process.send_signal(signal.SIGKILL if impatient else signal.SIGTERM)
        if self.companion is not None and number == signal.SIGTERM:  # Ctrl-C reaches it by the terminal
            self.companion.terminate()

    def wait(self) -> int:
        """Wait for the end; the exit code, or 128 plus the signal that ended it, as a shell counts."""
        code = None
        while code is None:
            try:
                code = self.process.wait(REMIND_AFTER_S)
            except subprocess.TimeoutExpired:
                if (
                    self.stopping
                ):  # Triton lost a signal once that came as it had just started; one more changes nothing
                    self.process.terminate()
        with suppress(ProcessLookupError):
            # A backend process that was still starting outlives Triton; it is in Triton's process group.
            os.killpg(self.process.pid, signal.SIGKILL)
        for left_over in SHARED_MEMORY_MOUNT.glob(f"{self._shm_prefix}*"):
            left_over.unlink(missing_ok=True)
        return _exit_code(code)

    def stop(self) -> int:
        """Let it finish what it has accepted, stop it, and return its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(self.options.exit_timeout_s + KILL_AFTER_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.wait()

    def _last_words(self) -> str:
        if self.log is None or not self.log.exists():
            return "; Triton's own lines above say why"
        lines = self.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if re.match(r"E\d{4} |error:", line)][-3:]
        return "".join(f"\n  {line}" for line in errors) + f"\n  the whole log: {self.log}"


def start(options: ServerOptions, *, log: Path | None = None) -> Server:
    """Check the machine and start Triton; it ends when this process does, whatever ends it.

    Args:
        options: how to serve.
        log: file for Triton's output; None passes it through.

    Raises:
        LaunchError: a check failed; its text has the remedy.
    """
    failed = [check for check in check_all(options) if not check.ok]
    if failed:
        raise LaunchError("\n".join(f"{check.name}: {check.found}. {check.remedy}" for check in failed))
    triton, libpython = find_triton(), shared_libpython()
    assert libpython is not None  # checked above
    command = arguments(
        options,
        triton,
        assemble_backends(triton, cache_directory()),
        admin_key=secrets.token_urlsafe(32),
        shm_prefix=(shm_prefix := f"alexnet_{os.getpid()}_{secrets.token_hex(4)}_"),
    )
    variables = environment(triton, libpython=libpython, interpreter=Path(sys.executable), inherited=os.environ)
    with _output(log) as output:
        process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            process_group=0,  # Ctrl-C goes to the launcher alone, which asks for an orderly end
            preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509  it allocates nothing and takes no lock
        )
    return Server(process, options, log, shm_prefix)


@contextmanager
def running(options: ServerOptions, *, log: Path | None, timeout_s: float) -> Iterator[Server]:
    """A server that serves; signals sent to this process stop it, and so does the end of the block."""
    server = start(options, log=log)
    previous = {number: signal.signal(number, server.forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.wait_until_serving(timeout_s)
        yield server
    finally:
        server.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_with_server(options: ServerOptions, command: Sequence[str], *, log: Path | None, timeout_s: float) -> int:
    """Serve while ``command`` runs; return the command's exit code.

    Raises:
        LaunchError: the server could not be started, or the command does not exist.
    """
    if shutil.which(command[0]) is None:
        raise LaunchError(f"{command[0]}: no such program, so Triton is not started for it")
    with running(options, log=log, timeout_s=timeout_s) as server:
        server.companion = subprocess.Popen(command, preexec_fn=_die_with(os.getpid()))  # noqa: PLW1509  as above
        return _exit_code(server.companion.wait())


def _exit_code(code: int) -> int:
    """128 plus the signal for a process that a signal ended, as a shell counts."""
    return 128 - code if code < 0 else code


@contextmanager
def _output(log: Path | None) -> Iterator[int | None]:
    if log is None:
        yield None
        return
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise LaunchError(f"{log}: cannot be written ({error.strerror}); name another file with --log") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _die_with(parent: int) -> Callable[[], None]:
    def arrange() -> None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above took effect
            os._exit(1)

    return arrange
