"""Which replica gets a request, and which replicas are ejected. Performs no I/O; the clock and the random generator are arguments.

The less busy of two random replicas gets the request. This is nearly as balanced as comparing all of them, and clients that decide
at the same time do not all choose the same replica. Source: Mitzenmacher, "The power of two choices in randomized load
balancing", 2001. If both are equally busy, the one that was used less recently gets it, so a low load is balanced too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from alexnet_client.concurrency import ConcurrencyLimit, ConcurrencyRange
from alexnet_client.errors import ClientError, DeadlineExceeded, Overloaded, ServerFault, Unavailable

MAX_CONSECUTIVE_FAULTS = 3
"""This many server faults in a row eject a replica; a single "unavailable" does."""
MAX_SILENCE_S = 1.0
"""A timeout or cancellation ejects a replica that sent no response for this time, seconds, and for twice its slowest recent
latency, while requests were outstanding. A shorter time may only mean that the caller has a short timeout."""
SLOWEST_DECAY = 0.99
"""Factor applied to the slowest latency after each response."""
MIN_EJECTION_S, MAX_EJECTION_S = 0.5, 4.0
"""Time from ejection to the first probe, seconds; it doubles with each failed probe."""


@dataclass(eq=False)
class Replica:
    """A server and its state.

    Attributes:
        address: host:port.
        limit: concurrency limit.
        outstanding: requests without a response.
        last_used: sequence number of the latest request to it.
        faults: consecutive server faults.
        silent_since_s: start of the time without a response while requests are outstanding; None if there are none.
        silent_s: length of that time when the last request ended without a response, seconds; idle time does not count.
        slowest_s: slowest recent latency, seconds.
        ejection_s: duration of the next ejection, seconds.
        probe_at_s: time of the next probe if it is ejected; None if it is healthy.
        last_error: its latest error.
    """

    address: str
    limit: ConcurrencyLimit
    outstanding: int = 0
    last_used: int = 0
    faults: int = 0
    silent_since_s: float | None = None
    silent_s: float = 0.0
    slowest_s: float = 0.0
    ejection_s: float = MIN_EJECTION_S
    probe_at_s: float | None = None
    last_error: ClientError | None = field(default=None, repr=False)

    @property
    def healthy(self) -> bool:
        """Whether it gets requests."""
        return self.probe_at_s is None


class ReplicaSet:
    """The replicas, healthy and ejected.

    Args:
        addresses: host:port of each replica.
        bounds: of the concurrency limit per replica.
        clock: returns seconds.
        on_ejected: called when a replica is ejected.
        min_ejection_s: time from ejection to the first probe, seconds.

    Attributes:
        on_change: called when the concurrency limit may have changed: a replica was ejected, reinstated, added or removed.
    """

    def __init__(
        self,
        addresses: Iterable[str],
        *,
        bounds: ConcurrencyRange,
        clock: Callable[[], float],
        rng: random.Random,
        on_ejected: Callable[[Replica], None] = lambda replica: None,
        min_ejection_s: float = MIN_EJECTION_S,
    ) -> None:
        self._bounds, self._clock, self._rng = bounds, clock, rng
        self._on_ejected, self._min_ejection_s = on_ejected, min_ejection_s
        self.on_change: Callable[[], None] = lambda: None
        self._replicas: dict[str, Replica] = {}
        self._removed: list[Replica] = []
        self._requests = 0
        self.update(addresses)

    @property
    def all(self) -> list[Replica]:
        """All replicas, healthy and ejected."""
        return list(self._replicas.values())

    @property
    def healthy(self) -> list[Replica]:
        """The replicas that get requests."""
        return [each for each in self._replicas.values() if each.healthy]

    @property
    def concurrency_limit(self) -> int:
        """Requests that may be in flight at all replicas together; at least one.

        Requests that are outstanding at ejected or removed replicas do not count against the others.
        """
        stuck = sum(each.outstanding for each in (*self._replicas.values(), *self._removed) if not each.healthy)
        return max(1, sum(each.limit.value for each in self.healthy)) + stuck

    def update(self, addresses: Iterable[str]) -> list[Replica]:
        """Replace the addresses; replicas that stay keep their state. Returns the removed replicas."""
        before = self._replicas
        self._replicas = {each: before.get(each) or self._new(each) for each in addresses}
        removed = [each for address, each in before.items() if address not in self._replicas]
        for each in removed:
            each.probe_at_s = math.inf
        self._removed = [each for each in (*self._removed, *removed) if each.outstanding]
        self.on_change()
        return removed

    def choose(self, *, without: Collection[Replica] = (), prefer: str = "") -> Replica:
        """Choose the replica for the next request.

        If all are ejected, one that failed fast gets the request: it may work again before its next probe, and if not, the
        error costs the caller no time.

        Args:
            without: replicas to avoid if there are others.
            prefer: address of the replica to choose if it is healthy.

        Raises:
            Unavailable: all replicas are ejected because of timeouts; the message contains the latest error of each.
        """
        fast = [each for each in self._replicas.values() if not isinstance(each.last_error, DeadlineExceeded)]
        usable = self.healthy or fast
        if not usable:
            raise Unavailable(self.describe_errors())
        usable = [each for each in usable if each not in without] or usable
        usable = [each for each in usable if each.address == prefer] or usable
        usable = [each for each in usable if each.outstanding < each.limit.value] or usable
        pair = self._rng.sample(usable, min(2, len(usable)))
        return min(pair, key=lambda each: (each.outstanding, each.last_used))

    def started(self, replica: Replica) -> None:
        """Record that a request is sent to a replica; ``ended`` must follow."""
        replica.outstanding += 1
        self._requests += 1
        replica.last_used = self._requests
        if replica.silent_since_s is None:
            replica.silent_since_s = self._clock() - replica.silent_s

    def ended(self, replica: Replica) -> None:
        """Record the end of a request, whatever its outcome was."""
        replica.outstanding -= 1
        if not replica.outstanding and replica.silent_since_s is not None:
            replica.silent_s, replica.silent_since_s = self._clock() - replica.silent_since_s, None

    def succeeded(self, replica: Replica, latency_s: float, *, images: int, in_flight: int) -> None:
        """Record a result; ``in_flight`` requests were at the replica when this one was sent."""
        self._responded(replica)
        if not self.healthy and self._replicas.get(replica.address) is replica:
            self._reinstate(replica)
        replica.faults, replica.ejection_s = 0, self._min_ejection_s
        replica.slowest_s = max(latency_s, SLOWEST_DECAY * replica.slowest_s)
        replica.limit.succeeded(latency_s, images=images, in_flight=in_flight, now_s=self._clock())

    def failed(self, replica: Replica, error: ClientError) -> None:
        """Record an error response or a timeout, and eject the replica if necessary."""
        now_s = self._clock()
        replica.last_error = error
        silent_since_s = replica.silent_since_s
        if not isinstance(error, DeadlineExceeded):
            self._responded(replica)
        match error:
            case Overloaded():
                replica.limit.overloaded(now_s)
                return
            case Unavailable():
                eject = True
            case ServerFault():
                replica.faults += 1
                eject = replica.faults >= MAX_CONSECUTIVE_FAULTS
            case DeadlineExceeded():
                max_silence_s = max(MAX_SILENCE_S, 2 * replica.slowest_s)
                eject = silent_since_s is not None and now_s - silent_since_s >= max_silence_s
            case _:
                return  # an invalid request, correctly rejected
        # The last replica that responds is kept: a server that sometimes fails is better than none. The only replica is never
        # ejected: requests detect its recovery sooner than probes.
        last = len(self._replicas) == 1 or (self.healthy == [replica] and not isinstance(error, Unavailable))
        if eject and replica.healthy and not last:
            replica.probe_at_s = now_s + replica.ejection_s
            self._on_ejected(replica)
            self.on_change()

    def due_for_probe(self) -> list[Replica]:
        """The ejected replicas whose probe is due."""
        now_s = self._clock()
        return [each for each in self._replicas.values() if each.probe_at_s is not None and each.probe_at_s <= now_s]

    def probed(self, replica: Replica, error: ClientError | None) -> None:
        """Record a probe: reinstate the replica, or eject it for longer."""
        if error is None:
            replica.silent_since_s, replica.silent_s = None, 0.0
            self._reinstate(replica)
            return
        replica.last_error = error
        replica.ejection_s = min(2 * replica.ejection_s, MAX_EJECTION_S)
        replica.probe_at_s = self._clock() + replica.ejection_s

    def describe_errors(self) -> str:
        """The latest error of each replica, if all are ejected."""
        errors = "; ".join(str(each.last_error) for each in self.all)
        return f"none of {len(self._replicas)} replicas is available: {errors}"

    def _new(self, address: str) -> Replica:
        return Replica(address, ConcurrencyLimit(self._bounds), ejection_s=self._min_ejection_s)

    def _reinstate(self, replica: Replica) -> None:
        replica.probe_at_s, replica.faults = None, 0
        self.on_change()

    def _responded(self, replica: Replica) -> None:
        replica.silent_s = 0.0
        replica.silent_since_s = self._clock() if replica.outstanding > 1 else None
