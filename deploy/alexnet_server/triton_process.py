"""One tritonserver process: start, graceful shutdown, forced end, and cleanup of its backend processes and shared memory."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from alexnet_client.admin import key_file
from alexnet_client.files import cache_directory, reason
from alexnet_server.child import end_with_parent, shell_exit_code
from alexnet_server.command import ServerOptions, arguments, environment
from alexnet_server.errors import LaunchError
from alexnet_server.model_repository import is_ensemble, models
from alexnet_server.preflight import SHARED_MEMORY_MOUNT
from alexnet_server.triton_log import open_log_pipe
from alexnet_server.wheel import assemble_backends, find_triton, shared_libpython

STUB = "triton_python_backend_stub"
DRAINED = b"All models are stopped, unloading models"
"""Triton logs this when no accepted request is left."""
TAIL_BYTES = 64_000


class TritonProcess:
    """A running tritonserver. Created by ``start``; must be ended by ``shut_down`` or ``kill``."""

    def __init__(
        self, process: subprocess.Popen[bytes], options: ServerOptions, log: Path | None, shm_prefix: str
    ) -> None:
        self._process, self.options, self._log, self._shm_prefix = process, options, log, shm_prefix
        self._log_start = log.stat().st_size if log is not None and log.is_file() else 0
        self._backends: dict[int, str] = {}

    @property
    def models(self) -> list[str]:
        """Names of the models in the repository."""
        return [model.name for model in models(self.options.repository)]

    @property
    def executing_models(self) -> list[str]:
        """Names of the models that execute something themselves."""
        return [model.name for model in models(self.options.repository) if not is_ensemble(model)]

    @property
    def exit_code(self) -> int | None:
        """Exit code as shells report it; None while it runs."""
        code = self._process.poll()
        return None if code is None else shell_exit_code(code)

    def record_backends(self) -> None:
        """Record the running backend processes, so that ``lost_backends`` can report those that ended."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    command = child.cmdline()  # empty if the process is ending
                    if len(command) > 1 and STUB in command[0]:
                        self._backends[child.pid] = Path(command[1]).parent.parent.name

    def lost_backends(self) -> list[str]:
        """Recorded backend processes that ended, such as "backend process 42 of alexnet"."""
        return [f"backend process {pid} of {model}" for pid, model in self._backends.items() if not _is_running(pid)]

    def restrict_shared_memory(self) -> None:
        """Remove the access of other users to the shared memory of images.

        The umask has no effect: Boost sets the mode to 0644 with ``fchmod`` after it created a region. The regions are
        created while Triton starts; before it is ready they contain no image of a client.
        """
        for region in SHARED_MEMORY_MOUNT.glob(f"{self._shm_prefix}*"):
            with suppress(OSError):
                region.chmod(0o600)

    def request_shutdown(self) -> None:
        """Send SIGTERM: Triton completes the accepted requests and exits."""
        if self._process.poll() is None:
            self._process.terminate()

    def interrupt(self) -> None:
        """Send SIGKILL to Triton without waiting; ``kill`` must follow."""
        self._process.kill()

    def kill(self) -> int:
        """End Triton and its backend processes, delete its shared memory, and return the exit code."""
        with suppress(ProcessLookupError):  # a backend process can outlive Triton; it is in the same process group
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        for region in SHARED_MEMORY_MOUNT.glob(f"{self._shm_prefix}*"):
            region.unlink(missing_ok=True)
        return shell_exit_code(code)

    @property
    def drained(self) -> bool:
        """Whether Triton logged that no accepted request is left; False without a log file."""
        if self._log is None or not self._log.is_file():  # a device or a pipe may have no end
            return False
        with self._log.open("rb") as log:
            log.seek(max(self._log_start, self._log.stat().st_size - TAIL_BYTES))
            return DRAINED in log.read(TAIL_BYTES)

    def log_excerpt(self) -> str:
        """The last errors in the log, and the path of the log."""
        if self._log is None or not self._log.is_file():
            return "; see Triton's log lines above"
        lines = self._log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if re.match(r"E\d{4} |error:", line)][-3:]
        return "".join(f"\n  {line}" for line in errors) + f"\n  complete log: {self._log}"


