"""Triton's own lines, as the launcher reads them."""

from __future__ import annotations

import logging
import os
import time

import pytest

from alexnet_server.triton_log import Line, parse, pass_on


@pytest.mark.parametrize(
    ("raw", "level", "source", "text"),
    [
        (
            "I1125 10:54:12.972169 4709 model_lifecycle.cc:624] \"successfully unloaded 'alexnet' version 1\"",
            logging.INFO,
            "model_lifecycle.cc:624",
            "successfully unloaded 'alexnet' version 1",
        ),
        (
            'W1125 11:00:05.894159 8649 metrics.cc:798] "DCGM unable to start: DCGM initialization error"',
            logging.WARNING,
            "metrics.cc:798",
            "DCGM unable to start: DCGM initialization error",
        ),
        ("E0101 00:00:00.000000 1 server.cc:1] no quotes", logging.ERROR, "server.cc:1", "no quotes"),
        ("F0101 00:00:00.000000 1 server.cc:1] the end", logging.CRITICAL, "server.cc:1", "the end"),
        ("error: creating server: Internal", logging.ERROR, "", "error: creating server: Internal"),
        ("| alexnet | 1 | READY |", logging.INFO, "", "| alexnet | 1 | READY |"),
        ("", logging.INFO, "", ""),
    ],
)
def test_a_line_keeps_its_level_and_its_place(raw, level, source, text):
    assert parse(raw) == Line(level, source, text)


def test_lines_are_logged_as_they_come_and_empty_ones_are_not(caplog):
    caplog.set_level(logging.INFO, "triton")
    descriptor = pass_on()
    os.write(descriptor, b'W0101 00:00:00.000000 1 a.cc:1] "100% odd: \xff"\n\n| table |\n')
    os.close(descriptor)
    give_up_s = time.monotonic() + 5
    while len(caplog.records) < 2 and time.monotonic() < give_up_s:
        time.sleep(0.01)
    first, second = caplog.records
    assert (first.levelname, first.getMessage(), first.source) == ("WARNING", "100% odd: \ufffd", "a.cc:1")
    assert (second.levelname, second.getMessage()) == ("INFO", "| table |")
