"""The metrics of this process over HTTP, for Prometheus."""

from __future__ import annotations

import errno
import threading
from types import TracebackType
from typing import Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from alexnet_client.errors import BadInput


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
