"""Supervise a server: start it, monitor it, restart it with backoff, shut it down. Owns signals and the event loop."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from alexnet_client.errors import ClientError
from alexnet_server.child import ChildProcess, check_command
from alexnet_server.command import ServerOptions
from alexnet_server.errors import LaunchError
from alexnet_server.failure_detection import FailureDetector, Observation, RestartPolicy
from alexnet_server.health import Health, health_endpoint
from alexnet_server.liveness import LivenessMonitor, wait_until_ready
from alexnet_server.preflight import check_all, require
from alexnet_server.triton_process import TritonProcess, admin_key, shut_down, start

CHECK_INTERVAL_S = 0.2


@dataclass(frozen=True)
class Serving:
    """All models are ready."""

    models: tuple[str, ...]
    after_s: float
    restarts: int


@dataclass(frozen=True)
class Restarting:
    """The server failed and will be restarted."""

    reason: str
    restart: int
    limit: int
    delay_s: float


@dataclass(frozen=True)
class UnloadFailed:
    """Triton crashed or hung after it completed all requests. For clients, the shutdown succeeded.

    Triton 2.51 crashes about once in several hundred shutdowns: its rate limiter may lose an instance that is being stopped
    (``EnqueuePayload`` in ``rate_limiter.cc`` of Triton core, called by ``StopBackendThread``).
    """

    exit_code: int


Event = Serving | Restarting | UnloadFailed


class Supervisor:
    """One server, including its restarts.

    Args:
        options: how to serve.
        log: file for Triton's output; None: stderr if it is a terminal, otherwise log records.
        start_timeout_s: how long the models may take to become ready, seconds.
        policy: when to restart a failed server.
        probe_after_s: idle time after which a model is probed, seconds; 0 disables probes.
        hang_timeout_s: how long a model may execute nothing while requests wait, seconds.
        shutdown_delay_s: time between reporting "stopping" on the health endpoint and the shutdown, seconds.
        on_event: called for each event.
    """

    def __init__(
        self,
        options: ServerOptions,
        *,
        log: Path | None,
        start_timeout_s: float,
        policy: RestartPolicy,
        probe_after_s: float,
        hang_timeout_s: float,
        shutdown_delay_s: float,
        on_event: Callable[[Event], None],
    ) -> None:
        self._options, self._log, self._start_timeout_s = options, log, start_timeout_s
        self._policy, self._probe_after_s, self._on_event = policy, probe_after_s, on_event
        self._hang_timeout_s, self._shutdown_delay_s = hang_timeout_s, shutdown_delay_s
        self._health = Health(options.expiries)
        self._stop, self._stop_now = asyncio.Event(), asyncio.Event()
        self._server: TritonProcess | None = None
        self._child: ChildProcess | None = None
        self._starts = self._restarts = 0

    async def run(self, command: Sequence[str] = ()) -> int:
        """Serve until SIGINT or SIGTERM, or while ``command`` runs.

        Returns:
            The exit code of the command, or of Triton without a command.

        Raises:
            BadInput: there is no such command.
            LaunchError: the server could not be started, or failed more often than the restart policy allows.
        """
        if command:
            check_command(command)
        require(check_all(self._options))  # first, because another running server may own the key file
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        with (
            health_endpoint(self._health, self._options.address, self._options.health_port),
            admin_key(self._options.target) as key,
        ):
            try:
                await self._serve(key, command)
                return await self._shut_down()
            finally:
                if self._child is not None:
                    self._child.end()
                if self._server is not None:
                    self._server.kill()

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set() and number == signal.SIGINT and self._server is not None:
            self._stop_now.set()
            self._server.interrupt()  # a second Ctrl-C skips the drain
        self._stop.set()

    async def _serve(self, key: str, command: Sequence[str]) -> None:
        """Start, monitor and restart until the server must shut down."""
        while True:
            ready_s, fault = 0.0, ""
            try:
                server = await self._start(key)
                if command and self._child is None:
                    self._child = ChildProcess(command)
                began_s = time.monotonic()
                fault = await self._monitor(server)
                ready_s = time.monotonic() - began_s
                excerpt = server.log_excerpt() if server.exit_code is not None else ""
            except LaunchError as error:
                if self._stop.is_set() or self._starts == 1:
                    raise
                fault, excerpt = str(error), ""
            if not fault:
                return
            await self._prepare_restart(fault, excerpt, ready_s)
            if self._stop.is_set():
                raise LaunchError(f"stopped while Triton was not ready: {fault}")

    async def _start(self, key: str) -> TritonProcess:
        began_s = time.monotonic()
        self._starts += 1
        if self._starts > 1:
            require(check_all(self._options, restart=True))
        self._server = server = start(self._options, admin_key=key, number=self._starts, log=self._log)

        def running() -> bool:
            self._health.update()
            return server.exit_code is None and not self._stop.is_set()

        try:
            ready = await wait_until_ready(
                self._options.target,
                server.models,
                timeout_s=self._start_timeout_s,
                running=running,
                connection=self._options.connection,
            )
        except ClientError as error:
            raise LaunchError(f"Triton started but is not ready: {error}{server.log_excerpt()}") from error
        if self._stop.is_set():
            raise LaunchError("stopped before Triton was ready")
        if not ready:
            raise LaunchError(f"Triton exited during startup with code {server.exit_code}{server.log_excerpt()}")
        server.record_backends()
        server.restrict_shared_memory()
        self._health.update(state="ready", reason="", models=tuple(server.models))
        self._on_event(Serving(tuple(server.models), time.monotonic() - began_s, self._starts - 1))
        return server

    async def _monitor(self, server: TritonProcess) -> str:
        """Return the reason for a restart; empty if the server must shut down."""
        detector = FailureDetector(failed_after_s=self._hang_timeout_s)
        liveness = LivenessMonitor(self._options, server.executing_models, self._probe_after_s)
        monitoring = asyncio.create_task(liveness.run())
        try:
            while not self._stop.is_set() and (self._child is None or self._child.exit_code is None):
                now_s, lost = time.monotonic(), server.lost_backends()
                observation = Observation(now_s, server.exit_code, lost, liveness.stalled, liveness.faults)
                verdict = detector.evaluate(observation)
                self._health.update(state="ready" if verdict.ready else "unready", reason=verdict.reason)
                if verdict.failed:
                    return verdict.reason
                if monitoring.done():
                    monitoring.result()  # raise a bug of the monitor instead of serving without it
                await self._pause(CHECK_INTERVAL_S)
            return ""
        finally:
            monitoring.cancel()

    async def _prepare_restart(self, fault: str, excerpt: str, ready_s: float) -> None:
        assert self._server is not None
        self._server.kill()
        self._restarts = self._policy.count(self._restarts, ready_s)
        delay_s = self._policy.delay_s(self._restarts)
        if delay_s is None:
            self._health.update(state="failed", reason=fault)
            raise LaunchError(
                f"{fault}{excerpt}\nNot restarted: the limit of {self._policy.limit} restarts in a row is reached "
                "(--max-restarts)"
            )
        self._health.update(state="restarting", reason=fault, restarts=self._starts)
        self._on_event(Restarting(fault, self._restarts, self._policy.limit, delay_s))
        await self._pause(delay_s)

    async def _shut_down(self) -> int:
        """Drain the server; return the exit code of the command, or of Triton without a command."""
        assert self._server is not None
        self._health.update(state="stopping", reason="")
        if self._stop.is_set() and self._shutdown_delay_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop_now.wait(), self._shutdown_delay_s)
        code = None if self._child is None else self._child.end()
        server_code = await shut_down(self._server, on_poll=self._health.update)
        if server_code and self._server.drained and not self._stop_now.is_set():
            self._on_event(UnloadFailed(server_code))
            server_code = 0
        return server_code if code is None else code

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
