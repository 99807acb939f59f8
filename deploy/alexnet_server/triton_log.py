"""Triton's own lines, passed on with their level."""

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
    """One of its lines: level as ``logging`` counts, the place in its source ("" if it has none), the text."""

    level: int
    source: str
    text: str


def parse(line: str) -> Line:
    """Read a line; what is not in its own format (tables, the words of a backend) is information."""
    found = _LINE.match(line)
    if found is None:
        return Line(logging.ERROR if line.startswith("error:") else logging.INFO, "", line)
    return Line(LEVELS[found[1]], found[2], found[3])


def pass_on() -> int:
    """A descriptor for Triton's output; a thread logs its lines as "triton" until the other end is closed."""
    ours, theirs = os.pipe()
    threading.Thread(target=_pump, args=(ours,), name="triton's lines", daemon=True).start()
    return theirs


def _pump(descriptor: int) -> None:
    log = logging.getLogger("triton")
    with os.fdopen(descriptor, errors="replace") as lines:
        for raw in lines:
            line = parse(raw.rstrip("\n"))
            if line.text.strip():
                log.log(line.level, "%s", line.text, extra={"source": line.source} if line.source else {})
