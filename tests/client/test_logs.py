"""Format and content of log lines."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider

from alexnet_client import Client, ClientError, Connection
from alexnet_client.events import Attempted, Ejected, Retried, RetryBudgetExhausted, SharedMemoryFallback
from alexnet_client.logs import EventLog, configure_logs
from alexnet_client.retries import RetryOptions


@pytest.fixture
def configured():
    root = logging.getLogger()
    before = list(root.handlers)
    configure_logs("program")
    yield
    for handler in [each for each in root.handlers if each not in before]:
        root.removeHandler(handler)


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_without_a_terminal_each_line_is_a_json_object(configured, capsys):
    logging.getLogger("alexnet_client").warning('two\nlines of "%s"', "text", extra={"replica": "a:1"})
    (line,) = lines(capsys)
    assert datetime.fromisoformat(line.pop("time")).tzinfo == UTC
    message = 'two\nlines of "text"'
    assert line == {"level": "WARNING", "logger": "alexnet_client", "message": message, "replica": "a:1"}


def test_at_a_terminal_lines_are_plain_and_repeated_configuration_does_not_duplicate_them(
    configured, capsys, monkeypatch
):
    configure_logs("program")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    logging.getLogger("alexnet_client").warning("text", extra={"replica": "a:1"})
    assert capsys.readouterr().err == "program: text\n"


def test_a_line_contains_the_ids_of_its_trace(configured, capsys):
    with TracerProvider().get_tracer("tests").start_as_current_span("call") as span:
        logging.getLogger("alexnet_client").info("within")
    logging.getLogger("alexnet_client").info("after")
    within, after = lines(capsys)
    context = span.get_span_context()
    assert (within["trace_id"], within["span_id"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    assert "trace_id" not in after


@pytest.mark.parametrize(
    ("event", "level", "fields"),
    [
        (Ejected("a:1"), "WARNING", {"replica": "a:1"}),
        (RetryBudgetExhausted("overloaded"), "WARNING", {"reason": "overloaded"}),
        (Retried("unavailable"), "INFO", {"reason": "unavailable"}),
        (SharedMemoryFallback("a:1", "full"), "WARNING", {"replica": "a:1", "reason": "full"}),
    ],
)
def test_important_events_are_logged(configured, capsys, event, level, fields):
    EventLog()(event)
    (line,) = lines(capsys)
    assert line == line | {"level": level} | fields


def test_equal_lines_are_limited_in_rate_and_counted(configured, capsys):
    now_s = 0.0
    log = EventLog(clock=lambda: now_s)
    for now_s in (0.0, 0.1, 0.9, 1.0, 5.0):  # noqa: B007  the clock reads it
        log(Retried("overloaded"))
    log(Attempted("a:1", "ok"))
    assert [line.get("suppressed") for line in lines(capsys)] == [None, 2, None]


async def test_no_line_contains_an_image_or_a_secret(configured, capsys, server, image):
    batch = image(173)[None]
    connection = Connection(metadata=(("authorization", "Bearer secret"),))
    retries = RetryOptions(max_attempts=2)
    async with Client(server.target, connection=connection, retries=retries, listeners=[EventLog()]) as client:
        await client.infer(batch)
        server.fail = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        with pytest.raises(ClientError):
            await client.infer(batch)
    text = capsys.readouterr().err
    assert [word in text for word in ("request retried", "secret", "173")] == [True, False, False]
