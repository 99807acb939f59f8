"""Prometheus metrics of a client's events. The only module that imports prometheus_client."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from alexnet_client.batcher import Batcher
from alexnet_client.errors import BadInput
from alexnet_client.events import (
    Attempted,
    BatchAnswered,
    BatchSent,
    CallEnded,
    Ejected,
    Event,
    Hedged,
    LeftToWire,
    Retried,
    RetryDenied,
)
from alexnet_client.replicas import ReplicaSet

NAMESPACE = "alexnet_client"
CALL_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
PHASE_BUCKETS_S = (0.0001, 0.0002, *CALL_BUCKETS_S)  # a batch is made into bytes in less than half a millisecond
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
# What may be counted is there from the start, as 0: a counter that first appears as 1 has never increased.
OUTCOMES = (
    *("ok", "given_up", "bad_input", "image_error", "request_refused", "overloaded", "queue_full"),
    *("timed_out", "unavailable", "closed", "server_fault"),
)
REASONS = ("unavailable", "overloaded", "server_fault")
GAUGES: tuple[tuple[str, str, Callable[[Batcher, ReplicaSet], int]], ...] = (
    ("queued_images", "Images that wait in this process.", lambda batcher, _: batcher.queued),
    ("batches_in_flight", "Batches that were sent and are not answered.", lambda batcher, _: batcher.in_flight),
    ("batches_in_flight_limit", "Batches that may be in flight now.", lambda _, replicas: replicas.capacity),
    ("replicas_known", "Replicas, ejected or not.", lambda _, replicas: len(replicas.all)),
    ("replicas_usable", "Replicas that get requests.", lambda _, replicas: len(replicas.usable)),
)


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
        self._watched: tuple[tuple[Batcher, ReplicaSet], ...] = ()
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
        return [metric for part in self._parts for metric in part.describe()]

    def collect(self) -> Iterator[Metric]:
        """Values, for the registry."""
        for part in self._parts:
            yield from part.collect()

    def watch(self, batcher: Batcher, replicas: ReplicaSet) -> None:
        """Show these in the gauges until the batcher is closed; a client calls it with its own."""
        with self._lock:
            self._watched = (*self._open(), (batcher, replicas))

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
            case Retried() | RetryDenied() | LeftToWire():
                self._by_reason[type(event)].labels(event.reason).inc()
            case Hedged():
                self._hedges.labels("won" if event.won else "lost").inc()
            case Ejected():
                self._see(event.replica)
                self._ejections.labels(event.replica).inc()

    def _make_histograms(self) -> None:
        self._call_s = self._histogram(
            "call_seconds", "Time from a call to its outcome.", CALL_BUCKETS_S, "outcome", ("ok",)
        )
        phases = self._histogram(
            "phase_seconds",
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
            RetryDenied: self._counter("retries_denied", "Retries the budget forbade.", "reason", values=REASONS),
            LeftToWire: self._counter(
                "left_to_wire", "Requests without the shared memory asked for.", "reason", values=("full", "refused")
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

    def _open(self) -> list[tuple[Batcher, ReplicaSet]]:
        return [pair for pair in self._watched if not pair[0].closed]

    def _sum(self, read: Callable[[Batcher, ReplicaSet], int]) -> float:
        """Called by the thread that answers Prometheus: it only reads, and what it reads is replaced, never changed."""
        return sum(read(batcher, replicas) for batcher, replicas in self._open())

    def _see(self, address: str) -> None:
        """Note an address. Each new one clears away those that no client knows any more: names resolve to ever others."""
        if address in self._addresses:
            return
        with self._lock:
            known = {each.address for _, replicas in self._open() for each in replicas.all}
            gone = self._addresses - known if self._watched else set()
            for each in gone:
                self._attempts.remove_by_labels({"replica": each})
                self._ejections.remove_by_labels({"replica": each})
            self._addresses = self._addresses - gone | {address}


class MetricsServer:
    """Answers Prometheus over HTTP from a thread of its own until it is closed."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server, self._thread = server, thread
        self.port = server.server_port

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(
    port: int = 8003, *, address: str = "127.0.0.1", registry: CollectorRegistry | None = None
) -> MetricsServer:
    """Show a registry's metrics at ``http://address:port/metrics``.

    Args:
        port: TCP port; 0 for any free one, which the server's ``port`` then names.
        address: to listen on; anybody who reaches it may read.
        registry: what to show; None for the process's own.

    Raises:
        BadInput: nothing can listen there.
    """
    try:
        return MetricsServer(*start_http_server(port, address, REGISTRY if registry is None else registry))
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        cause = "another program listens there" if taken else str(error.strerror or error).lower()
        remedy = "end it, or choose another port" if taken else "choose another address or port"
        raise BadInput(f"cannot serve metrics at {address}:{port}: {cause}; {remedy}") from None
    except OverflowError:
        raise BadInput(f"cannot serve metrics at port {port}: a port is a number from 0 to 65535") from None
