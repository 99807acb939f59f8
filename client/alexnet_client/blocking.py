"""``BlockingClient``: the client for programs without an event loop. It runs one on its own thread."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, suppress
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from alexnet_client.client import Client
from alexnet_client.errors import BadInput, ClientError, Closed
from alexnet_client.images import ImageSource
from alexnet_client.results import Classification

P = ParamSpec("P")
T = TypeVar("T")


def _parameters_of(
    _: Callable[P, Client],
) -> Callable[[Callable[..., None]], Callable[Concatenate[BlockingClient, P], None]]:
    """Declare for type checkers that a constructor has the parameters of another one."""
    return lambda init: init


def _check_no_loop() -> None:
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        raise BadInput("an event loop runs in this thread and would be blocked: use Client with await there")


def _blocking(
    method: Callable[Concatenate[Client, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[BlockingClient, P], T]:
    @wraps(method)
    def call(self: BlockingClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._result(self._start(partial(method, self._client, *args, **kwargs)))

    return call


class BlockingClient(AbstractContextManager["BlockingClient"]):
    """``Client`` for programs without an event loop. It has the same arguments and is thread-safe.

        with BlockingClient("127.0.0.1:8001") as client:
            result = client.classify("photo.jpg")

    Images of several threads share requests. Ctrl-C cancels the interrupted call.

    Raises:
        BadInput: an argument is invalid, or an event loop runs in this thread and would be blocked.
    """

    @_parameters_of(Client)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _check_no_loop()
        self._lock, self._closed = threading.Lock(), False
        created: Future[Client] = Future()

        async def run() -> None:
            async with Client(*args, **kwargs) as client:
                self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
                created.set_result(client)
                await self._stop.wait()

        def work() -> None:
            try:
                asyncio.run(run())  # it cancels the remaining tasks at its end
            except BaseException as error:  # noqa: BLE001  the constructor waits for a result or an exception
                created.set_exception(error)

        self._thread = threading.Thread(target=work, name="alexnet-client", daemon=True)
        self._thread.start()
        self._client = created.result()

    classify = _blocking(Client.classify)
    infer = _blocking(Client.infer)
    labels = _blocking(Client.labels)
    ready = _blocking(Client.ready)

    def classify_many(
        self,
        images: Iterable[ImageSource],
        *,
        top: int = 5,
        timeout_s: float | None = None,
        window: int = 0,
        return_errors: bool = False,
    ) -> Iterator[Classification | ClientError]:
        """Like ``Client.classify_many``, as a plain generator; images are read in the thread of the caller."""
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
        """Close the client and stop its thread; calls of other threads raise ``Closed``."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        _check_no_loop()
        with self._lock:  # no work may be scheduled after the event loop was stopped
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
