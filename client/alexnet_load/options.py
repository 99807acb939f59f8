"""Options that several commands share, and the plan they describe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import partial
from typing import Annotated, Any

import typer

from alexnet_client.client import DEFAULT_TARGET
from alexnet_client.errors import BadInput
from alexnet_client.resolver import parse_targets
from alexnet_load.arrivals import SYNTAX, parse_arrivals, parse_sizes
from alexnet_load.run import NO_BATCHING, Plan

Target = Annotated[str, typer.Option("--target", "-t", help="gRPC endpoint, host:port; several separated by commas")]
Model = Annotated[str, typer.Option("--model", "-m", help="name of the model on the server")]
Duration = Annotated[float, typer.Option("--duration", "-d", help="length of a run including the warm-up, seconds")]
WarmUp = Annotated[float, typer.Option(help="time at the start of a run that is excluded from the results, seconds")]
Sizes = Annotated[str, typer.Option(help="images per request: 4, or sizes with their shares such as 1:0.8,8:0.2")]
Images = Annotated[str, typer.Option(help="directory of images to send; or generated, for random images")]
Senders = Annotated[int, typer.Option("--senders", min=1, max=64, help="number of sender processes")]
Timeout = Annotated[float, typer.Option(help="deadline of a request, seconds")]
Seed = Annotated[int, typer.Option(min=0, help="seed of arrival times, request sizes and generated images")]
MaxBatch = Annotated[int | None, typer.Option(min=1, help="maximum batch size of the client, images")]
NoBatching = Annotated[
    bool, typer.Option("--no-batching", help="send each request immediately and unchanged, like many separate clients")
]
MetricsPort = Annotated[
    int,
    typer.Option(
        "--metrics-port",
        min=0,
        max=65_000,
        help="port on which the first sender serves its metrics for Prometheus; the others use the next ports; 0: none",
    ),
]
MetricsAddress = Annotated[str, typer.Option(help="address of the client metrics, which have no authentication")]
Tls = Annotated[str, typer.Option(help="directory with ca.crt, tls.crt and tls.key for mutual TLS")]
TlsName = Annotated[str, typer.Option(help="host name in the server certificate, if it differs from the address")]
Metrics = Annotated[
    str, typer.Option(help="host:port of Triton's metrics; needed for servers whose administration key you do not have")
]
Arrivals = Annotated[str, typer.Option(help=f"arrival process: {SYNTAX}")]
Json = Annotated[bool, typer.Option("--json", help="print only the JSON line")]

MakePlan = Callable[..., Plan]
"""Makes the plan of a command from ``duration_s``, ``warm_up_s`` and, unless each trial sets them, ``arrivals``."""


def with_plan(*, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the shared options, except ``without``, to a command; the command receives ``make``, a ``MakePlan``, instead."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [each for each in _parameters(command) if each.name != "make"]
        shared = _parameters(_shared_options)
        shown = [*own, *(each for each in shared if each.name not in without)]

        def call(**given: Any) -> None:
            values = {each.name: given.pop(each.name, each.default) for each in shared}
            command(make=partial(_make_plan, **values), **given)

        call.__name__, call.__doc__ = command.__name__, command.__doc__
        call.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # typer reads it
        call.__annotations__ = {each.name: each.annotation for each in shown}
        return call

    return decorate


def _parameters(function: Callable[..., None]) -> list[inspect.Parameter]:
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]


def _shared_options(
    target: Target = DEFAULT_TARGET,
    model: Model = "alexnet",
    sizes: Sizes = "1",
    images: Images = "generated",
    senders: Senders = 1,
    timeout: Timeout = 10.0,
    seed: Seed = 0,
    max_batch: MaxBatch = None,
    no_batching: NoBatching = False,
    metrics_port: MetricsPort = 0,
    metrics_address: MetricsAddress = "127.0.0.1",
    tls: Tls = "",
    tls_name: TlsName = "",
) -> None:
    """Only the signature is used."""


def _make_plan(*, sizes: str, timeout: float, max_batch: int | None, no_batching: bool, **plan: Any) -> Plan:
    """Validate the options; raises ``BadInput``."""
    if not 0 <= plan["warm_up_s"] < plan["duration_s"]:
        raise BadInput(
            f"the warm-up must be shorter than the run, got {plan['warm_up_s']:g} s of {plan['duration_s']:g} s"
        )
    if max_batch and no_batching:
        raise BadInput("--max-batch and --no-batching exclude each other")
    batching = NO_BATCHING if no_batching else {"max_batch": max_batch} if max_batch else {}
    made = Plan(sizes=parse_sizes(sizes), timeout_s=timeout, batching=batching, **plan)
    parse_arrivals(made.arrivals)
    parse_targets(made.target)
    return made
