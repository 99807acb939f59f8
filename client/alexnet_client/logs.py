"""Logging for programs: plain lines at a terminal, JSON lines elsewhere, with the IDs of the current trace.

No log line contains an image, a result or the metadata of a connection.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from pythonjsonlogger.json import JsonFormatter

from alexnet_client.events import Ejected, Event, Retried, RetryBudgetExhausted, SharedMemoryFallback

PROJECT_LOGGERS = ("alexnet_client", "alexnet_load", "alexnet_server", "triton")
"""Loggers of this project; other loggers log warnings and errors only."""
INTERVAL_S = 1.0
"""Minimum time between two equal lines of an ``EventLog``, seconds."""


def configure_logs(program: str) -> None:
    """Log to stderr: lines such as "program: message" at a terminal, otherwise one JSON object per line."""
    root = logging.getLogger()
    for each in [each for each in root.handlers if isinstance(each, _StderrHandler)]:
        root.removeHandler(each)
    root.addHandler(_StderrHandler(program))
    for name in PROJECT_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


class _StderrHandler(logging.Handler):
    """Writes to the current ``sys.stderr``, in the format that suits it."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self.addFilter(add_trace)
        self._plain = logging.Formatter(f"{program}: %(message)s")
        self._json = _Json("{levelname}{name}{message}", style="{")

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line and flush it."""
        try:
            formatter = self._plain if sys.stderr.isatty() else self._json
            print(formatter.format(record), file=sys.stderr, flush=True)
        except Exception:  # noqa: BLE001  required by logging: a log line must not raise an exception
            self.handleError(record)


class _Json(JsonFormatter):
    """``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, and the ``extra`` fields of the record."""

    def __init__(self, fmt: str, *, style: str) -> None:
        super().__init__(fmt, style=style, rename_fields={"levelname": "level", "name": "logger"})

    def add_fields(
        self, log_data: dict[str, object], record: logging.LogRecord, message_dict: dict[str, object]
    ) -> None:
        """Add the time as the first field."""
        log_data["time"] = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        super().add_fields(log_data, record, message_dict)


def add_trace(record: logging.LogRecord) -> bool:
    """Add ``trace_id`` and ``span_id`` of the current span to a record, if OpenTelemetry is in use."""
    if (trace := sys.modules.get("opentelemetry.trace")) is not None:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            record.trace_id, record.span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return True


class EventLog:
    """A listener for ``Client`` that logs ejections, retries and fallbacks; equal lines at most once per second.

    The field ``suppressed`` is the number of equal lines that were not logged since the previous one.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = logging.getLogger("alexnet_client"), clock
        self._logged_at_s: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        """Log an event."""
        match event:
            case Ejected():
                self._write(logging.WARNING, f"{event.replica} was ejected", replica=event.replica)
            case RetryBudgetExhausted():
                text = f"request not retried, the retry budget is exhausted: {event.reason}"
                self._write(logging.WARNING, text, reason=event.reason)
            case SharedMemoryFallback():
                text = f"{event.replica}: falling back to the gRPC payload, shared memory is {event.reason}"
                self._write(logging.WARNING, text, replica=event.replica, reason=event.reason)
            case Retried():
                self._write(logging.INFO, f"request retried: {event.reason}", reason=event.reason)

    def _write(self, level: int, text: str, **fields: object) -> None:
        now_s = self._clock()
        if now_s - self._logged_at_s.get(text, -math.inf) < INTERVAL_S:
            self._suppressed[text] = self._suppressed.get(text, 0) + 1
            return
        self._logged_at_s[text] = now_s
        if suppressed := self._suppressed.pop(text, 0):
            fields["suppressed"] = suppressed
        self._log.log(level, text, extra=fields)
