"""What is simulated and what comes of it: servers, a fleet of them with its failures, and the outcome. Pure records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Server:
    """One replica. A batch of n images takes ``(fixed_s + per_image_s * n) * noise`` seconds of an instance.

    Attributes:
        fixed_s: what a batch costs whatever is in it, seconds.
        per_image_s: what each image adds, seconds.
        max_batch: images.
        instances: that run at once, each as fast as said. Where they share cores, say what they take together.
        queue_requests: that may wait; None: any number.
        outside_s: latency of a request outside queue and instance (wire, messages), seconds.
        noise: measured times of a batch as shares of what the line says; each batch draws one.
    """

    fixed_s: float
    per_image_s: float
    max_batch: int = 64
    instances: int = 1
    queue_requests: int | None = None
    outside_s: float = 0.0
    noise: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if min(self.fixed_s, self.per_image_s, self.outside_s) < 0 or self.fixed_s + self.per_image_s <= 0:
            raise ValueError("times are at least 0, and a batch takes some")
        if self.max_batch < 1 or self.instances < 1 or self.queue_requests == 0 or not self.noise:
            raise ValueError("at least one image, instance, place in the queue and factor of noise")

    def batch_s(self, images: float) -> float:
        """Seconds of a batch (or of a mean one), without noise."""
        return self.fixed_s + self.per_image_s * images

    @property
    def capacity(self) -> float:
        """Images a second when there is always a full batch: ``instances * n / (a + b n)`` at the largest n."""
        return self.instances * self.max_batch / self.batch_s(self.max_batch)


@dataclass(frozen=True)
class Failure:
    """A replica is dead from ``at_s`` on and in use again at ``back_s``: started, warm, and probed by the clients."""

    replica: int
    at_s: float
    back_s: float


@dataclass(frozen=True)
class Fleet:
    """Replicas and those who choose among them.

    Attributes:
        server: every replica.
        replicas: how many.
        choice: of two random ones the one with fewer requests outstanding, as the client does it
            (``alexnet_client.replicas``), or one after the other.
        clients: processes that send, each knowing only what it has sent itself.
        detection_s: how long after its death a replica still gets requests; then all that it owes is sent to others.
        failures: of the same replica, one after the other.
    """

    server: Server
    replicas: int = 1
    choice: Literal["two choices", "round robin"] = "two choices"
    clients: int = 1
    detection_s: float = 0.0
    failures: tuple[Failure, ...] = ()

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.clients < 1:
            raise ValueError("at least one replica and one client")
        last: dict[int, float] = {}
        for each in self.failures:
            if not 0 <= each.replica < self.replicas or each.at_s < last.get(each.replica, 0.0):
                raise ValueError(f"{each}: there is no such replica, or it is dead already")
            if each.back_s < each.at_s + self.detection_s:
                raise ValueError(f"{each}: it is back before anybody noticed")
            last[each.replica] = each.back_s


@dataclass(frozen=True)
class Outcome:
    """What became of the requests.

    Attributes:
        latencies_s: float [requests], in the order of arrival; NaN where a request was rejected.
        retried: how often a request was sent again because its replica had died.
        executions: batches that ran to their end.
        images: in those batches.
        busy: share of the time of all instances, from 0 to the last event, in which they ran a batch.
    """

    latencies_s: Floats
    retried: int
    executions: int
    images: int
    busy: float

    @property
    def answered(self) -> int:
        """Requests."""
        return int(np.isfinite(self.latencies_s).sum())

    @property
    def rejected(self) -> int:
        """Requests that found a full queue, or no replica in use."""
        return len(self.latencies_s) - self.answered

    @property
    def mean_batch(self) -> float:
        """Images in an execution."""
        return self.images / max(1, self.executions)

    def percentile_s(self, percent: float) -> float:
        """Of the latencies of what was answered, seconds; NaN if nothing was."""
        return float(np.nanpercentile(self.latencies_s, percent)) if self.answered else float("nan")
