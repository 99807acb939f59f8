"""From a demand to a fleet: replicas, spares, client processes, network, money, and what is fullest. Pure arithmetic.

Knows neither files nor simulations: it is given the simulated tail latency by load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from alexnet_server.capacity.costs import Host, Inputs
from alexnet_server.capacity.fleet import Server

REQUESTS = (1, 8, 32)
"""Images in a request that are tried; the cheapest fleet is taken."""


@dataclass(frozen=True)
class Demand:
    """Images a second, and whether they come as image files (which the server decodes) or as ready pixels."""

    images_s: float
    files: bool = False


@dataclass(frozen=True)
class Part:
    """Something that can be full.

    Attributes:
        name: for people.
        full_s: images a second that one of it can take.
        limit: share of that which it shall have at most.
        count: how many share the demand.
        images_s: the demand.
    """

    name: str
    full_s: float
    limit: float
    count: int
    images_s: float

    @property
    def utilisation(self) -> float:
        """Share of what it can take."""
        return self.images_s / self.count / self.full_s

    @property
    def of_limit(self) -> float:
        """Share of what it shall take: the part with the largest breaks first."""
        return self.utilisation / self.limit


@dataclass(frozen=True)
class Plan:
    """A fleet.

    Attributes:
        replicas: that must be up.
        spares: beyond those.
        processes: of clients, one core each.
        images_per_request: that the clients put together.
        mean_batch: images in an execution.
        parts: what can be full, in one replica and in one client process.
        network_bytes_s: both ways, of all.
        servers_per_hour, clients_per_hour, network_per_hour: money.
    """

    replicas: int
    spares: int
    processes: int
    images_per_request: int
    mean_batch: float
    parts: tuple[Part, ...]
    network_bytes_s: float
    servers_per_hour: float
    clients_per_hour: float
    network_per_hour: float

    @property
    def first(self) -> tuple[Part, ...]:
        """What breaks first when the demand grows and the fleet does not: the fullest, and what is as full within 5 %."""
        fullest = max(each.of_limit for each in self.parts)
        return tuple(each for each in self.parts if each.of_limit >= 0.95 * fullest)

    @property
    def per_hour(self) -> float:
        """All the money."""
        return self.servers_per_hour + self.clients_per_hour + self.network_per_hour


def mean_batch(server: Server, images_s: float, images_per_request: int = 1) -> float:
    """Images in an execution of one instance when Poisson arrivals bring so many images a second.

    An execution takes what came during the last one, or the next request if nothing came: with a time of D for each it is
    ``rate * D + exp(-rate * D)`` requests on average, exactly (M/D[inf]/1). Here D grows with the batch, so that this is
    solved for its mean; the spread of D is left out, and the simulation has it.
    """
    rate = images_s / images_per_request / server.instances
    most = server.max_batch // images_per_request
    requests = 1.0
    for _ in range(1000):
        due = rate * server.batch_s(requests * images_per_request)
        last, requests = requests, min(float(most), due + math.exp(-due))
        if abs(requests - last) < 1e-9:
            break
    return requests * images_per_request


def share_of_capacity(p99_s: Mapping[float, float], objective_s: float, most: float) -> float | None:
    """The largest simulated load that keeps the objective, as does every smaller one; None if the smallest does not.

    Args:
        p99_s: by the share of the capacity that comes.
        objective_s: of p99.
        most: the share shall not be larger, whatever p99 is.
    """
    best = None
    for share in sorted(p99_s):
        if p99_s[share] > objective_s:
            break
        best = share
    return None if best is None else min(best, most)


def spares(replicas: int, down_share: float, short: float) -> int:
    """The fewest spares, at least one, with which more are down than spare for a share ``short`` of the time at most.

    Replicas are down independently of each other, each for ``down_share`` of the time (binomial): whole zones are another
    matter. For a few replicas this is N+1.
    """
    extra = 1
    while _more_down(replicas + extra, extra, down_share) > short:
        extra += 1
    return extra


def _more_down(replicas: int, most: int, share: float) -> float:
    term = (1 - share) ** replicas
    within = term
    for down in range(1, most + 1):
        term *= (replicas - down + 1) / down * share / (1 - share)
        within += term
    return 1 - within


def plan(
    demand: Demand, host: Host, inputs: Inputs, *, images_per_request: int, p99_s: Mapping[float, float]
) -> Plan | None:
    """The smallest fleet with requests of one size; None where no fleet keeps the objective.

    Args:
        demand: what comes.
        host: the kind of server.
        inputs: costs of a client, limits, prices.
        images_per_request: that the clients put together. The first of them waits until the last one comes, which counts
            as latency.
        p99_s: simulated for such requests, by the share of the server's capacity that comes.
    """
    server = host.server_files if demand.files else host.server
    image_bytes = inputs["file_bytes"] if demand.files else inputs["image_bytes"]
    client_s = inputs.client.at(images_per_request, image_bytes)
    busy = inputs["most_busy"]
    processes = math.ceil(demand.images_s * client_s / busy)
    forming_s = (images_per_request - 1) * processes / demand.images_s
    objective_s = 1e-3 * inputs["objective_p99_ms"] - forming_s
    share = share_of_capacity(p99_s, objective_s, inputs["most_of_capacity"])
    if share is None:
        return None
    messages_s = host.messages.at(images_per_request, image_bytes)
    decode_s = host.decode_s if demand.files else 0.0
    work = "decoding" if decode_s > messages_s else "messages"
    limits = {
        "batches": (server.capacity, share),
        f"cores ({work})": (host.cores / (messages_s + decode_s), busy),
        "network": (host.network_bytes_s / image_bytes, busy),
        "PCIe": (host.link_bytes_s / inputs["image_bytes"], busy),
    }
    replicas = max(math.ceil(demand.images_s / (full_s * limit)) for full_s, limit in limits.values())
    parts = [Part(name, *limit, replicas, demand.images_s) for name, limit in limits.items() if math.isfinite(limit[0])]
    extra = spares(replicas, inputs["down_share"], inputs["short_of_spares"])
    network_bytes_s = demand.images_s * (image_bytes + inputs["answer_bytes"])
    return Plan(
        replicas=replicas,
        spares=extra,
        processes=processes,
        images_per_request=images_per_request,
        mean_batch=mean_batch(server, demand.images_s / replicas, images_per_request),
        parts=(Part("client", 1 / client_s, busy, processes, demand.images_s), *parts),
        network_bytes_s=network_bytes_s,
        servers_per_hour=(replicas + extra) * host.price_per_hour,
        clients_per_hour=processes * inputs["client_process_per_hour"],
        network_per_hour=3600e-9 * network_bytes_s * inputs["network_per_gb"],
    )


def cheapest(demand: Demand, host: Host, inputs: Inputs, curves: Mapping[int, Mapping[float, float]]) -> Plan | None:
    """The cheapest plan among the sizes of requests in ``curves`` (p99 by load for each); None where none will do."""
    found = (plan(demand, host, inputs, images_per_request=size, p99_s=each) for size, each in curves.items())
    return min((each for each in found if each is not None), key=lambda each: each.per_hour, default=None)
