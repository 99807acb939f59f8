"""When a batch is sent: a pure function of the queue, the time and the batches in flight."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from alexnet_client.errors import BadInput

DELAY_SHARE = 0.25
"""A call waits for others at most this share of the mean latency: the server is busy for that time anyway."""


@dataclass(frozen=True)
class BatchOptions:
    """How images of several calls are combined into one request.

    Attributes:
        max_batch: images per request; the limit of the server applies as well.
        max_delay_s: the longest time that an image waits for others while a request is in flight, seconds; a quarter of the
            mean latency if that is shorter.
        max_queue_images: images in the queue of this client.
        max_queue_bytes: bytes of images in the queue of this client.
        min_in_flight, max_in_flight: bounds of the requests in flight per replica; the concurrency limit adapts to the
            latency between them.
        wait_when_full: if the queue is full, a call waits until its deadline; otherwise it raises ``QueueFull`` at once.
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
class Pending:
    """A call in the queue: number of images, arrival time and deadline, seconds."""

    images: int
    since_s: float
    deadline_s: float


@dataclass(frozen=True)
class Send:
    """Send the first ``count`` calls now, as one request."""

    count: int


@dataclass(frozen=True)
class Sleep:
    """Send nothing before ``until_s``, or before something changes."""

    until_s: float = math.inf


def decide(
    queue: Iterable[Pending], now_s: float, *, in_flight: int, limit: int, latency_s: float, options: BatchOptions
) -> Send | Sleep:
    """Decide what to do with the queue now.

    A batch is sent when it is full, when its oldest call has waited long enough, when a deadline leaves only the time of one
    request, and at once when nothing is in flight. The concurrency limit is ``limit``; ``latency_s`` is the mean latency of
    recent requests. The oldest call is the first in ``queue``; only as many calls as fit in a batch are read.
    """
    if in_flight >= limit:
        return Sleep()
    count = images = 0
    send_at_s, full = math.inf, False
    delay_s = min(options.max_delay_s, DELAY_SHARE * latency_s)
    for each in queue:
        if count and images + each.images > options.max_batch:
            full = True
            break
        count, images = count + 1, images + each.images
        send_at_s = min(send_at_s, each.since_s + delay_s, each.deadline_s - latency_s)
        if images >= options.max_batch:
            full = True
            break
    if not count:
        return Sleep()
    if full or not in_flight or now_s >= send_at_s:
        return Send(count)
    return Sleep(send_at_s)
