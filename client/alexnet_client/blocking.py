"""``BlockingClient``: the client for programs without an event loop. It lives in one, on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, suppress
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from alexnet_client.answers import Classification
from alexnet_client.client import Client
from alexnet_client.errors import BadInput, ClientError, Closed
from alexnet_client.images import ImageSource

P = ParamSpec("P")
T = TypeVar("T")


def _like(_: Callable[P, Client]) -> Callable[[Callable[..., None]], Callable[Concatenate[BlockingClient, P], None]]:
    """Tells type checkers that a constructor takes what another one takes."""
    return lambda init: init


def _check_no_loop() -> None:
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        raise BadInput("an event loop runs in this thread and would be held up: use Client there, and await it")


def _waiting(
    method: Callable[Concatenate[Client, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[BlockingClient, P], T]:
    @wraps(method)
    def call(self: BlockingClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._result(self._start(partial(method, self._client, *args, **kwargs)))

    return call


class BlockingClient(AbstractContextManager["BlockingClient"]):
    """``Client`` for programs without an event loop: it takes the same arguments, and many threads may use it at once.

        with BlockingClient("127.0.0.1:8001") as client:
            answer = client.classify("photo.jpg")

    Images of several threads travel together. Ctrl-C cancels the call that it interrupts.

    Raises:
        BadInput: an argument makes no sense, or an event loop runs in this thread and would be held up.
    """

    @_like(Client)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _check_no_loop()
        self._lock, self._closed = threading.Lock(), False
        made: Future[Client] = Future()

        async def live() -> None:
            async with Client(*args, **kwargs) as client:
                self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
                made.set_result(client)
                await self._over.wait()

        def work() -> None:
            try:
                asyncio.run(live())  # at its end whatever is still under way is cancelled
            except BaseException as error:  # noqa: BLE001  the caller waits for one or the other
                made.set_exception(error)

        self._thread = threading.Thread(target=work, name="alexnet-client", daemon=True)
        self._thread.start()
        self._client = made.result()

    classify = _waiting(Client.classify)
    infer = _waiting(Client.infer)
    labels = _waiting(Client.labels)
    ready = _waiting(Client.ready)

    def classify_many(
        self,
        images: Iterable[ImageSource],
        *,
        top: int = 5,
        timeout_s: float | None = None,
        window: int = 0,
        return_errors: bool = False,
    ) -> Iterator[Classification | ClientError]:
        """As ``Client.classify_many``, in a plain generator; images are taken in the thread of the caller."""
        window = window or self._client.window
        calls: deque[Future[Classification]] = deque()

        def first() -> Classification | ClientError:
            try:
                return self._result(calls.popleft())
            except ClientError as error:
                if return_errors:
                    return error
                raise

        try:
            for image in images:
                calls.append(self._start(partial(self._client.classify, image, top=top, timeout_s=timeout_s)))
                while calls and (len(calls) >= window or calls[0].done()):
                    yield first()
            while calls:
                yield first()
        finally:
            for call in calls:
                call.cancel()

    def close(self) -> None:
        """Close the client and end its thread; calls of other threads are told ``Closed``."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        _check_no_loop()
        with self._lock:  # so that nothing is handed to a loop that has ended
            if self._closed:
                raise Closed("this client is closed")
            return asyncio.run_coroutine_threadsafe(work(), self._loop)

    def _result(self, call: Future[T]) -> T:
        try:
            return call.result()
        except CancelledError:
            raise Closed("this client is closed") from None
        except BaseException:
            call.cancel()
            raise
