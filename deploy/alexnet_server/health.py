"""The launcher's health endpoint over HTTP, for probes, load balancers and Prometheus.

``/ready`` returns 200 while every model answers, otherwise 503. ``/live`` returns 200 while the launcher checks its server.
Both return the state as JSON. ``/metrics`` returns it in Prometheus' text format.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest

from alexnet_client.files import reason
from alexnet_server.errors import LaunchError


@dataclass(frozen=True)
class Status:
    """The state that the endpoint returns.

    Attributes:
        state: starting, ready, unready, restarting, stopping or failed.
        reason: why the server is not ready; empty if it is.
        restarts: number of restarts since the launcher started.
        models: names of the served models.
    """

    state: str = "starting"
    reason: str = ""
    restarts: int = 0
    models: tuple[str, ...] = ()


class Health:
    """The current status, written by the launcher and read by the endpoint's threads.

    Args:
        expiries: Unix time at which certificates expire, by name.
        stalled_after_s: age of the last check after which the launcher counts as hanging, seconds.
    """

    def __init__(self, expiries: Mapping[str, float] | None = None, *, stalled_after_s: float = 30) -> None:
        self._status, self._checked_s = Status(), time.monotonic()
        self._expiries, self._stalled_after_s = expiries or {}, stalled_after_s

    def update(self, **changes: object) -> None:
        """Change fields of the status, and record the time of this check."""
        self._status, self._checked_s = replace(self._status, **changes), time.monotonic()  # type: ignore[arg-type]

    def respond(self, path: str) -> tuple[int, str, bytes]:
        """HTTP status, content type and body for a path."""
        status = self._status
        age_s = time.monotonic() - self._checked_s
        alive = age_s < self._stalled_after_s
        ready = alive and status.state == "ready"
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, _metrics(ready=ready, restarts=status.restarts, expiries=self._expiries)
        body: dict[str, object] = {**asdict(status), "last_check_age_s": round(age_s, 3)}
        if path == "/ready":
            code = 200 if ready else 503
        elif path == "/live":
            code = 200 if alive and status.state != "failed" else 503
        else:
            code, body = 404, {"error": f"{path}: unknown path; use /ready, /live or /metrics"}
        return code, "application/json", json.dumps(body).encode() + b"\n"


def _metrics(*, ready: bool, restarts: int, expiries: Mapping[str, float]) -> bytes:
    registry = CollectorRegistry()
    Gauge("alexnet_server_ready", "Whether every model answers (1) or not (0).", registry=registry).set(ready)
    Counter("alexnet_server_restarts", "Number of restarts of Triton.", registry=registry).inc(restarts)
    expiry = Gauge(
        "alexnet_server_certificate_expiry_timestamp_seconds",
        "Unix time at which the first certificate of a file expires (ca: trusted CAs, tls: server), read when the launcher started.",
        ["certificate"],
        registry=registry,
    )
    for name, at_s in expiries.items():
        expiry.labels(name).set(at_s)
    return generate_latest(registry)


@contextmanager
def health_endpoint(health: Health, address: str, port: int | None) -> Iterator[None]:
    """Serve the health endpoint on address:port while the block runs; no endpoint if the port is None.

    Raises:
        LaunchError: the port cannot be bound.
    """
    if port is None:
        yield
        return

    class Handler(BaseHTTPRequestHandler):
        timeout = 5  # seconds for one request, so that a slow client does not block a thread for longer

        def do_GET(self) -> None:  # http.server defines the name
            code, kind, content = health.respond(self.path)
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Do not log requests: probes are frequent."""

    class HealthServer(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: Any) -> None:
            """Ignore clients that disconnect before the response."""
            if not isinstance(sys.exc_info()[1], ConnectionError):
                super().handle_error(*arguments)

    try:
        server = HealthServer((address, port), Handler)
    except OSError as error:
        raise LaunchError(
            f"port {port} (health): cannot be bound ({reason(error)}); choose another one with --health-port, or 0 to disable"
        ) from None
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
