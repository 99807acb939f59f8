"""The launcher's own health endpoint, which tells the truth where Triton's "ready" does not. Plain HTTP for probes.

``/ready`` is 200 while every model answers and 503 otherwise; ``/live`` is 200 as long as the launcher looks after its
server. Both carry the state as JSON. ``/metrics`` says the same to Prometheus.
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

from alexnet_server.errors import LaunchError

STALLED_AFTER_S = 30
"""A launcher that has not looked at its server for so long is stuck, seconds."""


@dataclass(frozen=True)
class Status:
    """What the endpoint says.

    Attributes:
        state: starting, ready, unready, restarting, stopping or failed.
        reason: why it is not ready; empty if it is.
        restarts: how often the server was started again since the launcher began.
        models: names of the models served.
        looked_s: when the launcher last looked, by the monotonic clock.
    """

    state: str = "starting"
    reason: str = ""
    restarts: int = 0
    models: tuple[str, ...] = ()
    looked_s: float = 0.0


class Health:
    """The present status, written by the launcher and read by the endpoint's threads.

    Args:
        expiries: Unix time at which certificates expire, by name.
    """

    def __init__(self, expiries: Mapping[str, float] | None = None) -> None:
        self._status, self._expiries = Status(looked_s=time.monotonic()), expiries or {}

    @property
    def status(self) -> Status:
        """The latest."""
        return self._status

    def say(self, **changes: object) -> None:
        """Change some of the status and note that the launcher is awake."""
        self._status = replace(self._status, looked_s=time.monotonic(), **changes)  # type: ignore[arg-type]

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """HTTP status, type and body for a path."""
        status = self._status
        age_s = time.monotonic() - status.looked_s
        awake = age_s < STALLED_AFTER_S
        ready = awake and status.state == "ready"
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, _metrics(ready=ready, restarts=status.restarts, expiries=self._expiries)
        body: dict[str, object] = {**asdict(status), "last_check_age_s": round(age_s, 3)}
        del body["looked_s"]
        if path == "/ready":
            code = 200 if ready else 503
        elif path == "/live":
            code = 200 if awake and status.state != "failed" else 503
        else:
            code, body = 404, {"error": f"{path}: unknown; there are /ready, /live and /metrics"}
        return code, "application/json", json.dumps(body).encode() + b"\n"


def _metrics(*, ready: bool, restarts: int, expiries: Mapping[str, float]) -> bytes:
    registry = CollectorRegistry()
    Gauge("alexnet_server_ready", "Whether every model answers.", registry=registry).set(ready)
    Counter("alexnet_server_restarts", "Times Triton was started again.", registry=registry).inc(restarts)
    expiry = Gauge(
        "alexnet_server_certificate_expiry_timestamp_seconds",
        "When the first certificate of a file expires (roots: to trust; own: to be trusted), as of the launcher's start.",
        ["certificate"],
        registry=registry,
    )
    for name, at_s in expiries.items():
        expiry.labels(name).set(at_s)
    return generate_latest(registry)


@contextmanager
def serving(health: Health, address: str, port: int | None) -> Iterator[None]:
    """Answer on address:port while the block runs; None answers nowhere.

    Raises:
        LaunchError: the port cannot be listened on.
    """
    if port is None:
        yield
        return

    class Handler(BaseHTTPRequestHandler):
        timeout = 5  # seconds for one request; a slow reader holds one thread no longer

        def do_GET(self) -> None:  # the name is http.server's
            code, kind, content = health.answer(self.path)
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Probes are no news."""

    class HealthServer(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *where: Any) -> None:
            """A prober that went away before its answer is no fault; anything else is told as http.server tells it."""
            if not isinstance(sys.exc_info()[1], ConnectionError):
                super().handle_error(*where)

    try:
        server = HealthServer((address, port), Handler)
    except OSError as error:
        raise LaunchError(
            f"port {port} (health): cannot be bound ({error.strerror}); choose another with --health-port, or 0 for none"
        ) from None
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
