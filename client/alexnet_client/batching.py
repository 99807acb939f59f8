"""When a batch leaves: a pure function of the queue, the clock and what is in flight. Knows no network and no tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from alexnet_client.errors import BadInput

PATIENCE = 0.25
"""Share of what an answer takes that an image may wait for others: the server is busy that long anyway."""


@dataclass(frozen=True)
class BatchOptions:
    """How single images become batches.

    Attributes:
        max_batch: images in one request; the server's own limit holds as well.
        max_delay_s: the longest that an image waits for others while something is in flight, seconds; where answers are
            quick it waits less, a quarter of what they take.
        max_queue_images: images that may wait in this process.
        max_queue_bytes: bytes of images that may wait in this process.
        min_in_flight, max_in_flight: bounds of the requests in flight at one replica; between them their number adapts
            to its latency.
        wait_when_full: a caller waits for room in the queue until its deadline, or else is told ``QueueFull`` at once.
    """

    max_batch: int = 32
    max_delay_s: float = 0.010
    max_queue_images: int = 4096
    max_queue_bytes: int = 1 << 29
    min_in_flight: int = 1
    max_in_flight: int = 16
    wait_when_full: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue_images", "max_queue_bytes", "min_in_flight"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_in_flight < self.min_in_flight:
            raise BadInput(f"max_in_flight must be at least {self.min_in_flight}, got {self.max_in_flight}")
        if not 0 <= self.max_delay_s < math.inf:
            raise BadInput(f"max_delay_s must be finite and not negative, got {self.max_delay_s}")


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the rule sees of a caller: images, when it came, and when nobody will wait any more, seconds."""

    images: int
    since_s: float
    deadline_s: float


@dataclass(frozen=True)
class Send:
    """The first ``count`` callers leave now, as one request."""

    count: int


@dataclass(frozen=True)
class Sleep:
    """Nothing leaves before ``until_s``, or before something changes."""

    until_s: float = math.inf


def decide(
    queue: Iterable[Waiting], now_s: float, *, in_flight: int, limit: int, service_s: float, options: BatchOptions
) -> Send | Sleep:
    """What to do with the queue now.

    A batch leaves when it is full, when its oldest image has waited long enough, when a deadline leaves no more time than
    an answer takes, and at once when nothing is in flight: then there is nothing to wait for.

    Args:
        queue: callers, in order; only as many as fit a batch are looked at.
        now_s: the time, on the clock of ``Waiting``.
        in_flight: requests that were sent and are not answered.
        limit: how many of those there may be.
        service_s: what an answer takes lately.
        options: sizes and delays.
    """
    if in_flight >= limit:
        return Sleep()
    count = images = 0
    leave_s, full = math.inf, False
    delay_s = min(options.max_delay_s, PATIENCE * service_s)
    for each in queue:
        if count and images + each.images > options.max_batch:
            full = True
            break
        count, images = count + 1, images + each.images
        leave_s = min(leave_s, each.since_s + delay_s, each.deadline_s - service_s)
        if images >= options.max_batch:
            full = True
            break
    if not count:
        return Sleep()
    if full or not in_flight or now_s >= leave_s:
        return Send(count)
    return Sleep(leave_s)
