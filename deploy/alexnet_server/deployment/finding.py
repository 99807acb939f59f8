"""What a check says. Owns no rule; the other modules make these, ``__main__`` prints them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A mistake.

    Attributes:
        where: file, or overlay and object, such as "gpu: Deployment/alexnet".
        what: is wrong.
        remedy: what to do about it.
    """

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what was looked at.
        extent: how much of it.
        findings: what is wrong; empty if all is well.
        notes: what is no mistake, but must be known.
    """

    name: str
    extent: str
    findings: Sequence[Finding] = ()
    notes: Sequence[str] = ()
