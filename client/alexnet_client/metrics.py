"""Prometheus metrics of a client's events. Only this module and the one that serves them import prometheus_client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from alexnet_client.batcher import Batcher
from alexnet_client.certificates import expiries
from alexnet_client.connection import Tls
from alexnet_client.errors import BadInput
from alexnet_client.events import (
    Attempted,
    BatchAnswered,
    BatchSent,
    CallEnded,
    Ejected,
    Event,
    Hedged,
    Retried,
    RetryBudgetExhausted,
    SharedMemoryFallback,
)
from alexnet_client.metrics_server import MetricsServer, serve_metrics
from alexnet_client.replicas import ReplicaSet

__all__ = ["ClientMetrics", "MetricsServer", "serve_metrics"]

NAMESPACE = "alexnet_client"
RELEASE = version("alexnet-client")
CALL_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
PHASE_BUCKETS_S = (0.0001, 0.0002, *CALL_BUCKETS_S)  # a batch is made into bytes in less than half a millisecond
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
# What may be counted is there from the start, as 0: a counter that first appears as 1 has never increased.
OUTCOMES = (
    *("ok", "cancelled", "bad_input", "image_error", "request_rejected", "overloaded", "queue_full"),
    *("deadline_exceeded", "unavailable", "closed", "server_fault"),
)
REASONS = ("unavailable", "overloaded", "server_fault")
GAUGES: tuple[tuple[str, str, Callable[[Batcher, ReplicaSet], int]], ...] = (
    ("queued_images", "Images that wait in this process.", lambda batcher, _: batcher.queued),
    ("batches_in_flight", "Batches that were sent and are not answered.", lambda batcher, _: batcher.in_flight),
    ("concurrency_limit", "Batches that may be in flight now.", lambda _, replicas: replicas.capacity),
    ("replicas", "Replicas, ejected or not.", lambda _, replicas: len(replicas.all)),
    ("replicas_healthy", "Replicas that get requests.", lambda _, replicas: len(replicas.usable)),
)


@dataclass(frozen=True)
class _Watched:
    """A client, as far as the gauges look into it."""

    batcher: Batcher
    replicas: ReplicaSet
    model: str
    expiries: Mapping[str, float] = field(default_factory=dict)


class ClientMetrics(Collector):
    """Counts what clients do; one instance for all clients of a registry, whose figures add up.

        metrics = ClientMetrics()
        async with Client(target, listeners=[metrics]) as client: ...

    Args:
        registry: where the metrics are shown; None for the process's own.

    Raises:
        BadInput: the registry has such metrics already.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._lock = threading.Lock()
        self._watched: tuple[_Watched, ...] = ()
        self._addresses: set[str] = set()
        self._parts: list[Counter | Gauge | Histogram] = []
        self._make_histograms()
        self._make_counters()
        for name, text, read in GAUGES:
            gauge = Gauge(name, text, namespace=NAMESPACE, registry=None)
            gauge.set_function(partial(self._sum, read))
            self._parts.append(gauge)
        try:  # all of them at once, or none
            (REGISTRY if registry is None else registry).register(self)
        except ValueError as error:
            raise BadInput(
                f"this registry has metrics of a client already ({error}); give the one ClientMetrics to all clients, "
                "or another registry to this one"
            ) from None

    def describe(self) -> Iterable[Metric]:
        """Names and types, for the registry."""
        return [*(metric for part in self._parts for metric in part.describe()), *self._facts(())]

    def collect(self) -> Iterator[Metric]:
        """Values, for the registry."""
        for part in self._parts:
            yield from part.collect()
        yield from self._facts(self._open())

    def watch(self, batcher: Batcher, replicas: ReplicaSet, *, model: str, tls: Tls | None = None) -> None:
        """Show these in the gauges until the batcher is closed; a client calls it with its own."""
        with self._lock:
            self._watched = (*self._open(), _Watched(batcher, replicas, model, {} if tls is None else expiries(tls)))

    def __call__(self, event: Event) -> None:
        """Count an event."""
        match event:
            case CallEnded():
                self._calls.labels(event.outcome).inc()
                self._images.labels(event.outcome).inc(event.images)
                self._call_s.labels(event.outcome).observe(event.seconds)
            case BatchSent():
                self._batch_images.observe(event.images)
                for waited_s in event.waited_s:
                    self._queued_s.observe(waited_s)
            case BatchAnswered():
                self._encoded_s.observe(event.encoded_s)
                self._served_s.observe(event.served_s)
                self._decoded_s.observe(event.decoded_s)
            case Attempted():
                self._see(event.replica)
                self._attempts.labels(event.replica, event.outcome).inc()
            case Retried() | RetryBudgetExhausted() | SharedMemoryFallback():
                self._by_reason[type(event)].labels(event.reason).inc()
            case Hedged():
                self._hedges.labels("won" if event.won else "lost").inc()
            case Ejected():
                self._see(event.replica)
                self._ejections.labels(event.replica).inc()

    def _make_histograms(self) -> None:
        self._call_s = self._histogram(
            "call_duration_seconds", "Time from a call to its outcome.", CALL_BUCKETS_S, "outcome", ("ok",)
        )
        phases = self._histogram(
            "phase_duration_seconds",
            "Time of a call in the queue (queued); of an answered batch until its bytes are made (encoded), on the wire "
            "and at the server (served), and until they are read (decoded).",
            PHASE_BUCKETS_S,
            "phase",
        )
        self._queued_s, self._encoded_s, self._served_s, self._decoded_s = (
            phases.labels(phase) for phase in ("queued", "encoded", "served", "decoded")
        )
        self._batch_images = self._histogram("batch_images", "Images in a batch that was sent.", BATCH_BUCKETS)

    def _make_counters(self) -> None:
        self._calls = self._counter("calls", "Calls that ended.", "outcome", values=OUTCOMES)
        self._images = self._counter("images", "Images of calls that ended.", "outcome", values=OUTCOMES)
        self._attempts = self._counter("attempts", "Requests that were sent.", "replica", "outcome")
        self._hedges = self._counter(
            "hedges", "Second requests for slow ones; won: theirs was the answer.", "result", values=("won", "lost")
        )
        self._ejections = self._counter("ejections", "Times a replica was taken out.", "replica")
        self._by_reason = {
            Retried: self._counter("retries", "Attempts made again.", "reason", values=REASONS),
            RetryBudgetExhausted: self._counter(
                "retry_budget_exhausted", "Retries the budget forbade.", "reason", values=REASONS
            ),
            SharedMemoryFallback: self._counter(
                "shared_memory_fallbacks",
                "Requests without the shared memory asked for.",
                "reason",
                values=("full", "rejected"),
            ),
        }

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], label: str = "", values: tuple[str, ...] = ()
    ) -> Histogram:
        labels = [label] if label else []
        made = Histogram(name, text, labels, namespace=NAMESPACE, registry=None, buckets=buckets)
        for value in values:
            made.labels(value)
        self._parts.append(made)
        return made

    def _counter(self, name: str, text: str, *labels: str, values: tuple[str, ...] = ()) -> Counter:
        made = Counter(name, text, labels, namespace=NAMESPACE, registry=None)
        for value in values:
            made.labels(value)
        self._parts.append(made)
        return made

    def _open(self) -> list[_Watched]:
        return [each for each in self._watched if not each.batcher.closed]

    def _sum(self, read: Callable[[Batcher, ReplicaSet], int]) -> float:
        """Called by the thread that answers Prometheus: it only reads, and what it reads is replaced, never changed."""
        return sum(read(each.batcher, each.replicas) for each in self._open())

    @staticmethod
    def _facts(clients: Iterable[_Watched]) -> Iterator[Metric]:
        """What is true of the clients there are: its labels come and go with them."""
        info = GaugeMetricFamily(
            f"{NAMESPACE}_info",
            "Models that are asked, and by which release of this package.",
            labels=("model", "version"),
        )
        expiry = GaugeMetricFamily(
            f"{NAMESPACE}_certificate_expiry_timestamp_seconds",
            "When the first certificate of a file expires (roots: to trust; own: to be trusted), as of the client's start.",
            labels=("certificate",),
        )
        clients = list(clients)
        for model in sorted({each.model for each in clients}):
            info.add_metric((model, RELEASE), 1)
        for name in sorted({name for each in clients for name in each.expiries}):
            expiry.add_metric((name,), min(each.expiries[name] for each in clients if name in each.expiries))
        yield from (info, expiry)

    def _see(self, address: str) -> None:
        """Note an address. Each new one clears away those that no client knows any more: names resolve to ever others."""
        if address in self._addresses:
            return
        with self._lock:
            known = {replica.address for each in self._open() for replica in each.replicas.all}
            gone = self._addresses - known if self._watched else set()
            for each in gone:
                self._attempts.remove_by_labels({"replica": each})
                self._ejections.remove_by_labels({"replica": each})
            self._addresses = self._addresses - gone | {address}
