"""Which replica gets a request, and which ones get none for a while. Pure: the clock and the dice are given.

Of two random usable replicas the one with fewer requests outstanding is taken: nearly as even as asking all of them, and
callers who decide at the same time do not all run to the same one. Source: Mitzenmacher, "The power of two choices in
randomized load balancing", 2001. Of two with as many, the one that was asked less recently: a light load is spread evenly too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from alexnet_client.errors import ClientError, DeadlineExceeded, Overloaded, ServerFault, Unavailable
from alexnet_client.limit import AdaptiveLimit, LimitRange

FAULTS_IN_A_ROW = 3
"""So many faults in a row take a replica out; a single "unavailable" does: it is dead or stopping."""
SILENCE_S = 1.0
"""A request that times out or is given up takes a replica out if that has not answered anything for so long, seconds, and
for twice its slowest answer: the caller was not merely impatient."""
FORGET = 0.99
"""Share of the slowest latency that is left after each answer."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 4.0
"""An ejected replica is probed after this time, seconds, and after twice as long each time the probe fails."""


@dataclass(eq=False)
class Replica:
    """One server and what is known of it.

    Attributes:
        address: host:port.
        limit: of its requests in flight.
        outstanding: requests sent to it and not answered.
        turn: number of the last request that was sent to it, of all that were sent.
        faults: in a row.
        silent_since_s: since when it owes an answer and has given none.
        silent_s: how long it had owed one when the last request was given up, seconds; idle time does not count.
        slowest_s: of its latencies lately, seconds.
        pause_s: how long it is left alone when it is ejected next, seconds.
        probe_s: when an ejected one is to be probed, on the set's clock; None while it is in use.
        last_error: what it said last that was wrong.
    """

    address: str
    limit: AdaptiveLimit
    outstanding: int = 0
    turn: int = 0
    faults: int = 0
    silent_since_s: float | None = None
    silent_s: float = 0.0
    slowest_s: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    probe_s: float | None = None
    last_error: ClientError | None = field(default=None, repr=False)

    @property
    def usable(self) -> bool:
        """Whether it gets requests."""
        return self.probe_s is None

    @property
    def has_room(self) -> bool:
        """Whether it may get one more now."""
        return self.outstanding < self.limit.limit


