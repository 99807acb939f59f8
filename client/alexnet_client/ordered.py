"""Work on a stream, many items at a time, answers in the order of the items, memory bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


async def in_order(
    work: Callable[[Item], Awaitable[Answer]], items: Iterable[Item] | AsyncIterable[Item], *, window: int
) -> AsyncGenerator[Answer, None]:
    """What ``work`` makes of each item, in order; at most ``window`` items are taken and not yet given back.

    An answer is given as soon as it and those before it are there, whether or not its source has another item by then.
    An item whose work fails raises in its place; the rest is cancelled then, as it is when the stream is closed early.
    """
    pending: deque[asyncio.Task[Answer]] = deque()
    plain = None if isinstance(items, AsyncIterable) else iter(items)
    source = aiter(items) if isinstance(items, AsyncIterable) else None
    coming: asyncio.Task[list[Item]] | None = None  # the next item of an asynchronous source; none at its end
    ended = False

    async def run(item: Item) -> Answer:
        return await work(item)

    try:
        while True:
            taken: list[Item] = []
            if plain is not None:
                taken = list(islice(plain, window - len(pending)))
            elif coming is not None and coming.done():
                taken, coming = coming.result(), None
                ended = not taken
            pending.extend(asyncio.create_task(run(item)) for item in taken)
            if source is not None and not ended and coming is None and len(pending) < window:
                coming = asyncio.create_task(_next(source))
            waited = [*islice(pending, 1), *([] if coming is None else [coming])]
            if not waited:
                return
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            while pending and pending[0].done():
                yield pending.popleft().result()
    finally:
        rest = [*pending, *([] if coming is None else [coming])]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


async def _next(source: AsyncIterator[Item]) -> list[Item]:
    try:
        return [await anext(source)]
    except StopAsyncIteration:
        return []
