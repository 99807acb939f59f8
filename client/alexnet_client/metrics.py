"""Prometheus metrics of the client's events, and the HTTP server for them. The only module that imports prometheus_client."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from alexnet_client.batcher import Batcher
from alexnet_client.certificates import expiries
from alexnet_client.connection import Tls
from alexnet_client.errors import BadInput
from alexnet_client.events import (
    Attempted,
    BatchCompleted,
    BatchSent,
    CallEnded,
    Ejected,
    Event,
    Hedged,
    Retried,
    RetryBudgetExhausted,
    SharedMemoryFallback,
)
from alexnet_client.files import reason
from alexnet_client.replicas import ReplicaSet

NAMESPACE = "alexnet_client"
VERSION = version("alexnet-client")
CALL_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
PHASE_BUCKETS_S = (0.0001, 0.0002, *CALL_BUCKETS_S)  # a batch is encoded in less than half a millisecond
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
# All label values exist from the start with value 0: Prometheus sees no increase in a series that first appears as 1.
OUTCOMES = (
    *("ok", "cancelled", "bad_input", "image_error", "request_rejected", "overloaded", "queue_full"),
    *("deadline_exceeded", "unavailable", "closed", "server_fault"),
)
REASONS = ("unavailable", "overloaded", "server_fault")
GAUGES: tuple[tuple[str, str, Callable[[Batcher, ReplicaSet], int]], ...] = (
    ("queued_images", "Images in the queues of this process.", lambda batcher, _: batcher.queued),
    ("batches_in_flight", "Batches that were sent and have no result yet.", lambda batcher, _: batcher.in_flight),
    ("concurrency_limit", "Batches that may be in flight now.", lambda _, replicas: replicas.concurrency_limit),
    ("replicas", "Replicas, healthy and ejected.", lambda _, replicas: len(replicas.all)),
    ("replicas_healthy", "Replicas that are not ejected.", lambda _, replicas: len(replicas.healthy)),
)


@dataclass(frozen=True)
class _Watched:
    """The parts of a client that the gauges read."""

    batcher: Batcher
    replicas: ReplicaSet
    model: str
    expiries: Mapping[str, float] = field(default_factory=dict)


class ClientMetrics(Collector):
    """Listener that counts the events of clients. Use one instance for all clients of a registry; their values are added.

        metrics = ClientMetrics()
        async with Client(target, listeners=[metrics]) as client: ...

    Args:
        registry: of the metrics; None for the global registry.

    Raises:
        BadInput: the registry already contains these metrics.
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
        try:  # register all metrics or none
            (REGISTRY if registry is None else registry).register(self)
        except ValueError as error:
            raise BadInput(
                f"this registry already contains metrics of a client ({error}); use one ClientMetrics for all clients, "
                "or another registry"
            ) from None

    def describe(self) -> Iterable[Metric]:
        """Names and types, for the registry."""
        return [*(metric for part in self._parts for metric in part.describe()), *self._info_metrics(())]

    def collect(self) -> Iterator[Metric]:
        """Values, for the registry."""
        for part in self._parts:
            yield from part.collect()
        yield from self._info_metrics(self._open())

    def watch(self, batcher: Batcher, replicas: ReplicaSet, *, model: str, tls: Tls | None = None) -> None:
        """Include a client in the gauges until its batcher is closed. ``Client`` calls this method."""
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
            case BatchCompleted():
                self._encoded_s.observe(event.encoded_s)
                self._served_s.observe(event.served_s)
                self._decoded_s.observe(event.decoded_s)
            case Attempted():
                self._add_address(event.replica)
                self._attempts.labels(event.replica, event.outcome).inc()
            case Retried() | RetryBudgetExhausted() | SharedMemoryFallback():
                self._by_reason[type(event)].labels(event.reason).inc()
            case Hedged():
                self._hedges.labels("won" if event.won else "lost").inc()
            case Ejected():
                self._add_address(event.replica)
                self._ejections.labels(event.replica).inc()

    def _make_histograms(self) -> None:
        self._call_s = self._histogram(
            "call_duration_seconds", "Duration of calls.", CALL_BUCKETS_S, "outcome", ("ok",)
        )
        phases = self._histogram(
            "phase_duration_seconds",
            "Duration of the phases: time of a call in the queue (queued); time of a batch for encoding (encoded), on the "
            "network and the server (served), and for decoding (decoded).",
            PHASE_BUCKETS_S,
            "phase",
        )
        self._queued_s, self._encoded_s, self._served_s, self._decoded_s = (
            phases.labels(phase) for phase in ("queued", "encoded", "served", "decoded")
        )
        self._batch_images = self._histogram("batch_images", "Images per batch that was sent.", BATCH_BUCKETS)

    def _make_counters(self) -> None:
        self._calls = self._counter("calls", "Calls that ended.", "outcome", values=OUTCOMES)
        self._images = self._counter("images", "Images in calls that ended.", "outcome", values=OUTCOMES)
        self._attempts = self._counter("attempts", "Requests to replicas that ended.", "replica", "outcome")
        self._hedges = self._counter(
            "hedges",
            "Second requests for slow ones; won: the second response was used.",
            "result",
            values=("won", "lost"),
        )
        self._ejections = self._counter("ejections", "Ejections of a replica.", "replica")
        self._by_reason = {
            Retried: self._counter("retries", "Retries.", "reason", values=REASONS),
            RetryBudgetExhausted: self._counter(
                "retry_budget_exhausted",
                "Requests not retried because the retry budget was exhausted.",
                "reason",
                values=REASONS,
            ),
            SharedMemoryFallback: self._counter(
                "shared_memory_fallbacks",
                "Requests with pixels in the gRPC payload although shared memory was on.",
                "reason",
                values=("full", "rejected"),
            ),
        }

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], label: str = "", values: tuple[str, ...] = ()
    ) -> Histogram:
        labels = [label] if label else []
        metric = Histogram(name, text, labels, namespace=NAMESPACE, registry=None, buckets=buckets)
        for value in values:
            metric.labels(value)
        self._parts.append(metric)
        return metric

    def _counter(self, name: str, text: str, *labels: str, values: tuple[str, ...] = ()) -> Counter:
        metric = Counter(name, text, labels, namespace=NAMESPACE, registry=None)
        for value in values:
            metric.labels(value)
        self._parts.append(metric)
        return metric

    def _open(self) -> list[_Watched]:
        return [each for each in self._watched if not each.batcher.closed]

    def _sum(self, read: Callable[[Batcher, ReplicaSet], int]) -> float:
        """Called by the HTTP thread. It needs no lock: it reads objects that are replaced, never modified."""
        return sum(read(each.batcher, each.replicas) for each in self._open())

    @staticmethod
    def _info_metrics(clients: Iterable[_Watched]) -> Iterator[Metric]:
        """Metrics whose label values depend on the open clients."""
        info = GaugeMetricFamily(
            f"{NAMESPACE}_info",
            "Models of the open clients, with the version of this package.",
            labels=("model", "version"),
        )
        expiry = GaugeMetricFamily(
            f"{NAMESPACE}_certificate_expiry_timestamp_seconds",
            "Earliest expiry of the certificates that the client loaded at its start (ca: trusted CAs; tls: client certificate).",
            labels=("certificate",),
        )
        clients = list(clients)
        for model in sorted({each.model for each in clients}):
            info.add_metric((model, VERSION), 1)
        for name in sorted({name for each in clients for name in each.expiries}):
            expiry.add_metric((name,), min(each.expiries[name] for each in clients if name in each.expiries))
        yield from (info, expiry)

    def _add_address(self, address: str) -> None:
        """Remember an address; for each new one, remove the series of addresses that no client uses any more."""
        if address in self._addresses:
            return
        with self._lock:
            known = {replica.address for each in self._open() for replica in each.replicas.all}
            gone = self._addresses - known if self._watched else set()
            for each in gone:
                self._attempts.remove_by_labels({"replica": each})
                self._ejections.remove_by_labels({"replica": each})
            self._addresses = self._addresses - gone | {address}


class MetricsServer(AbstractContextManager["MetricsServer"]):
    """Serves metrics over HTTP on its own thread until it is closed."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server, self._thread = server, thread
        self.port = server.server_port

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(
    port: int = 8003, *, address: str = "127.0.0.1", registry: CollectorRegistry | None = None
) -> MetricsServer:
    """Serve the metrics of a registry at ``http://address:port/metrics``, without authentication.

    Args:
        port: TCP port; 0 for any free one, see the attribute ``port`` of the server.
        address: to listen on.
        registry: of the metrics; None for the global registry.

    Raises:
        BadInput: the address or the port cannot be used.
    """
    try:
        return MetricsServer(*start_http_server(port, address, REGISTRY if registry is None else registry))
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        cause = "the port is in use" if in_use else reason(error)
        remedy = "stop the other program, or choose another port" if in_use else "choose another address or port"
        raise BadInput(f"cannot serve metrics at {address}:{port}: {cause}; {remedy}") from None
    except OverflowError:
        raise BadInput(f"cannot serve metrics at port {port}: a port is a number from 0 to 65535") from None
