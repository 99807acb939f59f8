"""The options that commands share, and the plan they make."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from alexnet_client.errors import BadInput
from alexnet_load.arrivals import parse_sizes
from alexnet_load.run import Plan

ARRIVALS = "when requests come: constant:RATE, poisson:RATE, ramp:FROM-TO, steps:R1,R2, burst:SIZE/PERIOD or trace:FILE"
RATE = 50.0
"""Requests a second if nobody says: less than any machine serves that this project was tried on."""
EACH_ALONE = {"max_batch": 1, "least_in_flight": 256, "most_in_flight": 256}
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
    bool, typer.Option("--each-alone", help="no batching in the client: each request goes as it is, at once")
]
Metrics = Annotated[str, typer.Option(help="host:port of Triton's metrics, where its statistics are closed to you")]
Json = Annotated[bool, typer.Option("--json", help="print the JSON line only")]


def make_plan(*, sizes: str, batch: int, delay_ms: float, each_alone: bool, **plan: Any) -> Plan:
    """A checked plan.

    Raises:
        BadInput: something in it makes no sense.
    """
    if not 0 <= plan["warm_up_s"] < plan["duration_s"]:
        raise BadInput(f"the warm-up, {plan['warm_up_s']:g} s, must end before the run, {plan['duration_s']:g} s, does")
    batching: dict[str, Any] = dict(EACH_ALONE) if each_alone else {}
    if batch and each_alone:
        raise BadInput("--batch and --each-alone exclude each other; leave one out")
    if batch:
        batching["max_batch"] = batch
    if delay_ms >= 0:
        batching["max_delay_s"] = delay_ms / 1000
    return Plan(sizes=parse_sizes(sizes), batching=batching, **plan)
