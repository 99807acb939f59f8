"""A fleet of Tritons on paper: requests come, batches form, replicas are chosen, fail and come back.

Owns the events and their order. Pure and seeded: it knows no clock and no server, and nothing of money.

The batching rule is Triton's as ``config.pbtxt`` uses it (``dynamic_batching`` without delay, preferred sizes or queue
policy): when an instance becomes free it takes what is queued, first come first served, until the next request would make
the batch larger than ``max_batch``. What Triton prepares ahead for a busy instance still grows until it starts, so it is
the same batch (``BatcherThread`` in Triton core's ``dynamic_batch_scheduler.cc``).
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet_server.capacity.fleet import Fleet, Floats, Outcome

Ints = NDArray[np.int64]


def poisson_s(rate: float, requests: int, *, seed: int = 0) -> Floats:
    """When requests of independent callers come: float [requests], seconds from 0; ``rate`` a second on average."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, requests))


def simulate(fleet: Fleet, arrivals_s: Floats, images: int | Ints = 1, *, seed: int = 0) -> Outcome:
    """Send requests through a fleet until all are answered or rejected.

    Args:
        fleet: who answers.
        arrivals_s: float [requests], ascending, from 0 on.
        images: in each request: one number, or int [requests].
        seed: of the dice for noise, clients and replicas.

    Raises:
        ValueError: the arrivals do not ascend, or a request is larger than a batch may be.
    """
    sizes = np.broadcast_to(np.asarray(images, np.int64), arrivals_s.shape)
    if len(arrivals_s) and (arrivals_s[0] < 0 or (np.diff(arrivals_s) < 0).any()):
        raise ValueError("arrivals ascend from 0 on")
    if len(sizes) and not 1 <= sizes.min() <= sizes.max() <= fleet.server.max_batch:
        raise ValueError(f"a request has 1 to {fleet.server.max_batch} images")
    return _Run(fleet, arrivals_s.tolist(), sizes.tolist(), seed).run()


@dataclass(eq=False)
class _Replica:
    free: int
    outstanding: list[int]  # by client
    alive: bool = True
    queue: deque[int] = field(default_factory=deque)
    running: dict[int, tuple[list[int], float]] = field(default_factory=dict)
    owed: list[int] = field(default_factory=list)  # by a dead one, until somebody notices


class _Run:
    def __init__(self, fleet: Fleet, arrivals_s: list[float], images: list[int], seed: int) -> None:
        self._fleet, self._server = fleet, fleet.server
        self._arrivals_s, self._images = arrivals_s, images
        self._chance = random.Random(seed).random  # noqa: S311  # dice, not a secret
        self._replicas = [_Replica(self._server.instances, [0] * fleet.clients) for _ in range(fleet.replicas)]
        self._usable = list(self._replicas)
        self._turns = [0] * fleet.clients
        self._client = [int(self._chance() * fleet.clients) for _ in arrivals_s]
        self._latencies_s = np.full(len(arrivals_s), np.nan)
        self._retried = self._executions = self._ran = 0
        self._busy_s = 0.0
        self._numbers = count()
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        for each in fleet.failures:
            replica = self._replicas[each.replica]
            self._at(each.at_s, self._die, replica)
            self._at(each.at_s + fleet.detection_s, self._notice, replica)
            self._at(each.back_s, self._come_back, replica)

    def run(self) -> Outcome:
        position, now_s, last = 0, 0.0, len(self._arrivals_s)
        while position < last or self._events:
            if position < last and not (self._events and self._events[0][0] < self._arrivals_s[position]):
                now_s = self._arrivals_s[position]
                self._send(now_s, position)
                position += 1
            else:
                now_s, _, act, arguments = heapq.heappop(self._events)
                act(now_s, *arguments)
        available_s = now_s * self._fleet.replicas * self._server.instances
        busy = self._busy_s / available_s if available_s else 0.0
        return Outcome(self._latencies_s, self._retried, self._executions, self._ran, busy)

    def _at(self, when_s: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when_s, next(self._numbers), act, arguments))

    def _choose(self, client: int) -> _Replica:
        usable = self._usable
        if self._fleet.choice == "round robin":
            self._turns[client] += 1
            return usable[self._turns[client] % len(usable)]
        if len(usable) == 1:
            return usable[0]
        first = int(self._chance() * len(usable))
        second = int(self._chance() * (len(usable) - 1))
        one, other = usable[first], usable[second + (second >= first)]
        return other if other.outstanding[client] < one.outstanding[client] else one

    def _send(self, now_s: float, request: int) -> None:
        if not self._usable:
            return
        client = self._client[request]
        replica = self._choose(client)
        bound = self._server.queue_requests
        if replica.alive and bound is not None and len(replica.queue) >= bound:
            return
        replica.outstanding[client] += 1
        if not replica.alive:
            replica.owed.append(request)
            return
        replica.queue.append(request)
        if replica.free:
            self._start(now_s, replica)

    def _start(self, now_s: float, replica: _Replica) -> None:
        batch, images, queue = [], 0, replica.queue
        while queue and images + self._images[queue[0]] <= self._server.max_batch:
            images += self._images[queue[0]]
            batch.append(queue.popleft())
        noise = self._server.noise
        took_s = self._server.batch_s(images) * (
            noise[int(self._chance() * len(noise))] if len(noise) > 1 else noise[0]
        )
        replica.free -= 1
        number = next(self._numbers)
        replica.running[number] = batch, now_s
        self._at(now_s + took_s, self._finish, replica, number, images)

    def _finish(self, now_s: float, replica: _Replica, number: int, images: int) -> None:
        if number not in replica.running:
            return  # the replica died over it
        batch, began_s = replica.running.pop(number)
        self._busy_s += now_s - began_s
        self._executions += 1
        self._ran += images
        replica.free += 1
        for request in batch:
            replica.outstanding[self._client[request]] -= 1
            self._latencies_s[request] = now_s - self._arrivals_s[request] + self._server.outside_s
        if replica.queue:
            self._start(now_s, replica)

    def _die(self, now_s: float, replica: _Replica) -> None:
        replica.alive = False
        for batch, began_s in replica.running.values():
            self._busy_s += now_s - began_s
            replica.owed += batch
        replica.owed += replica.queue
        replica.running.clear()
        replica.queue.clear()
        replica.free = self._server.instances

    def _notice(self, now_s: float, replica: _Replica) -> None:
        self._usable.remove(replica)
        owed, replica.owed = replica.owed, []
        self._retried += len(owed)
        for request in owed:
            replica.outstanding[self._client[request]] -= 1
            self._send(now_s, request)

    def _come_back(self, now_s: float, replica: _Replica) -> None:  # noqa: ARG002  # an event like the others
        replica.alive = True
        self._usable.append(replica)
