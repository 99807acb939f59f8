"""Numbers as people write them, checked."""

from __future__ import annotations

import math


def positive(text: str, *, zero: bool = False) -> float:
    """A finite number above 0, or from it; raises ``ValueError``."""
    value = float(text)
    if not (value >= 0 if zero else value > 0) or value == math.inf:
        raise ValueError(f"{text.strip()} must be {'at least 0' if zero else 'more than 0'} and finite")
    return value


def whole(text: str) -> int:
    """A whole number from 1; raises ``ValueError``."""
    value = int(text)
    if value < 1:
        raise ValueError(f"{value} must be at least 1")
    return value


def exact(value: float) -> str:
    """The shortest text that is read back as the same number."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
