"""Work on a stream, many items at a time, answers in the order of the items, memory bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


async def in_order(
    work: Callable[[Item], Awaitable[Answer]], items: Iterable[Item] | AsyncIterable[Item], *, window: int
) -> AsyncGenerator[Answer, None]:
    """What ``work`` makes of each item, in order; at most ``window`` items are taken and not yet given back.

    An item whose work fails raises in its place; the rest is cancelled then, as it is when the stream is closed early.
    """
    pending: deque[asyncio.Task[Answer]] = deque()

    async def run(item: Item) -> Answer:
        return await work(item)

    try:
        async for item in _each(items):
            pending.append(asyncio.create_task(run(item)))
            if len(pending) >= window:
                yield await pending.popleft()
            while pending and pending[0].done():
                yield pending.popleft().result()
        while pending:
            yield await pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
