"""The options that commands share, and the plan they make."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import partial
from typing import Annotated, Any

import typer

from alexnet_client.client import DEFAULT_TARGET
from alexnet_client.errors import BadInput
from alexnet_load.arrivals import parse_sizes
from alexnet_load.run import Plan

ARRIVALS = "when requests come: constant:RATE, poisson:RATE, ramp:FROM-TO, steps:R1,R2, burst:SIZE/PERIOD or trace:FILE"
RATE = 50.0
"""Requests a second if nobody says: less than any machine serves that this project was tried on."""
NO_BATCHING = {"max_batch": 1, "min_in_flight": 256, "max_in_flight": 256}
"""For clients that stand for many separate ones: every request is sent as it is, at once."""

Target = Annotated[str, typer.Option("--target", "-t", help="host:port of a server's gRPC endpoint, or several")]
Model = Annotated[str, typer.Option("--model", "-m", help="name of the model on the server")]
Duration = Annotated[float, typer.Option("--duration", "-d", help="how long requests are sent, seconds")]
WarmUp = Annotated[float, typer.Option(help="the first part of it, which no figure counts, seconds")]
Sizes = Annotated[str, typer.Option(help="images in a request: 4, or a mix such as 1:0.8,8:0.2")]
Images = Annotated[str, typer.Option(help="a directory of images to send, or: generated")]
Senders = Annotated[int, typer.Option("--senders", min=1, max=64, help="processes that send")]
Timeout = Annotated[float, typer.Option(help="deadline of a request, seconds")]
Seed = Annotated[int, typer.Option(min=0, help="of arrivals, sizes and generated images")]
Batch = Annotated[int, typer.Option(min=0, help="most images the client puts in a request; 0: its default")]
Delay = Annotated[
    float, typer.Option(help="longest an image waits for others in the client, ms; negative: its default")
]
Alone = Annotated[
    bool, typer.Option("--no-batching", help="no batching in the client: each request goes as it is, at once")
]
MetricsPort = Annotated[
    int,
    typer.Option(
        "--metrics-port",
        min=0,
        max=65_000,
        help="show the client's metrics to Prometheus there, such as 8003 (each sender on a port of its own); 0: nowhere",
    ),
]
MetricsAddress = Annotated[str, typer.Option(help="to show the client's metrics on; anybody who reaches it may read")]
Tls = Annotated[str, typer.Option(help="mutual TLS with the files ca.crt, tls.crt and tls.key of this directory")]
TlsName = Annotated[str, typer.Option(help="the name in the server's certificate, if it is not the address's")]
Metrics = Annotated[str, typer.Option(help="host:port of Triton's metrics, where its statistics are closed to you")]
Json = Annotated[bool, typer.Option("--json", help="print the JSON line only")]


MakePlan = Callable[..., Plan]
"""Makes a command's plan of what differs between commands: ``arrivals``, ``duration_s``, ``warm_up_s``, ``max_count``."""


def with_plan(*, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that every plan has, but for some; it is called with ``make``, a ``MakePlan``, instead."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [each for each in _parameters(command) if each.name != "make"]
        shared = _parameters(_every_plan)
        shown = [*own, *(each for each in shared if each.name not in without)]

        def call(**given: Any) -> None:
            chosen = {each.name: given.pop(each.name, each.default) for each in shared}
            command(make=partial(_make_plan, **chosen), **given)

        call.__name__, call.__doc__ = command.__name__, command.__doc__
        call.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # typer reads it
        call.__annotations__ = {each.name: each.annotation for each in shown}
        return call

    return decorate


def _parameters(function: Callable[..., None]) -> list[inspect.Parameter]:
    found = inspect.signature(function, eval_str=True).parameters.values()
    return [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in found]


def _every_plan(
    target: Target = DEFAULT_TARGET,
    model: Model = "alexnet",
    sizes: Sizes = "1",
    images: Images = "generated",
    senders: Senders = 1,
    timeout: Timeout = 10.0,
    seed: Seed = 0,
    batch: Batch = 0,
    delay_ms: Delay = -1.0,
    no_batching: Alone = False,
    metrics_port: MetricsPort = 0,
    metrics_address: MetricsAddress = "127.0.0.1",
    tls: Tls = "",
    tls_name: TlsName = "",
) -> None:
    """The options of every plan."""


def _make_plan(*, sizes: str, timeout: float, batch: int, delay_ms: float, no_batching: bool, **plan: Any) -> Plan:
    """A checked plan; raises ``BadInput``."""
    if not 0 <= plan["warm_up_s"] < plan["duration_s"]:
        raise BadInput(f"the warm-up, {plan['warm_up_s']:g} s, must end before the run, {plan['duration_s']:g} s, does")
    batching: dict[str, Any] = dict(NO_BATCHING) if no_batching else {}
    if batch and no_batching:
        raise BadInput("--batch and --no-batching exclude each other; leave one out")
    if batch:
        batching["max_batch"] = batch
    if delay_ms >= 0:
        batching["max_delay_s"] = delay_ms / 1000
    return Plan(sizes=parse_sizes(sizes), timeout_s=timeout, batching=batching, **plan)
