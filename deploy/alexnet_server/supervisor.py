"""Keeps a server serving: starts it, looks at it, starts it again with back-off, gives up. Owns signals and the loop."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from alexnet_client.errors import ClientError
from alexnet_server.child import Companion, check_command
from alexnet_server.command import ServerOptions
from alexnet_server.ending import BrokenUnload, ended
from alexnet_server.errors import LaunchError
from alexnet_server.health import Health, serving
from alexnet_server.keys import admin_key
from alexnet_server.launcher import Backend, Server, check, start
from alexnet_server.pulse import Pulse
from alexnet_server.ready import version_unloaded, wait_until_serving
from alexnet_server.rollout.candidate import taking_releases
from alexnet_server.watch import Look, RestartPolicy, Watch

LOOK_EVERY_S = 0.2
TIGHTEN_EVERY_S = 0.02
NOTE_EVERY_S = 1.0
"""A version that was loaded while Triton serves has a backend process of its own, seconds."""
SILENT_S = 5.0
"""A Triton that does not say for so long whether a version was unloaded has lost its process, seconds."""


@dataclass(frozen=True)
class Serving:
    """Every model has answered."""

    models: tuple[str, ...]
    after_s: float
    restarts: int


@dataclass(frozen=True)
class Restarting:
    """The server is started again."""

    reason: str
    restart: int
    limit: int
    delay_s: float


Event = Serving | Restarting | BrokenUnload


class Supervisor:
    """One server and whatever takes its place.

    Args:
        options: how to serve.
        log: file for Triton's output; None passes it through.
        start_timeout_s: how long the models may take to answer, seconds.
        policy: how often it is started again.
        probe_every_s: a model that nobody asks anything is sent a blank request so often, seconds; 0 for never.
        shutdown_delay_s: between saying on the health port that it will stop and stopping, for balancers that look there, seconds.
        hung_after_s: a model that has executed nothing for so long while requests waited counts as hung, seconds.
        on_event: told what happens.
    """

    def __init__(
        self,
        options: ServerOptions,
        *,
        log: Path | None = None,
        start_timeout_s: float = 120,
        policy: RestartPolicy | None = None,
        probe_every_s: float = 5.0,
        hung_after_s: float = 10.0,
        shutdown_delay_s: float = 0.0,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._options, self._log, self._start_timeout_s = options, log, start_timeout_s
        self._policy, self._probe_every_s, self._on_event = policy or RestartPolicy(), probe_every_s, on_event
        self._hung_after_s, self._health = hung_after_s, Health(options.expiries)
        self._stop, self._at_once, self._shutdown_delay_s = asyncio.Event(), asyncio.Event(), shutdown_delay_s
        self._server: Server | None = None
        self._companion: Companion | None = None
        self._started = self._restarts = 0
        self._note_s, self._missed = 0.0, dict[Backend, float]()

    async def run(self, command: Sequence[str] = ()) -> int:
        """Serve until a signal comes, or while ``command`` runs; give Triton's exit code, or the command's.

        Raises:
            LaunchError: the server could not be started at first, or kept failing.
        """
        if command:
            check_command(command)
        check(self._options)  # before anything is touched that a server which runs already may own
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        with (
            serving(self._health, self._options.address, self._options.health_port),
            admin_key(self._options.target) as key,
            taking_releases(self._options.repository, self._options.target)
            if self._options.rollouts
            else nullcontext(),
        ):
            try:
                await self._keep_serving(key, command)
                return await self._end()
            finally:
                if self._companion is not None:
                    self._companion.end()
                if self._server is not None:
                    self._server.kill()

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set() and number == signal.SIGINT and self._server is not None:
            self._at_once.set()
            self._server.process.kill()  # a second Ctrl-C: no patience for the drain
        self._stop.set()

    async def _keep_serving(self, key: str, command: Sequence[str]) -> None:
        """Returns when the server is to end."""
        while True:
            served_s, fault = 0.0, ""
            try:
                server = await self._start(key)
                if command and self._companion is None:
                    self._companion = Companion(command)
                began_s = time.monotonic()
                fault = await self._watch(server)
                served_s = time.monotonic() - began_s
                words = server.last_words() if server.exit_code is not None else ""
            except LaunchError as error:
                if self._stop.is_set() or self._started < 2:
                    raise
                fault, words = str(error), ""
            if not fault:
                return
            await self._prepare_restart(fault, words, served_s)
            if self._stop.is_set():
                raise LaunchError(f"stopped while Triton did not serve: {fault}")

    async def _start(self, key: str) -> Server:
        began_s = time.monotonic()
        self._started += 1
        if self._started > 1:
            check(self._options, again=True)
        self._server = server = start(self._options, admin_key=key, number=self._started, log=self._log)
        tightening = asyncio.create_task(self._tighten(server))
        try:
            alive = await wait_until_serving(
                self._options.target,
                server.models,
                timeout_s=self._start_timeout_s,
                alive=lambda: server.exit_code is None and not self._stop.is_set(),
                connection=self._options.connection,
            )
        except ClientError as error:
            raise LaunchError(f"Triton started but does not serve: {error}{server.last_words()}") from error
        finally:
            tightening.cancel()
        if self._stop.is_set():
            raise LaunchError("stopped before it served")
        if not alive:
            raise LaunchError(f"Triton ended while starting, exit code {server.exit_code}{server.last_words()}")
        server.note_backends()
        server.hide_key(key)
        server.close_shared_memory()
        self._health.say(state="ready", reason="", models=tuple(server.models))
        self._on_event(Serving(tuple(server.models), time.monotonic() - began_s, self._started - 1))
        return server

    async def _tighten(self, server: Server) -> None:
        while True:
            server.close_shared_memory()
            self._health.say()
            await asyncio.sleep(TIGHTEN_EVERY_S)

    async def _watch(self, server: Server) -> str:
        """Returns why the server must be started again; nothing if it is to end."""
        watch = Watch(hung_after_s=self._hung_after_s)
        pulse = Pulse(self._options, server.working_models, self._probe_every_s)
        gathering = asyncio.create_task(pulse.run())
        try:
            while not self._stop.is_set() and (self._companion is None or self._companion.exit_code is None):
                server.close_shared_memory()
                lost = await self._lost(server)
                look = Look(time.monotonic(), server.exit_code, lost, pulse.waiting, pulse.faults)
                verdict = watch.judge(look)
                self._health.say(state="ready" if verdict.ready else "unready", reason=verdict.reason)
                if verdict.fatal:
                    return verdict.reason
                if gathering.done():
                    gathering.result()  # a fault of ours must not leave Triton unwatched in silence
                await self._pause(LOOK_EVERY_S)
            return ""
        finally:
            gathering.cancel()

    async def _lost(self, server: Server) -> list[str]:
        """Backend processes that have gone though nobody unloaded their version, or loaded it again."""
        gone = server.lost_backends()
        if not self._options.rollouts:
            return [str(each) for each in gone]
        now_s = time.monotonic()
        if gone or now_s >= self._note_s:
            server.note_backends()
            self._note_s = now_s + NOTE_EVERY_S
        self._missed = {each: self._missed.get(each, now_s) for each in gone}
        lost = []
        for each, since_s in self._missed.items():
            unloaded = await version_unloaded(self._options.target, self._options.connection, each.model, each.version)
            if unloaded or server.replaced(each):
                server.forget(each)
            elif unloaded is not None or now_s - since_s > SILENT_S:
                lost.append(str(each))
        return lost

    async def _prepare_restart(self, fault: str, words: str, served_s: float) -> None:
        assert self._server is not None
        self._server.kill()
        self._restarts = self._policy.count(self._restarts, served_s)
        delay_s = self._policy.delay_s(self._restarts)
        if delay_s is None:
            self._health.say(state="failed", reason=fault)
            raise LaunchError(
                f"{fault}{words}\nGiving up: started again {self._restarts - 1} times in a row (--max-restarts)"
            )
        self._health.say(state="restarting", reason=fault, restarts=self._started)
        self._on_event(Restarting(fault, self._restarts, self._policy.limit, delay_s))
        await self._pause(delay_s)

    async def _end(self) -> int:
        """Let it finish what it has accepted, and give its exit code, or the companion's if that has ended."""
        assert self._server is not None
        self._health.say(state="stopping", reason="")
        if self._stop.is_set() and self._shutdown_delay_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._at_once.wait(), self._shutdown_delay_s)
        code = None if self._companion is None else self._companion.end()
        server_code = await ended(self._server, while_waiting=self._health.say)
        if server_code and self._server.drained and not self._at_once.is_set():
            self._on_event(BrokenUnload(server_code))
            server_code = 0
        return server_code if code is None else code

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
