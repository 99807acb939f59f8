"""Log lines: for people at a terminal, as JSON elsewhere, with the trace they belong to. For programs; nothing here on import.

No line holds an image, an answer or metadata of a connection.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from pythonjsonlogger.json import JsonFormatter

from alexnet_client.events import Ejected, Event, Hedged, Retried, RetryBudgetExhausted, SharedMemoryFallback

OURS = ("alexnet_client", "alexnet_load", "alexnet_server", "triton")
"""Loggers of this project; of others, warnings are enough."""


def configure_logs(program: str, *, level: int = logging.INFO) -> None:
    """Log to stderr: lines such as "program: message" at a terminal, one JSON object a line elsewhere.

    Args:
        program: its name, for people.
        level: of our least important line.
    """
    root = logging.getLogger()
    for each in [each for each in root.handlers if isinstance(each, _Stderr)]:
        root.removeHandler(each)
    root.addHandler(_Stderr(program))
    for name in OURS:
        logging.getLogger(name).setLevel(level)


class _Stderr(logging.Handler):
    """Writes to whatever ``sys.stderr`` is by then, in the form that suits it."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self.addFilter(add_trace)
        self._plain = logging.Formatter(f"{program}: %(message)s")
        self._json = _Json("{levelname}{name}{message}", style="{")

    def emit(self, record: logging.LogRecord) -> None:
        """One line, at once."""
        try:
            formatter = self._plain if sys.stderr.isatty() else self._json
            print(formatter.format(record), file=sys.stderr, flush=True)
        except Exception:  # noqa: BLE001  what logging does with a line it cannot write
            self.handleError(record)


class _Json(JsonFormatter):
    """``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, and whatever the line was given as ``extra``."""

    def __init__(self, fmt: str, *, style: str) -> None:
        super().__init__(fmt, style=style, rename_fields={"levelname": "level", "name": "logger"})

    def add_fields(
        self, log_data: dict[str, object], record: logging.LogRecord, message_dict: dict[str, object]
    ) -> None:
        """Put the time first."""
        log_data["time"] = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        super().add_fields(log_data, record, message_dict)


def add_trace(record: logging.LogRecord) -> bool:
    """Note ``trace_id`` and ``span_id`` of the span that is current, if OpenTelemetry is in use."""
    if (trace := sys.modules.get("opentelemetry.trace")) is not None:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            record.trace_id, record.span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return True


class EventLog:
    """A listener for ``alexnet_client.Client`` that logs what somebody may want to act on; each kind once in a while.

    Args:
        every_s: how often a kind of line may come, seconds; the next one says how many were left out.
        clock: seconds that only grow.
    """

    def __init__(self, *, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._every_s, self._clock = logging.getLogger("alexnet_client"), every_s, clock
        self._said_s: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        """Log an event, or not."""
        match event:
            case Ejected():
                self._say(logging.WARNING, f"{event.replica} is left alone for a while", replica=event.replica)
            case RetryBudgetExhausted():
                self._say(logging.WARNING, f"not tried again, the budget is spent: {event.reason}", reason=event.reason)
            case SharedMemoryFallback():
                text = f"{event.replica} gets pixels over the wire: shared memory is {event.reason}"
                self._say(logging.WARNING, text, replica=event.replica, reason=event.reason)
            case Retried():
                self._say(logging.INFO, f"tried again: {event.reason}", reason=event.reason)
            case Hedged():
                self._say(logging.DEBUG, "a slow request was sent twice", won=event.won)

    def _say(self, level: int, text: str, **fields: object) -> None:
        now_s = self._clock()
        if now_s - self._said_s.get(text, -self._every_s) < self._every_s:
            self._left_out[text] = self._left_out.get(text, 0) + 1
            return
        self._said_s[text] = now_s
        if left_out := self._left_out.pop(text, 0):
            fields["left_out"] = left_out
        self._log.log(level, text, extra=fields)
