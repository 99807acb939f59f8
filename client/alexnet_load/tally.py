"""What a sender's client did, counted from its events, and the counts of several senders added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from alexnet_client.events import (
    Attempted,
    BatchAnswered,
    BatchSent,
    Ejected,
    Event,
    Hedged,
    Retried,
    RetryBudgetExhausted,
)
from alexnet_load.run import ClientSide

PHASES = ("queued", "encoded", "served", "decoded")


@dataclass
class Tally:
    """A listener for ``alexnet_client.Client``; plain numbers, so that it travels between processes.

    Attributes:
        attempts, retries, retry_budget_exhausted: by outcome or reason.
        batches: answered requests by their images.
        seconds: by phase, sums over images.
        counts: of hedges and ejections.
        errors: an example of each outcome.
        cpu_s: processor time of the sender while it sent, seconds.
    """

    attempts: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)
    retry_budget_exhausted: Counter[str] = field(default_factory=Counter)
    batches: Counter[int] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    counts: Counter[str] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)
    cpu_s: float = 0.0

    def __call__(self, event: Event) -> None:
        """Count one event."""
        match event:
            case Attempted():
                self.attempts[event.outcome] += 1
            case BatchSent():  # callers of several images wait as long for each
                self.seconds["queued"] += event.images * sum(event.waited_s) / len(event.waited_s)
            case BatchAnswered():
                self.batches[event.images] += 1
                self.seconds["encoded"] += event.images * event.encoded_s
                self.seconds["served"] += event.images * event.served_s
                self.seconds["decoded"] += event.images * event.decoded_s
            case Retried():
                self.retries[event.reason] += 1
            case RetryBudgetExhausted():
                self.retry_budget_exhausted[event.reason] += 1
            case Hedged():
                self.counts["hedges"] += 1
            case Ejected():
                self.counts["ejections"] += 1


def client_side(tallies: Iterable[Tally], *, wall_s: float, interrupted: bool) -> ClientSide:
    """The counts of all senders together."""
    sums, cpu_s = Tally(), []
    for each in tallies:
        for name in ("attempts", "retries", "retry_budget_exhausted", "batches", "counts"):
            getattr(sums, name).update(getattr(each, name))
        for phase in PHASES:
            sums.seconds[phase] += each.seconds[phase]
        sums.errors = {**each.errors, **sums.errors}
        cpu_s.append(each.cpu_s)
    return ClientSide(
        wall_s=wall_s,
        cpu_s=tuple(cpu_s),
        attempts=dict(sums.attempts),
        batches=dict(sums.batches),
        images=sum(images * count for images, count in sums.batches.items()),
        queued_s=sums.seconds["queued"],
        encoded_s=sums.seconds["encoded"],
        served_s=sums.seconds["served"],
        decoded_s=sums.seconds["decoded"],
        retries=dict(sums.retries),
        retry_budget_exhausted=dict(sums.retry_budget_exhausted),
        hedges=sums.counts["hedges"],
        ejections=sums.counts["ejections"],
        errors=sums.errors,
        interrupted=interrupted,
    )
