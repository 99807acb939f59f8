"""What the log says, to whom, and what it never says."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

import grpc
import numpy as np
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
    configure_logs("a-program", level=logging.DEBUG)
    yield
    for handler in [each for each in root.handlers if each not in before]:
        root.removeHandler(handler)


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_elsewhere_than_at_a_terminal_each_line_is_a_json_object(configured, capsys):
    logging.getLogger("alexnet_client").warning('two\nlines of "%s"', "text", extra={"replica": "a:1"})
    (line,) = lines(capsys)
    age_s = (datetime.now(UTC) - datetime.fromisoformat(line.pop("time"))).total_seconds()
    assert 0 <= age_s < 10
    assert line == {
        "level": "WARNING",
        "logger": "alexnet_client",
        "message": 'two\nlines of "text"',
        "replica": "a:1",
    }


def test_a_terminal_gets_plain_lines(configured, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    logging.getLogger("alexnet_client").warning("text", extra={"replica": "a:1"})
    assert capsys.readouterr().err == "a-program: text\n"


def test_configuring_again_says_nothing_twice(configured, capsys):
    configure_logs("a-program")
    logging.getLogger("alexnet_client").info("once")
    assert len(lines(capsys)) == 1


def test_a_line_names_the_trace_it_belongs_to(configured, capsys):
    with TracerProvider().get_tracer("tests").start_as_current_span("a call") as span:
        logging.getLogger("alexnet_client").info("within")
    logging.getLogger("alexnet_client").info("after")
    within, after = lines(capsys)
    context = span.get_span_context()
    assert within["trace_id"] == f"{context.trace_id:032x}"
    assert within["span_id"] == f"{context.span_id:016x}"
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
def test_what_somebody_may_want_to_act_on_is_logged(configured, capsys, event, level, fields):
    EventLog()(event)
    (line,) = lines(capsys)
    assert line["level"] == level
    assert {name: line[name] for name in fields} == fields


def test_a_kind_of_line_comes_once_in_a_while_and_says_what_was_left_out(configured, capsys):
    now_s = 0.0
    log = EventLog(every_s=1.0, clock=lambda: now_s)
    for now_s in (0.0, 0.1, 0.9, 1.0, 5.0):  # noqa: B007  the clock reads it
        log(Retried("overloaded"))
    log(Attempted("a:1", "ok"))
    assert [line.get("left_out") for line in lines(capsys)] == [None, 2, None]


async def test_no_line_holds_an_image_or_a_secret(configured, capsys, scripted):
    server, target = scripted
    image = np.full((1, 224, 224, 3), 173, np.uint8)
    connection = Connection(metadata=(("authorization", "Bearer hush-hush"),))
    retries = RetryOptions(max_attempts=2)
    async with Client(target, connection=connection, retries=retries, listeners=[EventLog()]) as client:
        await client.infer(image)
        server.fail = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        with pytest.raises(ClientError):
            await client.infer(image)
    text = capsys.readouterr().err
    assert "tried again" in text, "nothing was logged, so nothing was tested"
    assert "hush-hush" not in text
    assert "173" not in text
