"""Decoding off the event loop: a bounded pool of threads, and no more images in memory than it can work on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import numpy as np

from alexnet_client.codec import Array
from alexnet_client.deadline import Deadline
from alexnet_client.errors import BadInput, Closed
from alexnet_client.images import ImageSource, load_pixels, read_file

T = TypeVar("T")


class Decoders:
    """Threads that make pixels of images; Pillow lets go of the interpreter while it works.

    Args:
        threads: how many; 0 for one a processor.
    """

    def __init__(self, threads: int = 0) -> None:
        if threads < 0:
            raise BadInput(f"decoders must not be negative, got {threads}")
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pool: ThreadPoolExecutor | None = None  # made when it is needed: pixels need none
        self._closed = False
        self._places = asyncio.Semaphore(2 * self._threads)

    async def load(self, image: ImageSource, *, encoded: bool, deadline: Deadline) -> Array:
        """A batch of the one image: uint8 [1, 224, 224, 3], or its file's bytes if the server decodes.

        Raises:
            ImageError: it cannot be read.
            DeadlineExceeded: the deadline passed first.
        """
        if isinstance(image, np.ndarray) and not encoded:
            return load_pixels(image)[np.newaxis]
        if encoded and isinstance(image, bytes):
            return np.array([[image]], object)
        async with deadline.over("decoding"):
            if encoded:
                return np.array([[await self._on_thread(read_file, image)]], object)
            return (await self._on_thread(load_pixels, image))[np.newaxis]

    async def _on_thread(self, work: Callable[[ImageSource], T], image: ImageSource) -> T:
        await self._places.acquire()
        if self._closed:
            self._places.release()
            raise Closed("this client is closed")
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="alexnet-client-decode")
        loop = asyncio.get_running_loop()

        def leave(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop may have ended meanwhile
                loop.call_soon_threadsafe(self._places.release)

        done = self._pool.submit(work, image)
        done.add_done_callback(leave)  # a caller who gives up leaves a thread that still works
        return await asyncio.wrap_future(done)

    def close(self) -> None:
        """End the threads once they have finished what they do."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=False)
