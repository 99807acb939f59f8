"""Triton's log lines are logged again with their level."""

from __future__ import annotations

import logging
import os

import pytest
from waiting import wait_until

from alexnet_server.triton_log import Line, open_log_pipe, parse


@pytest.mark.parametrize(
    ("raw", "level", "source", "text"),
    [
        (
            "I1125 10:54:12.972169 4709 model.cc:6] \"unloaded 'alexnet'\"",
            logging.INFO,
            "model.cc:6",
            "unloaded 'alexnet'",
        ),
        ('W1125 11:00:05.894159 8649 metrics.cc:798] "DCGM"', logging.WARNING, "metrics.cc:798", "DCGM"),
        ("E0101 00:00:00.000000 1 server.cc:1] no quotes", logging.ERROR, "server.cc:1", "no quotes"),
        ("F0101 00:00:00.000000 1 server.cc:1] fatal", logging.CRITICAL, "server.cc:1", "fatal"),
        ("error: creating server: Internal", logging.ERROR, "", "error: creating server: Internal"),
        ("| alexnet | 1 | READY |", logging.INFO, "", "| alexnet | 1 | READY |"),
    ],
)
def test_level_and_source_of_a_line_are_parsed(raw, level, source, text):
    assert parse(raw) == Line(level, source, text)


def test_lines_of_the_pipe_are_logged_except_empty_ones(caplog):
    caplog.set_level(logging.INFO, "triton")
    descriptor = open_log_pipe()
    os.write(descriptor, b'W0101 00:00:00.000000 1 a.cc:1] "100% odd: \xff"\n\n| table |\n')
    os.close(descriptor)
    wait_until(lambda: len(caplog.records) >= 2, "both lines are logged")
    first, second = caplog.records
    assert (first.levelname, first.getMessage(), first.source) == ("WARNING", "100% odd: \ufffd", "a.cc:1")
    assert (second.levelname, second.getMessage()) == ("INFO", "| table |")
