"""The simulations that ``deploy/CAPACITY.md`` shows: latency by load, and a fleet of which one dies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from alexnet_server.capacity.costs import Host
from alexnet_server.capacity.fleet import Failure, Fleet, Outcome, Server
from alexnet_server.capacity.plan import REQUESTS
from alexnet_server.capacity.simulate import poisson_s, simulate

SHARES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
"""Of the capacity, that come as images."""
REQUESTS_EACH = 10_000
"""Of a simulation: p99 is what 100 of them exceed."""
REPLICAS, CLIENTS = 4, 8
"""Of the fleets that are shown. Eight processes that know only their own requests choose worse than one that knows all."""
DETECTION_S = 0.5
DEAD_S = 5.0


def offered(fleet: Fleet, share: float, images_per_request: int = 1, *, requests: int = REQUESTS_EACH) -> Outcome:
    """A share of the fleet's capacity comes as Poisson arrivals."""
    rate = share * fleet.replicas * fleet.server.capacity / images_per_request
    return simulate(fleet, poisson_s(rate, requests), images_per_request)


@lru_cache
def p99_by_share(server: Server, images_per_request: int) -> dict[float, float]:
    """p99 in seconds by the share of the capacity that comes, for planning.

    Of one replica: thousands of clients that know only their own requests choose by chance, and a Poisson stream split by
    chance is many. Fewer clients choose better than this.
    """
    return {share: offered(Fleet(server), share, images_per_request).percentile_s(99) for share in SHARES}


def for_planning(host: Host, *, files: bool) -> dict[int, dict[float, float]]:
    """p99 by share for each size of request that plans try."""
    server = host.server_files if files else host.server
    return {size: p99_by_share(server, size) for size in REQUESTS}


def fleets(server: Server) -> dict[str, Fleet]:
    """Those whose latencies are shown beside each other."""
    four = Fleet(server, replicas=REPLICAS)
    return {
        "1 replica": Fleet(server),
        f"{REPLICAS} replicas, two choices, 1 client": four,
        f"{REPLICAS} replicas, two choices, {CLIENTS} clients": replace(four, clients=CLIENTS),
        f"{REPLICAS} replicas, round robin, {CLIENTS} clients": replace(four, clients=CLIENTS, choice="round robin"),
    }


@dataclass(frozen=True)
class Loss:
    """A run in which one replica was dead for ``DEAD_S``."""

    replicas: int
    share: float
    queue_requests: int | None
    outcome: Outcome


def losses(server: Server) -> list[Loss]:
    """One replica dies, noticed after ``DETECTION_S``, and is back after ``DEAD_S``; fleets of several sizes and loads."""
    found = []
    for replicas, share, bound in ((4, 0.5, None), (4, 0.7, None), (4, 0.9, None), (4, 0.9, 64), (1, 0.5, None)):
        bounded = replace(server, queue_requests=bound)
        dead = Failure(0, 3.0, 3.0 + DEAD_S)
        fleet = Fleet(bounded, replicas=replicas, clients=CLIENTS, detection_s=DETECTION_S, failures=(dead,))
        requests = int(3 * DEAD_S * share * replicas * server.capacity)
        found.append(Loss(replicas, share, bound, offered(fleet, share, requests=requests)))
    return found
