"""What held a run back, in words: the client, the network, the queue, the computing, or nothing. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from alexnet_load.run import OK, ClientSide, ServerSide
from alexnet_load.summary import Summary

BUSY = 0.85
"""An instance that works more than this share of the time has a queue many times as long as its work (M/M/1: 0.85 / 0.15)."""
LARGE = 0.4
"""A phase that takes this share of an image's time holds it back."""

WAITING = {
    "server queue": (
        "queue",
        "though its instances were not busy: look at the queue delay, the rate limiter, or add instances",
    ),
    "client queue": (
        "client",
        "before it left: the client allows too few requests in flight, or waits for others",
    ),
    "network and front end": (
        "network",
        "between client and queue: copies, the network, or a front end without a processor",
    ),
}
"""Phases in which nothing is worked on: the limit that each stands for, and what it means."""
REFUSED = ("bad_input", "server_fault")
"""Attempts that a server answered with an error."""


@dataclass(frozen=True)
class Verdict:
    """What the limit was: "client", "network", "queue", "compute", "nothing", or "unknown" where nobody could look.

    Attributes:
        bound: one of these.
        because: why, one or two sentences.
        facts: the figures behind it.
    """

    bound: str
    because: str
    facts: tuple[str, ...]


def phases_s(client: ClientSide, server: ServerSide | None) -> dict[str, float]:
    """Where the mean image's time went, seconds by phase, in order; server's phases only if it was asked."""
    images = max(1, client.images)
    found = {"client queue": client.queued_s / images, "encode": client.encoded_s / images}
    served_s = client.served_s / images
    if server is None or not server.success:
        found["network and server"] = served_s
    else:
        within = {
            "server queue": server.queue_s / server.success,
            "input": server.input_s / server.success,
            "infer": server.infer_s / server.success,
            "output": server.output_s / server.success,
        }
        found["network and front end"] = max(0.0, served_s - sum(within.values()))
        found |= within
    found["decode"] = client.decoded_s / images
    return found


def judge(summary: Summary, client: ClientSide | None, server: ServerSide | None) -> Verdict:
    """Say what held a run back.

    Args:
        summary: its figures.
        client: what the senders counted; None if the run was cut off.
        server: what the servers counted; None if nobody could ask them.
    """
    if client is None:
        return Verdict("unknown", "The run was cut off before its counts were written.", ())
    found = _limit(summary, client, server)
    return Verdict(*found, tuple(_facts(client, server)))


def _limit(summary: Summary, client: ClientSide, server: ServerSide | None) -> tuple[str, str]:
    """The limit and why."""
    if summary.sender_limited:
        return "client", f"The sender was the limit: {summary.sender_limited}."
    if not client.images:
        return "unknown", "No request was answered, so there is no time to divide."
    busy = None if server is None or not server.busy_s else utilisation(server)
    if busy is not None and busy >= BUSY:
        worked = f"The model's instances worked {busy:.0%} of the time: this is what they can do."
        return "compute", f"{worked} What waits before them waits for that."
    if (found := _largest(phases_s(client, server))) is not None:
        return found
    if server is None:
        return "unknown", "Nothing in the client held it back; what happened in the server is not known."
    working = "" if busy is None else f": the instances worked {busy:.0%} of the time"
    return "nothing", f"The load is below what client and server can do{working}."


def _largest(phases: dict[str, float]) -> tuple[str, str] | None:
    """The limit and why, if one phase of waiting takes the largest share, and a large one."""
    name = max(phases, key=lambda each: phases[each])
    share = phases[name] / (sum(phases.values()) or 1e-9)
    if name not in WAITING or share < LARGE:
        return None
    bound, because = WAITING[name]
    return bound, f"An image spent {share:.0%} of its time in the {name}, {because}."


def utilisation(server: ServerSide) -> float:
    """Share of the time that the model's instances worked."""
    return server.busy_s / max(1e-9, server.wall_s * server.instances)


def _facts(client: ClientSide, server: ServerSide | None) -> Iterator[str]:
    if client.cpu_s and client.wall_s:
        yield f"the busiest sender's process worked {max(client.cpu_s) / client.wall_s:.0%} of the time"
    if client.batches:
        requests = sum(client.batches.values())
        yield f"{client.images / requests:.1f} images in the client's mean request"
    if server is None:
        return
    if server.busy_s:
        yield f"the instances ({server.instances}) worked {utilisation(server):.0%} of the time"
    if server.executions:
        yield f"{server.inferences / server.executions:.1f} images in the mean execution"
    if server.wall_s:
        # Little, "A proof for the queuing formula L = lambda W", 1961: time spent in a place over time passed
        yield (
            f"{server.request_s / server.wall_s:.2f} requests in the server on average, {server.queue_s / server.wall_s:.2f} "
            "of them in its queue (Little's law)"
        )
    yield agreement(client, server)


def agreement(client: ClientSide, server: ServerSide) -> str:
    """Whether both sides counted the same.

    Triton 2.51 counts a request that a Python-based backend answers with an error as a success, and one that fails within an
    ensemble as two failures.
    """
    ok = client.attempts.get(OK, 0)
    refused = sum(client.attempts.get(name, 0) for name in REFUSED)
    if (server.success, server.inferences) == (ok, client.images):
        return f"client and server agree: {ok:,} requests answered, {client.images:,} images"
    if refused and server.success == ok + refused:
        return (
            f"client and server agree: {ok:,} requests answered, {refused:,} answered with an error, which Triton counts as a "
            "success where a Python-based backend says so"
        )
    pairs = {"answered requests": (ok, server.success), "images": (client.images, server.inferences)}
    differing = [f"{name}: {ours:,} here, {theirs:,} there" for name, (ours, theirs) in pairs.items() if ours != theirs]
    return f"client and server differ ({'; '.join(differing)}); others may use the model, or calls were given up"
