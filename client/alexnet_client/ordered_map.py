"""Process a stream concurrently, with results in the order of the items and bounded memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def map_in_order(
    work: Callable[[Item], Awaitable[Result]], items: Iterable[Item] | AsyncIterable[Item], *, window: int
) -> AsyncGenerator[Result, None]:
    """Yield the results of ``work`` in the order of the items; at most ``window`` items are in progress.

    A result is yielded as soon as all results before it were yielded, even if the source has no further item yet. An error of
    an item is raised in its place; the items after it are cancelled, as they are when the generator is closed early.
    """
    pending: deque[asyncio.Task[Result]] = deque()
    plain = None if isinstance(items, AsyncIterable) else iter(items)
    source = aiter(items) if isinstance(items, AsyncIterable) else None
    next_item: asyncio.Task[list[Item]] | None = None  # of an asynchronous source; an empty list at its end
    ended = False

    async def run(item: Item) -> Result:
        return await work(item)

    try:
        while True:
            taken: list[Item] = []
            if plain is not None:
                taken = list(islice(plain, window - len(pending)))
            elif next_item is not None and next_item.done():
                taken, next_item = next_item.result(), None
                ended = not taken
            pending.extend(asyncio.create_task(run(item)) for item in taken)
            if source is not None and not ended and next_item is None and len(pending) < window:
                next_item = asyncio.create_task(_next(source))
            awaited = [*islice(pending, 1), *([] if next_item is None else [next_item])]
            if not awaited:
                return
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            while pending and pending[0].done():
                yield pending.popleft().result()
    finally:
        rest = [*pending, *([] if next_item is None else [next_item])]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


async def _next(source: AsyncIterator[Item]) -> list[Item]:
    try:
        return [await anext(source)]
    except StopAsyncIteration:
        return []
