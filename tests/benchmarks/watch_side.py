"""What watching costs: the same calls with metrics, logs, traces and a Prometheus, and without any of them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml
from client_side import TASKS, in_turns
from loads import TIMEOUT_S
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from prometheus_client import CollectorRegistry
from rows import Row, spread
from servers import as_found, published, running

from alexnet_client import Client
from alexnet_client.logs import EventLog
from alexnet_client.metrics import ClientMetrics, serve_metrics
from alexnet_client.tracing import Tracing
from alexnet_load.trial_server import free_ports
from alexnet_server.monitoring.prometheus import MonitorOptions, monitoring

COMMITTED = Path(__file__).parents[2] / "deploy/prometheus"
ONE_IN = 100
"""Requests of which one is traced."""
SCRAPE = "1s"
SECONDS = 6
"""Of each turn: two percent are less than short turns differ."""


def bench_watching(models: dict[str, bytes], labels: Sequence[str]) -> Iterator[Row]:
    """The row, with the int8 network; none where Prometheus is not installed."""
    if shutil.which("prometheus") is None:
        return
    images = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3)).astype(np.uint8)
    with TemporaryDirectory(prefix="alexnet-watch-") as scratch:
        repository = published(Path(scratch), "int8", models["int8"], labels)
        yield from as_found(rows(repository, images, Path(scratch)))


async def rows(repository: Path, images: np.ndarray, scratch: Path) -> AsyncIterator[Row]:
    """Both sides have a server of their own; the one that is not asked sleeps."""
    registry = CollectorRegistry()
    provider = TracerProvider(sampler=TraceIdRatioBased(1 / ONE_IN))
    with ExitStack() as stack:
        endpoint = stack.enter_context(collector())
        tracing = ("--trace-endpoint", endpoint, "--trace-rate", str(ONE_IN))
        watched_server = stack.enter_context(running(repository, *tracing))
        plain_server = stack.enter_context(running(repository))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        shown = stack.enter_context(serve_metrics(0, registry=registry))
        targets = {"triton": watched_server.metrics_port, "client": shown.port}
        stack.enter_context(prometheus(scratch, targets))
        async with AsyncExitStack() as clients:
            listeners = [ClientMetrics(registry), EventLog()]
            watched = await clients.enter_async_context(
                Client(watched_server.target, timeout_s=TIMEOUT_S, listeners=listeners, tracing=Tracing(provider))
            )
            plain = await clients.enter_async_context(Client(plain_server.target, timeout_s=TIMEOUT_S))
            found = await in_turns(
                {
                    "watched": (lambda caller: watched.infer(images[caller % 64][np.newaxis]), 1, TASKS),
                    "plain": (lambda caller: plain.infer(images[caller % 64][np.newaxis]), 1, TASKS),
                },
                seconds=SECONDS,
            )
        provider.shutdown()
    pairs = zip(found["watched"], found["plain"], strict=True)
    yield spread(
        f"watched: images a second with metrics, logs, one trace in {ONE_IN} and a Prometheus every {SCRAPE}, against none",
        "watched / plain",
        [ours.rate / theirs.rate for ours, theirs in pairs],
        goal=0.98,
    )


@contextmanager
def collector() -> Iterator[str]:
    """The address of one that takes spans and forgets them."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name is http.server's
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """No news."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def prometheus(scratch: Path, targets: dict[str, int]) -> Iterator[None]:
    """With the committed rules, asking each second."""
    directory = scratch / "prometheus"
    shutil.copytree(COMMITTED, directory)
    config = directory / "prometheus.yml"
    content = yaml.safe_load(config.read_text())
    content["global"] |= {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE}
    config.write_text(yaml.safe_dump(content))
    for path in (directory / "targets").glob("*.yml"):
        path.unlink()
    for name, port in targets.items():
        (directory / f"targets/{name}.yml").write_text(yaml.safe_dump([{"targets": [f"127.0.0.1:{port}"]}]))
    with monitoring(MonitorOptions(directory, scratch / "data", *free_ports(2))):
        yield