async def shut_down(
    server: TritonProcess,
    *,
    on_poll: Callable[[], None],
    poll_interval_s: float = 0.05,
    repeat_after_s: float = 5,
    kill_after_s: float = 10,
    unload_timeout_s: float = 10,
) -> int:
    """Drain a server and return its exit code.

    Args:
        server: the server.
        on_poll: called at each poll.
        poll_interval_s: seconds between polls.
        repeat_after_s: time between two SIGTERM, because Triton lost a signal once, seconds.
        kill_after_s: how long Triton may exceed its drain timeout before it is killed, seconds.
        unload_timeout_s: how long a drained Triton may unload its models before it is killed, seconds.
    """
    kill_at_s = time.monotonic() + server.options.exit_timeout_s + kill_after_s
    repeat_at_s = 0.0
    while server.exit_code is None and time.monotonic() < kill_at_s:
        if time.monotonic() >= repeat_at_s:
            server.request_shutdown()
            repeat_at_s = time.monotonic() + repeat_after_s
            if server.drained:
                kill_at_s = min(kill_at_s, time.monotonic() + unload_timeout_s)
        on_poll()
        await asyncio.sleep(poll_interval_s)
    return server.kill()


def start(options: ServerOptions, *, admin_key: str, number: int = 1, log: Path | None = None) -> TritonProcess:
    """Start Triton after the preflight checks. It ends together with the calling thread.

    ``number`` counts the starts by this process, from 1; restarts append to the log. Without a log file, Triton's output is
    sent to stderr if it is a terminal, otherwise it is logged.

    Raises:
        LaunchError: the log or the cache cannot be written.
    """
    shm_prefix = f"alexnet_{os.getpid()}_{number}_"
    command, variables = wheel_command(options, admin_key=admin_key, shm_prefix=shm_prefix)
    with _output(log, append=number > 1) as output:
        process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            process_group=0,  # Ctrl-C must reach only the launcher, which then drains Triton
            preexec_fn=end_with_parent(os.getpid()),  # noqa: PLW1509  it allocates nothing and takes no lock
            umask=0o077,
        )
    return TritonProcess(process, options, log, shm_prefix)


def wheel_command(options: ServerOptions, *, admin_key: str, shm_prefix: str) -> tuple[list[str], dict[str, str]]:
    """Command line and environment for the Triton of the wheel. Raises ``LaunchError``."""
    triton, libpython = find_triton(), shared_libpython()
    if libpython is None:
        raise LaunchError(
            "this Python has no shared library, which Triton's backends need; run `alexnet-server doctor`"
        )
    backends = assemble_backends(triton, cache_directory())
    return (
        arguments(options, triton.binary, backends, admin_key=admin_key, shm_prefix=shm_prefix),
        environment(triton, libpython=libpython, interpreter=Path(sys.executable), inherited=os.environ),
    )


@contextmanager
def admin_key(target: str) -> Iterator[str]:
    """Create a key for administrative calls, and keep it in a file that only this user can read while the block runs.

    Other users of this machine can still read the key in tritonserver's arguments, see ``command``.

    Raises:
        LaunchError: the file cannot be written.
    """
    path, key = key_file(target), secrets.token_urlsafe(32)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a killed launcher leaves its file behind
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{key}\n")
    except OSError as error:
        raise LaunchError(
            f"{path}: the administration key cannot be written ({reason(error)}); set XDG_RUNTIME_DIR to another directory"
        ) from None
    try:
        yield key
    finally:
        path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _output(log: Path | None, *, append: bool) -> Iterator[int | None]:
    """File descriptor for Triton's output: of the log file or of a pipe to ``logging``; None for a terminal."""
    if log is None and sys.stderr.isatty():
        yield None
        return
    descriptor = open_log_pipe() if log is None else _open_log(log, append=append)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_log(log: Path, *, append: bool) -> int:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        mode = os.O_APPEND if append else os.O_TRUNC
        return os.open(log, os.O_WRONLY | os.O_CREAT | mode, 0o600)
    except OSError as error:
        raise LaunchError(f"{log}: cannot be written ({reason(error)}); choose another file with --log") from None
