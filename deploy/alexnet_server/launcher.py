"""One tritonserver process: started, looked at, told to drain, and reaped with all that belongs to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from alexnet_server.checks import SHARED_MEMORY_MOUNT, check_all, models
from alexnet_server.child import die_with, exit_code
from alexnet_server.command import ServerOptions, arguments, environment
from alexnet_server.errors import LaunchError
from alexnet_server.manifest import is_ensemble
from alexnet_server.rollout.candidate import staging
from alexnet_server.triton_log import pass_on
from alexnet_server.wheel import assemble_backends, cache_directory, find_triton, shared_libpython

STUB = "triton_python_backend_stub"
DRAINED = b"All models are stopped, unloading models"
"""What Triton says when nothing is left to be answered."""
TAIL_BYTES = 64_000


@dataclass(frozen=True)
class Backend:
    """A backend process."""

    pid: int
    model: str
    version: str

    def __str__(self) -> str:
        return f"backend process {self.pid} of {self.model}"


class Server:
    """A running tritonserver. Made by ``start``; must be ended by ``kill``."""

    def __init__(
        self, process: subprocess.Popen[bytes], options: ServerOptions, log: Path | None, shm_prefix: str
    ) -> None:
        self.process, self.options, self.log, self._shm_prefix = process, options, log, shm_prefix
        self._log_begins = log.stat().st_size if log is not None and log.is_file() else 0
        self._backends: dict[int, Backend] = {}
        self._instances: dict[tuple[str, str], int] = {}

    @property
    def models(self) -> list[str]:
        """Names of the models in the repository."""
        return [model.name for model in models(self.options.repository)]

    @property
    def working_models(self) -> list[str]:
        """Those that execute something themselves."""
        return [model.name for model in models(self.options.repository) if not is_ensemble(model)]

    @property
    def exit_code(self) -> int | None:
        """Triton's, 128 plus the signal if one ended it, as a shell counts; None while it runs."""
        code = self.process.poll()
        return None if code is None else exit_code(code)

    def note_backends(self) -> None:
        """Remember the backend processes of the repository's models, to find out later which have gone."""
        known, before = self.models, set(self._backends)
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    command = child.cmdline()
                    # One that is just ending has no command line any more.
                    if len(command) > 1 and STUB in command[0] and Path(command[1]).parent.parent.name in known:
                        version = Path(command[1]).parent
                        self._backends[child.pid] = Backend(child.pid, version.parent.name, version.name)
        found = Counter((each.model, each.version) for pid, each in self._backends.items() if pid not in before)
        for key, count in found.items():
            self._instances.setdefault(key, count)

    def replaced(self, lost: Backend) -> bool:
        """Whether as many processes of its version run as ever did: the version was loaded again, and this one ended."""
        same = [each for each in self._backends.values() if (each.model, each.version) == (lost.model, lost.version)]
        gone = {each.pid for each in self.lost_backends()}
        return sum(each.pid not in gone for each in same) >= self._instances[lost.model, lost.version]

    def lost_backends(self) -> list[Backend]:
        """Those that were noted and have gone."""
        return [each for pid, each in self._backends.items() if not _runs(pid)]

    def forget(self, backend: Backend) -> None:
        """It has gone because its version was unloaded, or loaded again."""
        del self._backends[backend.pid]

    def hide_key(self, key: str) -> None:
        """Take the administration key out of the arguments that every user of this machine can list.

        Triton has read them by the time it serves. Where the kernel lets nobody write to another process, it stays there.
        """
        with suppress(OSError, ValueError):
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            begin, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5), counted from field 3
            with Path(f"/proc/{self.process.pid}/mem").open("r+b", buffering=0) as memory:
                memory.seek(begin)
                place = begin + memory.read(end - begin).index(key.encode())
                memory.seek(place)
                memory.write(b"x" * len(key))

    def close_shared_memory(self) -> None:
        """Take away what Triton gives everybody: it makes the images' shared memory readable for all users."""
        for region in SHARED_MEMORY_MOUNT.glob(f"{self._shm_prefix}*"):
            with suppress(OSError):
                if region.stat().st_mode & 0o077:
                    region.chmod(0o600)

    def ask_to_stop(self) -> None:
        """Ask it to finish what it has accepted and to end. May be asked again; Triton lost a signal once."""
        if self.process.poll() is None:
            self.process.terminate()

    def kill(self) -> int:
        """End what is left of it, backend processes too, free its shared memory, and return its exit code."""
        with suppress(ProcessLookupError):  # a backend process can outlive Triton; it is in its process group
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        for left_over in SHARED_MEMORY_MOUNT.glob(f"{self._shm_prefix}*"):
            left_over.unlink(missing_ok=True)
        return exit_code(code)

    @property
    def drained(self) -> bool:
        """Whether it has been told to stop and said that nothing is left to be answered; False if no log file says so."""
        if self.log is None or not self.log.is_file():  # a device or a pipe may have no end
            return False
        with self.log.open("rb") as log:
            log.seek(max(self._log_begins, self.log.stat().st_size - TAIL_BYTES))
            return DRAINED in log.read(TAIL_BYTES)

    def last_words(self) -> str:
        """The last errors in its log, and where the rest is."""
        if self.log is None or not self.log.is_file():
            return "; Triton's own lines above say why"
        lines = self.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if re.match(r"E\d{4} |error:", line)][-3:]
        return "".join(f"\n  {line}" for line in errors) + f"\n  the whole log: {self.log}"


