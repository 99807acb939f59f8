"""Triton's log lines, logged again with their level."""

from __future__ import annotations

import logging
import os
import re
import threading
from dataclasses import dataclass

LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
_LINE = re.compile(r'([IWEF])\d{4} [\d:.]+ \d+ (\S+?:\d+)\] "?(.*?)"?$')


@dataclass(frozen=True)
class Line:
    """A log line: level of ``logging``, source file and line number ("" if unknown), text."""

    level: int
    source: str
    text: str


def parse(line: str) -> Line:
    """Parse a line; lines in another format (tables, output of a backend) get the level INFO."""
    found = _LINE.match(line)
    if found is None:
        return Line(logging.ERROR if line.startswith("error:") else logging.INFO, "", line)
    return Line(LEVELS[found[1]], found[2], found[3])


def open_log_pipe() -> int:
    """Return a file descriptor for Triton's output. A thread logs each line as "triton" until all writers closed it."""
    reader, writer = os.pipe()
    threading.Thread(target=_forward, args=(reader,), name="triton log", daemon=True).start()
    return writer


def _forward(descriptor: int) -> None:
    log = logging.getLogger("triton")
    with os.fdopen(descriptor, errors="replace") as lines:
        for raw in lines:
            line = parse(raw.rstrip("\n"))
            if line.text.strip():
                log.log(line.level, "%s", line.text, extra={"source": line.source} if line.source else {})
