"""Decodes images on a bounded pool of threads, outside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import numpy as np

from alexnet_client.codec import Array
from alexnet_client.cpus import usable_cpus
from alexnet_client.deadline import Deadline
from alexnet_client.errors import Closed
from alexnet_client.images import ImageSource, load_pixels, read_file

T = TypeVar("T")


class Decoder:
    """Threads that decode images; Pillow releases the GIL while it decodes.

    Args:
        threads: number of threads; None for the number of usable CPUs.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or usable_cpus()
        self._pool: ThreadPoolExecutor | None = None  # created on first use: calls with pixels do not need it
        self._closed = False
        self._slots = asyncio.Semaphore(2 * self._threads)  # bounds the decoded images in memory

    async def load(self, image: ImageSource, *, encoded: bool, deadline: Deadline) -> Array:
        """A batch of one image: uint8 [1, 224, 224, 3], or the bytes of its file (dtype object [1, 1]) if ``encoded``.

        Raises:
            ImageError: the image cannot be read.
            DeadlineExceeded: the deadline passed.
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
        await self._slots.acquire()
        if self._closed:
            self._slots.release()
            raise Closed("this client is closed")
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="alexnet-client-decode")
        loop = asyncio.get_running_loop()

        def release(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the event loop may be closed already
                loop.call_soon_threadsafe(self._slots.release)

        done = self._pool.submit(work, image)
        done.add_done_callback(release)  # after a cancellation, the thread still finishes its image
        return await asyncio.wrap_future(done)

    def close(self) -> None:
        """Stop the threads after their current images."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=False)