def check(options: ServerOptions, *, again: bool = False) -> None:
    """Look at everything that would make Triton fail later; ``again`` before a restart.

    Raises:
        LaunchError: a check failed; its text has the remedy.
    """
    failed = [each for each in check_all(options, again=again) if not each.ok]
    if failed:
        raise LaunchError("\n".join(f"{each.name}: {each.found}. {each.remedy}" for each in failed))


def start(options: ServerOptions, *, admin_key: str, number: int = 1, log: Path | None = None) -> Server:
    """Start Triton on a machine that was checked; it ends when the calling thread does, whatever ends it.

    Args:
        options: how to serve.
        admin_key: what administrative calls must show.
        number: how many servers this process has started, with this one; a later one appends to the log.
        log: file for Triton's output; None passes it through, as it is to a terminal and as log lines elsewhere.

    Raises:
        LaunchError: the log or the cache cannot be written.
    """
    triton, libpython = find_triton(), shared_libpython()
    assert libpython is not None  # checked before
    command = arguments(
        options,
        triton.binary,
        assemble_backends(triton, cache_directory()),
        admin_key=admin_key,
        shm_prefix=(shm_prefix := f"alexnet_{os.getpid()}_{number}_"),
        models=[model.name for model in models(options.repository)],
        staging=staging(options.target),
    )
    variables = environment(triton, libpython=libpython, interpreter=Path(sys.executable), inherited=os.environ)
    with _output(log, append=number > 1) as output:
        process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            process_group=0,  # Ctrl-C goes to the launcher alone, which asks for an orderly end
            preexec_fn=die_with(os.getpid()),  # noqa: PLW1509  it allocates nothing and takes no lock
            umask=0o077,
        )
    return Server(process, options, log, shm_prefix)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _output(log: Path | None, *, append: bool) -> Iterator[int | None]:
    """Descriptor for Triton's lines: of a file, or of what makes them ours; None for the terminal itself."""
    if log is not None:
        descriptor = _opened(log, append=append)
    elif sys.stderr.isatty():
        yield None
        return
    else:
        descriptor = pass_on()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _opened(log: Path, *, append: bool) -> int:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        mode = os.O_APPEND if append else os.O_TRUNC
        return os.open(log, os.O_WRONLY | os.O_CREAT | mode, 0o600)
    except OSError as error:
        raise LaunchError(f"{log}: cannot be written ({error.strerror}); name another file with --log") from None
