"""``alexnet-server rollout`` and ``rollback``: change the release of a server of this machine while it serves."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from alexnet_client.certificates import dns_names
from alexnet_client.connection import Connection
from alexnet_client.errors import ClientError
from alexnet_server.errors import LaunchError
from alexnet_server.manifest import published
from alexnet_server.rollout.pins import pin
from alexnet_server.rollout.steps import Rollout, roll_back, roll_out
from alexnet_server.terminal import DEFAULT_REPOSITORY, Repository, console, fail

Target = Annotated[str, typer.Option("--target", "-t", help="host:port of a server of this machine")]
Model = Annotated[str, typer.Option("--model", "-m", help="its name in the repository")]
Version = Annotated[int, typer.Option("--to", min=0, help="the version that shall serve; 0: see above")]
Tls = Annotated[Path | None, typer.Option("--tls", help="the directory that the server was started with")]
Json = Annotated[bool, typer.Option("--json", help="print the JSON line only")]


def rollout(
    images: Annotated[
        str,
        typer.Option(help="directory of images: the requests that both releases are sent, to be compared; required"),
    ] = "",
    without_comparison: Annotated[bool, typer.Option("--without-comparison", help="switch without comparing")] = False,
    requests: Annotated[int, typer.Option(min=1, help="to each release")] = Rollout.requests,
    agreement: Annotated[
        float, typer.Option(min=0, max=1, help="share of answers that must be the same")
    ] = Rollout.agreement,
    slower: Annotated[float, typer.Option(min=0, help="how many times as long an answer may take")] = Rollout.slower,
    to: Version = 0,
    repository: Repository = DEFAULT_REPOSITORY,
    model: Model = "alexnet",
    target: Target = Rollout.target,
    tls: Tls = None,
    as_json: Json = False,
) -> None:
    """Put the newest release, or another, to service: loaded beside the old one, warmed, compared, switched to.

    No request is lost. Exits 1, and the old release goes on, if the new one is not what was published, answers otherwise
    or takes too long.
    """
    plan = Rollout(repository / model, target, _connection(tls), images, requests, agreement, slower)

    async def run(tell: Callable[[str], None]) -> dict[str, Any]:
        if bool(images) == without_comparison:
            raise LaunchError(
                "name images that both releases are asked about (--images DIRECTORY), or --without-comparison"
            )
        served, serves, comparison = await roll_out(plan, to=to or None, tell=tell)
        return {"served": served, "serves": serves, "comparison": comparison and comparison.as_json()}

    _carry_out(run, as_json=as_json)


def rollback(
    to: Version = 0,
    repository: Repository = DEFAULT_REPOSITORY,
    model: Model = "alexnet",
    target: Target = Rollout.target,
    tls: Tls = None,
    as_json: Json = False,
) -> None:
    """Serve the release before the present one, or another, again: at once, and without a lost request."""
    plan = Rollout(repository / model, target, _connection(tls))

    async def run(tell: Callable[[str], None]) -> dict[str, Any]:
        served, serves = await roll_back(plan, to=to or None, tell=tell)
        return {"served": served, "serves": serves}

    _carry_out(run, as_json=as_json)


def unpin(repository: Repository = DEFAULT_REPOSITORY, model: Model = "alexnet") -> None:
    """Have the newest release serve again whenever a server starts: the opposite of what --rollouts did."""
    try:
        if not published(repository / model):
            raise LaunchError(f"{repository / model}: no published release is there")
        pin(repository / model, None)
    except LaunchError as error:
        fail(error)
    console.print(f"{model}: a server that starts serves version {published(repository / model)[-1].name}, the newest")


def _connection(tls: Path | None) -> Connection:
    return Connection.secured(tls, next(iter(dns_names(tls / "tls.crt")), "") if tls else "")


def _carry_out(run: Callable[[Callable[[str], None]], Coroutine[Any, Any, dict[str, Any]]], *, as_json: bool) -> None:
    def tell(text: str) -> None:
        if not as_json:
            console.print(text, soft_wrap=True)

    async def until_told() -> dict[str, Any]:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await run(tell)

    try:
        done = asyncio.run(until_told())
    except (ClientError, LaunchError) as error:
        fail(error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        fail(LaunchError("broken off; what served before serves"))
    print(json.dumps(done))
