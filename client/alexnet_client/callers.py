"""Those who wait for a batch: what they gave, and how they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alexnet_client.answers import BatchAnswer
from alexnet_client.batching import Waiting
from alexnet_client.codec import Array
from alexnet_client.deadline import Deadline
from alexnet_client.errors import ClientError

if TYPE_CHECKING:  # tracing is optional: its package may be missing
    from opentelemetry.trace import Span


@dataclass(eq=False, slots=True)
class Caller:
    """One who waits: images, when nobody will wait any more, where the answer goes, and whether the images have left.

    ``span`` is the call's, if there is tracing; ``on_sent`` is told when the images leave.
    """

    part: Array
    deadline: Deadline
    waiting: Waiting
    answer: asyncio.Future[BatchAnswer]
    left: bool = False
    span: Span | None = None
    on_sent: Callable[[], None] | None = None


def size_of(part: Array) -> int:
    """Bytes of its contents; an array of files itself holds no more than where they are."""
    return sum(map(len, part.ravel())) if part.dtype.hasobject else part.nbytes


def hand_out(batch: Sequence[Caller], answer: BatchAnswer) -> None:
    start = 0
    for each in batch:
        end = start + each.waiting.images
        if not each.answer.done():
            rows = BatchAnswer(answer.logits[start:end], answer.probabilities[start:end], answer.model_version)
            each.answer.set_result(rows)
        start = end


def fail(batch: Sequence[Caller], error: ClientError) -> None:
    """An exception of its own for each caller: one that is raised in several tasks collects all their tracebacks."""
    for each in batch:
        if not each.answer.done():
            own = type(error)(*error.args)
            own.__cause__ = error
            each.answer.set_exception(own)
