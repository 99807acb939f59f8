"""Benchmark of monitoring: throughput with metrics, logs, traces and Prometheus, relative to none of them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from prometheus_client import CollectorRegistry
from results import Result
from servers import running
from workloads import TIMEOUT_S, alternate, random_images

from alexnet_client import Client
from alexnet_client.logs import EventLog
from alexnet_client.metrics import ClientMetrics, serve_metrics
from alexnet_client.tracing import Tracing
from alexnet_load.trial_server import free_ports
from alexnet_server.monitoring.prometheus import MonitorOptions, monitoring

CONFIGURATION = Path(__file__).parents[2] / "deploy/prometheus"
TASKS, TRACE_ONE_IN = 64, 100
SCRAPE_INTERVAL = "1s"


async def bench_monitoring(
    repositories: Mapping[str, Path], *, rounds: int = 9, seconds: float = 6.0
) -> AsyncIterator[Result]:
    """Measure with the INT8 model; no result if Prometheus is not installed.

    Each side has its own server; the other one is idle meanwhile. The turns are long because short turns differ by more than the 2 % of
    the goal.
    """
    if shutil.which("prometheus") is None:
        return
    repository, images = repositories["int8"], random_images()
    registry = CollectorRegistry()
    provider = TracerProvider(sampler=TraceIdRatioBased(1 / TRACE_ONE_IN))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="alexnet-monitoring-")))
        endpoint = stack.enter_context(trace_collector())
        options = ("--trace-endpoint", endpoint, "--trace-rate", str(TRACE_ONE_IN))
        monitored_server = stack.enter_context(running(repository, *options))
        plain_server = stack.enter_context(running(repository))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        exporter = stack.enter_context(serve_metrics(0, registry=registry))
        targets = {"triton": monitored_server.metrics_port, "client": exporter.port}
        stack.enter_context(prometheus(scratch, targets))
        async with AsyncExitStack() as clients:
            listeners = [ClientMetrics(registry), EventLog()]
            monitored = await clients.enter_async_context(
                Client(monitored_server.target, timeout_s=TIMEOUT_S, listeners=listeners, tracing=Tracing(provider))
            )
            plain = await clients.enter_async_context(Client(plain_server.target, timeout_s=TIMEOUT_S))
            sides = {
                name: (lambda caller, client=client: client.infer(images[caller % 64][np.newaxis]), 1, TASKS)
                for name, client in (("monitored", monitored), ("plain", plain))
            }
            found = await alternate(sides, rounds, seconds)
        provider.shutdown()
    yield Result.ratio(
        f"monitoring: throughput with metrics, logs, 1 trace in {TRACE_ONE_IN} requests and a scrape interval of "
        f"{SCRAPE_INTERVAL}, monitored / plain",
        *([turn.throughput for turn in found[side]] for side in ("monitored", "plain")),
        goal=0.98,
    )


@contextmanager
def trace_collector() -> Iterator[str]:
    """Run an HTTP endpoint that accepts and discards spans, and yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def prometheus(scratch: Path, targets: dict[str, int]) -> Iterator[None]:
    """Run Prometheus with the committed rules and a short scrape interval."""
    directory = scratch / "prometheus"
    shutil.copytree(CONFIGURATION, directory)
    config = directory / "prometheus.yml"
    content = yaml.safe_load(config.read_text())
    content["global"] |= {"scrape_interval": SCRAPE_INTERVAL, "scrape_timeout": SCRAPE_INTERVAL}
    config.write_text(yaml.safe_dump(content))
    for path in (directory / "targets").glob("*.yml"):
        path.unlink()
    for name, port in targets.items():
        (directory / f"targets/{name}.yml").write_text(yaml.safe_dump([{"targets": [f"127.0.0.1:{port}"]}]))
    with monitoring(MonitorOptions(directory, scratch / "data", *free_ports(2))):
        yield
