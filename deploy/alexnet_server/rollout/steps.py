"""A rollout and a rollback, step by step. What serves goes on serving until the next release is ready to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from alexnet_client.connection import Connection
from alexnet_client.errors import ClientError
from alexnet_load.workload import open_workload
from alexnet_server.errors import LaunchError
from alexnet_server.manifest import ensembles_of, published, wrong_version
from alexnet_server.ready import probe
from alexnet_server.rollout.candidate import alone, candidate_of, staged
from alexnet_server.rollout.control import ModelControl
from alexnet_server.rollout.pins import kept_on_failure, pin
from alexnet_server.rollout.shadow import Comparison, answers, compare

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Rollout:
    """What to roll out, where, and when it is good enough.

    Attributes:
        model: its directory in the model repository.
        target: host:port of the server, started by this user's launcher on this machine.
        connection: how it is reached.
        images: directory of images, the requests of the comparison; empty for no comparison.
        requests: to each release.
        agreement: share of answers that must be those of the release that serves.
        slower: how many times as long the new release may take.
    """

    model: Path
    target: str = "127.0.0.1:8001"
    connection: Connection | None = None
    images: str = ""
    requests: int = 200
    agreement: float = 0.98
    slower: float = 1.5


async def roll_out(plan: Rollout, *, to: int | None = None, tell: Tell) -> tuple[int, int, Comparison | None]:
    """Serve another version: the newest, or ``to``. It is loaded beside the one that serves, compared, and switched to.

    Returns:
        The version that served, the one that does now, and how they compared.

    Raises:
        LaunchError: the new version is not what was published, differs too much, or is too slow; the old one serves.
        ClientError: the server does not answer or cannot load it; the old one serves if anything does.
    """
    async with _controlling(plan) as (control, serving):
        version = _release(plan.model, to, serving)
        tell(f"version {version} is what was published")
        comparison = await _compared(plan, control, serving, version, tell) if plan.images else None
        await _switch(plan, control, serving, version, tell)
    return serving, version, comparison


async def roll_back(plan: Rollout, *, to: int | None = None, tell: Tell) -> tuple[int, int]:
    """Serve the release before the one that serves, or ``to``, at once: it has served before, so nothing is compared.

    Returns:
        The version that served, and the one that does now.

    Raises:
        LaunchError: there is none, or it is not what was published any more.
        ClientError: as for ``roll_out``.
    """
    async with _controlling(plan) as (control, serving):
        older = [int(each.name) for each in published(plan.model) if int(each.name) < serving]
        if to is None and not older:
            raise LaunchError(f"{plan.model}: has no release older than version {serving}, which serves")
        version = _release(plan.model, to or older[-1], serving)
        await _switch(plan, control, serving, version, tell)
    return serving, version


@asynccontextmanager
async def _controlling(plan: Rollout) -> AsyncIterator[tuple[ModelControl, int]]:
    """Nobody else changes the server meanwhile; gives the way to it, and the version that serves."""
    if not published(plan.model):
        raise LaunchError(
            f"{plan.model}: no published release is there; name the repository with --repository, the model with --model"
        )
    with alone(plan.target):
        control = ModelControl(plan.target, plan.connection)
        try:
            found = await control.versions(plan.model.name)
            if len(found) != 1:
                raise LaunchError(f"{plan.target}: of {plan.model.name}, versions {sorted(found)} serve; one must")
            with suppress(ClientError):  # left over from a rollout that was killed
                await control.unload(candidate_of(plan.model))
            yield control, found.pop()
        finally:
            await control.close()


def _release(model: Path, version: int | None, serving: int) -> int:
    """A version whose files are those that were published, and that does not serve."""
    there = {int(each.name): each for each in published(model)}
    version = max(there) if version is None else version
    if version not in there:
        raise LaunchError(f"{model}: has no version {version}, only {', '.join(map(str, there))}")
    if wrong := wrong_version(there[version]):
        raise LaunchError(f"{wrong}; publish again")
    if version == serving:
        raise LaunchError(f"{model}: version {version} serves already")
    return version


async def _compared(plan: Rollout, control: ModelControl, serving: int, version: int, tell: Tell) -> Comparison:
    workload = open_workload(plan.images, encoded=False, largest=1, seed=0)
    with staged(plan.model, version, plan.target) as name:
        try:
            await control.load(name)
            await answers(lambda deadline: probe(control, name, deadline))
            tell(f"version {version} is loaded beside version {serving}, which serves, and has answered")
            found = await compare(control, plan.model.name, name, workload, requests=plan.requests)
        finally:
            with suppress(ClientError):  # what failed before is told; the next rollout unloads what is left
                await control.unload(name)
    tell(
        f"{found.requests} images to both: {found.agreement:.1%} the same class, probabilities differ by "
        f"{found.largest_difference:.4f} at most, {found.candidate_ms:.1f} ms against {found.serving_ms:.1f} ms"
    )
    if faults := found.faults(agreement=plan.agreement, slower=plan.slower):
        raise LaunchError(f"version {version} is not put to service, version {serving} goes on: {'; '.join(faults)}")
    return found


async def _switch(plan: Rollout, control: ModelControl, serving: int, version: int, tell: Tell) -> None:
    """Whatever ends it, Ctrl-C included: the configuration and the server agree."""
    try:
        with kept_on_failure(plan.model):
            pin(plan.model, version)
            await control.load(plan.model.name)
            await control.wait_for(plan.model.name, version)
            for name in (plan.model.name, *ensembles_of(plan.model)):
                await answers(lambda deadline, name=name: probe(control, name, deadline))  # type: ignore[misc]
    except BaseException as error:
        await _go_back(plan, control, serving, error)
        if isinstance(error, (ClientError, LaunchError)):
            raise LaunchError(
                f"version {version} cannot be served ({error}); version {serving} serves again"
            ) from error
        raise
    tell(f"version {version} serves, version {serving} is unloaded")


async def _go_back(plan: Rollout, control: ModelControl, serving: int, first: BaseException) -> None:
    try:
        await control.load(plan.model.name)
        await control.wait_for(plan.model.name, serving)
    except ClientError as error:
        raise LaunchError(
            f"{first}; version {serving} could not be loaded again either ({error}): restart the server"
        ) from error
