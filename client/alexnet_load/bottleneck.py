"""Find the bottleneck of a run: client, network, queue, compute, or none. Uses only statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from alexnet_load.run import OK, ClientStatistics, ServerStatistics
from alexnet_load.summary import Summary

BUSY = 0.85
"""Utilisation from which the queue of an instance is much longer than its work (M/M/1: 0.85 / 0.15 requests wait)."""
LARGE_SHARE = 0.4
"""A waiting phase with at least this share of an image's time is the bottleneck."""
WAITING = {
    "server queue": (
        "queue",
        "although the instances are not busy: check the queue delay and the rate limiter, or add instances",
    ),
    "client queue": ("client", "because the client allows too few requests in flight, or waits to fill batches"),
    "network and front end": (
        "network",
        "between the client and the server queue: network, copies, or too little CPU time for the server",
    ),
}
"""Phases without computation: the bottleneck they indicate, and its cause."""
SERVER_ERRORS = ("bad_input", "server_fault")
"""Outcomes of attempts that the server answered with an error."""


@dataclass(frozen=True)
class Bottleneck:
    """The bottleneck of a run.

    Attributes:
        name: "client", "network", "queue", "compute", "none", or "unknown" without statistics.
        reason: one or two sentences.
        facts: the numbers behind it.
    """

    name: str
    reason: str
    facts: tuple[str, ...]


def phases_s(client: ClientStatistics, server: ServerStatistics | None) -> dict[str, float]:
    """Return the mean time of an image by phase, seconds, in order; the server's phases only if its statistics exist."""
    images = max(1, client.images)
    phases = {"client queue": client.queued_s / images, "encode": client.encoded_s / images}
    served_s = client.served_s / images
    if server is None or not server.success:
        phases["network and server"] = served_s
    else:
        within = {
            "server queue": server.queue_s / server.success,
            "input": server.input_s / server.success,
            "infer": server.infer_s / server.success,
            "output": server.output_s / server.success,
        }
        phases["network and front end"] = max(0.0, served_s - sum(within.values()))
        phases |= within
    phases["decode"] = client.decoded_s / images
    return phases


def find_bottleneck(summary: Summary, client: ClientStatistics | None, server: ServerStatistics | None) -> Bottleneck:
    """Find the bottleneck of a run; ``client`` and ``server`` are those of ``Run``."""
    if client is None:
        return Bottleneck("unknown", "The run file is incomplete: it contains no statistics.", ())
    name, reason = _name_and_reason(summary, client, server)
    return Bottleneck(name, reason, tuple(_facts(client, server)))


def _name_and_reason(summary: Summary, client: ClientStatistics, server: ServerStatistics | None) -> tuple[str, str]:
    if summary.generator_limited:
        return "client", f"The load generator was the bottleneck: {summary.generator_limited}."
    if not client.images:
        return "unknown", "No request was answered."
    busy = None if server is None or not server.busy_s else utilisation(server)
    if busy is not None and busy >= BUSY:
        return "compute", f"The model instances were busy {busy:.0%} of the time."
    phases = phases_s(client, server)
    longest = max(phases, key=lambda each: phases[each])
    share = phases[longest] / (sum(phases.values()) or 1e-9)
    if longest in WAITING and share >= LARGE_SHARE:
        name, cause = WAITING[longest]
        return name, f"An image spent {share:.0%} of its time in the phase {longest!r}, {cause}."
    if server is None:
        return "unknown", "The client is not the bottleneck; the server statistics are missing."
    detail = "" if busy is None else f": the instances were busy {busy:.0%} of the time"
    return "none", f"The load is below the limits of client and server{detail}."


def utilisation(server: ServerStatistics) -> float:
    """Return the share of the time in which the model instances were busy."""
    return server.busy_s / max(1e-9, server.wall_s * server.instances)


def _facts(client: ClientStatistics, server: ServerStatistics | None) -> Iterator[str]:
    if client.cpu_s and client.wall_s:
        yield f"CPU utilisation of the busiest sender: {max(client.cpu_s) / client.wall_s:.0%}"
    if client.batches:
        yield f"mean batch size of the client: {client.images / sum(client.batches.values()):.1f} images"
    if server is None:
        return
    if server.busy_s:
        yield f"utilisation of the model instances ({server.instances}): {utilisation(server):.0%}"
    if server.executions:
        yield f"mean batch size of the server: {server.inferences / server.executions:.1f} images"
    if server.wall_s:
        # Little, "A proof for the queuing formula L = lambda W", 1961: total time in a place divided by elapsed time
        yield (
            f"mean number of requests in the server: {server.request_s / server.wall_s:.2f}, in its queue: "
            f"{server.queue_s / server.wall_s:.2f} (Little's law)"
        )
    yield compare_counts(client, server)


def compare_counts(client: ClientStatistics, server: ServerStatistics) -> str:
    """Describe whether client and server counted the same requests and images.

    Triton 2.51 counts a request as successful if a Python-based backend answers it with an error, and counts one that fails
    within an ensemble as two failures.
    """
    ok = client.attempts.get(OK, 0)
    errors = sum(client.attempts.get(name, 0) for name in SERVER_ERRORS)
    if (server.success, server.inferences) == (ok, client.images):
        return f"client and server counts agree: {ok:,} requests answered, {client.images:,} images"
    if errors and server.success == ok + errors:
        return (
            f"client and server counts agree: {ok:,} requests answered, {errors:,} answered with an error, which Triton "
            "counts as successful if a Python-based backend returns it"
        )
    pairs = {"answered requests": (ok, server.success), "images": (client.images, server.inferences)}
    differences = [
        f"{name}: client {ours:,}, server {theirs:,}" for name, (ours, theirs) in pairs.items() if ours != theirs
    ]
    return f"client and server counts differ ({'; '.join(differences)}), because of other clients or cancelled requests"