class ReplicaSet:
    """The replicas, in use and ejected.

    Args:
        addresses: host:port of each.
        bounds: of each one's limit.
        clock: seconds.
        chance: source of randomness.
        on_ejected: told when one is taken out.

    Attributes:
        on_change: called when there is room elsewhere than before: one was ejected, is back, or is new.
    """

    def __init__(
        self,
        addresses: Iterable[str],
        *,
        bounds: LimitRange,
        clock: Callable[[], float],
        chance: random.Random,
        on_ejected: Callable[[Replica], None] = lambda replica: None,
    ) -> None:
        self._bounds, self._clock, self._chance = bounds, clock, chance
        self._on_ejected = on_ejected
        self.on_change: Callable[[], None] = lambda: None
        self._replicas: dict[str, Replica] = {}
        self._gone: list[Replica] = []
        self._turn = 0
        self.update(addresses)

    @property
    def all(self) -> list[Replica]:
        """Every one, ejected or not."""
        return list(self._replicas.values())

    @property
    def usable(self) -> list[Replica]:
        """Those in use."""
        return [each for each in self._replicas.values() if each.usable]

    @property
    def _quick(self) -> list[Replica]:
        """The ejected ones that said what was wrong, not those that say nothing."""
        return [each for each in self._replicas.values() if not isinstance(each.last_error, DeadlineExceeded)]

    @property
    def capacity(self) -> int:
        """Requests that may be in flight in all; at least one, which will say what is wrong if nothing is in use.

        What is still outstanding at ejected ones takes no place from the others.
        """
        stuck = sum(each.outstanding for each in (*self._replicas.values(), *self._gone) if not each.usable)
        return max(1, sum(each.limit.limit for each in self.usable)) + stuck

    def update(self, addresses: Iterable[str]) -> tuple[list[Replica], list[Replica]]:
        """Make these addresses the set; those that stay keep what is known of them. Returns the new and the gone."""
        wanted = dict.fromkeys(addresses)
        gone = [each for address, each in self._replicas.items() if address not in wanted]
        new = [Replica(each, AdaptiveLimit(self._bounds)) for each in wanted if each not in self._replicas]
        known = self._replicas | {each.address: each for each in new}
        self._replicas = {address: known[address] for address in wanted}
        for each in gone:
            each.probe_s = math.inf  # what it still owes takes no place from the others
        self._gone = [each for each in (*self._gone, *gone) if each.outstanding]
        self.on_change()
        return new, gone

    def choose(self, *, without: Collection[Replica] = (), rather: str = "") -> Replica:
        """The replica for the next request, not one of ``without`` if there is another; the one at ``rather`` if it may be.

        When all are ejected, one of those that refused at once is asked all the same: it may be back before its probe, and
        if it is not, to hear so costs the caller nothing.

        Raises:
            Unavailable: all are ejected for their silence; the text names them and what each said last.
        """
        usable = self.usable or self._quick
        if not usable:
            raise Unavailable(self.epitaph())
        usable = [each for each in usable if each not in without] or usable
        usable = [each for each in usable if each.address == rather] or usable
        usable = [each for each in usable if each.has_room] or usable
        pair = self._chance.sample(usable, min(2, len(usable)))
        return min(pair, key=lambda each: (each.outstanding, each.turn))

    def sent(self, replica: Replica) -> None:
        """It was sent a request; ``ended`` must follow."""
        replica.outstanding += 1
        self._turn += 1
        replica.turn = self._turn
        if replica.silent_since_s is None:
            replica.silent_since_s = self._clock() - replica.silent_s

    def ended(self, replica: Replica) -> None:
        """A request that was sent is over, whatever became of it."""
        replica.outstanding -= 1
        if not replica.outstanding and replica.silent_since_s is not None:
            replica.silent_s, replica.silent_since_s = self._clock() - replica.silent_since_s, None

    def answered(self, replica: Replica, latency_s: float, *, images: int, in_flight: int) -> None:
        """It answered well after ``latency_s``; ``in_flight`` requests were at it when this one was sent."""
        self._spoke(replica)
        if not self.usable and self._replicas.get(replica.address) is replica:
            self._take_back(replica)
        replica.faults, replica.pause_s = 0, FIRST_PAUSE_S
        replica.slowest_s = max(latency_s, FORGET * replica.slowest_s)
        replica.limit.answered(latency_s, images=images, in_flight=in_flight, now_s=self._clock())

    def failed(self, replica: Replica, error: ClientError) -> None:
        """It answered with an error, or not at all."""
        now_s = self._clock()
        replica.last_error = error
        silent_since_s = replica.silent_since_s
        if not isinstance(error, DeadlineExceeded):
            self._spoke(replica)
        match error:
            case Overloaded():
                replica.limit.refused(now_s)
                return
            case Unavailable():
                dead = True
            case ServerFault():
                replica.faults += 1
                dead = replica.faults >= FAULTS_IN_A_ROW
            case DeadlineExceeded():
                patience_s = max(SILENCE_S, 2 * replica.slowest_s)
                dead = silent_since_s is not None and now_s - silent_since_s >= patience_s
            case _:
                return  # the caller's mistake, well answered
        # The last one that speaks at all is kept: a server that sometimes fails is better than none. So is the only one
        # there is: nothing is won by not asking it, and it is found back sooner.
        last = len(self._replicas) == 1 or (self.usable == [replica] and not isinstance(error, Unavailable))
        if dead and replica.usable and not last:
            replica.probe_s = now_s + replica.pause_s
            self._on_ejected(replica)
            self.on_change()

    def due(self) -> list[Replica]:
        """The ejected ones that are to be probed now."""
        now_s = self._clock()
        return [each for each in self._replicas.values() if each.probe_s is not None and each.probe_s <= now_s]

    def probed(self, replica: Replica, error: ClientError | None) -> None:
        """What came of a probe: back in use, or left alone for longer."""
        if error is None:
            replica.silent_since_s, replica.silent_s = None, 0.0
            self._take_back(replica)
            return
        replica.last_error = error
        replica.pause_s = min(2 * replica.pause_s, LONGEST_PAUSE_S)
        replica.probe_s = self._clock() + replica.pause_s

    def _take_back(self, replica: Replica) -> None:
        replica.probe_s, replica.faults = None, 0
        self.on_change()

    def _spoke(self, replica: Replica) -> None:
        replica.silent_s = 0.0
        replica.silent_since_s = self._clock() if replica.outstanding > 1 else None

    def epitaph(self) -> str:
        """Every replica and what was wrong with it last."""
        each = "; ".join(str(replica.last_error or f"{replica.address}: not asked yet") for replica in self.all)
        return each if len(self._replicas) == 1 else f"none of {len(self._replicas)} replicas can be used: {each}"
