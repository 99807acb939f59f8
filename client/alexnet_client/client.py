"""``Client``: classify images on Triton servers. The asyncio shell over batcher, fleet, codec and decoding."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from alexnet_client.answers import BatchAnswer, Classification, Guess, ModelSignature
from alexnet_client.batching import BatchOptions
from alexnet_client.connection import Connection
from alexnet_client.deadline import Deadline
from alexnet_client.decoding import Decoders
from alexnet_client.errors import BadInput, ClientError
from alexnet_client.events import CallEnded, Event, Listener, outcome_of
from alexnet_client.fleet import Fleet
from alexnet_client.images import ImageSource
from alexnet_client.limit import LimitRange
from alexnet_client.ordered import in_order
from alexnet_client.registration import check_local
from alexnet_client.retries import RetryOptions
from alexnet_client.served_model import ServedModel
from alexnet_client.shared_memory import SharedTransport
from alexnet_client.targets import Targets, parse_targets
from alexnet_client.transport import Transport

if TYPE_CHECKING:  # tracing is optional: its package may be missing
    from alexnet_client.tracing import Tracing

DEFAULT_TARGET = "127.0.0.1:8001"


class Client:
    """An image classifier on one or more Triton servers.

        async with Client("127.0.0.1:8001,127.0.0.1:8011") as client:
            answer = await client.classify("photo.jpg")

    Images of any number of tasks travel together. Names of tensors and classes come from the server: a model of other
    classes needs no change here. A client belongs to the event loop it is first used in.

    Args:
        target: host:port of a server's gRPC endpoint, several with commas between, or ``dns:///name:port``, each of
            whose addresses is a server.
        model: name of the model on the servers.
        version: of the model to request; empty lets each server choose.
        timeout_s: deadline of a call that names none, seconds; it covers everything the call does.
        batching: how images become batches, and how many may wait.
        retries: how persistent to be.
        connection: security, metadata, compression, gRPC's own balancing.
        decoders: threads that decode images; 0 for one a processor.
        listeners: told what happens, such as ``alexnet_client.metrics.ClientMetrics``.
        tracing: makes spans of calls and batches.
        shared_memory: give pixels to the servers through this machine's memory instead of the wire; for servers that this
            user's launcher runs here, named by their loopback addresses.

    Raises:
        BadInput: an argument makes no sense.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        model: str = "alexnet",
        version: str = "",
        timeout_s: float = 10.0,
        batching: BatchOptions | None = None,
        retries: RetryOptions | None = None,
        connection: Connection | None = None,
        decoders: int = 0,
        listeners: Sequence[Listener] = (),
        tracing: Tracing | None = None,
        shared_memory: bool = False,
    ) -> None:
        if not 0 < timeout_s < math.inf:
            raise BadInput(f"timeout_s must be positive and finite, got {timeout_s}")
        self.target, self.model, self.timeout_s = target, model, timeout_s
        self._listeners, self._tracing = tuple(listeners), tracing
        batching, connection = batching or BatchOptions(), connection or Connection()
        targets = parse_targets(target)
        if connection.balance == "grpc":
            targets = Targets(target, (targets.grpc_name,))
        if shared_memory:
            for address in targets.addresses:
                check_local(address)
        connect = partial(SharedTransport, on_event=self._tell) if shared_memory else Transport
        self._fleet = Fleet(
            targets,
            model,
            connect=lambda address: connect(address, connection),
            retries=retries or RetryOptions(),
            bounds=LimitRange(batching.min_in_flight, batching.max_in_flight),
            on_event=self._tell,
            chance=random.Random(),  # noqa: S311  it spreads load
        )
        self._model = ServedModel(model, self._fleet, batching, version=version, on_event=self._tell, tracing=tracing)
        self._decoders = Decoders(decoders)
        for listener in self._listeners:
            if (watch := getattr(listener, "watch", None)) is not None:
                watch(self._model.batcher, self._fleet.replicas, model=model, tls=connection.tls)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls in flight and in the queue are told ``Closed``."""
        try:
            await self._model.batcher.close()
        finally:
            self._decoders.close()
            await self._fleet.close()

    async def classify(self, image: ImageSource, *, top: int = 5, timeout_s: float | None = None) -> Classification:
        """Classify one image.

        Args:
            image: path, bytes of a JPEG, PNG or WebP file, PIL image, or uint8 [224, 224, 3]; a model that reads
                files is sent the file as it is, so it takes a path or bytes.
            top: how many guesses to name.
            timeout_s: deadline of this call, seconds, over decoding, waiting and the answer.

        Raises:
            ImageError: the image cannot be read.
            ClientError: its subclasses say what to do.
        """
        if top < 1:
            raise BadInput(f"top must be at least 1, got {top}")
        deadline = self._deadline(timeout_s)
        with self._call("classify", 1):
            signature = await self._model.signature(deadline)
            batch = await self._decoders.load(image, encoded=signature.encoded, deadline=deadline)
            answer = await self._model.batcher.submit(batch, deadline)
            labels = await self._model.labels_of(answer.model_version, deadline)
        probabilities = answer.probabilities[0]
        best = np.argsort(-probabilities, kind="stable")[:top]
        guesses = tuple(Guess(labels[index], int(index), float(probabilities[index])) for index in best)
        return Classification(guesses, answer.logits[0], probabilities, answer.model_version)

    async def classify_many(
        self,
        images: Iterable[ImageSource] | AsyncIterable[ImageSource],
        *,
        top: int = 5,
        timeout_s: float | None = None,
        window: int = 0,
        return_errors: bool = False,
    ) -> AsyncIterator[Classification | ClientError]:
        """Classify a stream of images, in order; at most ``window`` of them are held at a time.

        Args:
            images: as for ``classify``; taken as they are needed.
            top: how many guesses to name.
            timeout_s: deadline of each image, seconds.
            window: images that are decoded, sent or waiting to be taken; 0 for four batches.
            return_errors: give an image's error in its place instead of raising it.
        """

        async def one(image: ImageSource) -> Classification | ClientError:
            try:
                return await self.classify(image, top=top, timeout_s=timeout_s)
            except ClientError as error:
                if return_errors:
                    return error
                raise

        async with aclosing(in_order(one, images, window=window or self.window)) as answers:
            async for answer in answers:
                yield answer

    @property
    def window(self) -> int:
        """Images that ``classify_many`` holds at a time if it is not told otherwise: four batches."""
        return 4 * self._model.batcher.options.max_batch

    async def infer(
        self,
        images: npt.NDArray[Any],
        *,
        timeout_s: float | None = None,
        on_sent: Callable[[], None] | None = None,
    ) -> BatchAnswer:
        """Run a batch: uint8 [N, 224, 224, 3]. More than the server takes at once travels in several requests.

        Args:
            images: a model that reads files takes an array [N, 1] of their bytes (dtype object).
            timeout_s: deadline of this call, seconds, over waiting and the answer.
            on_sent: called, in the event loop, when the first of the images leaves the client's queue for a server.

        Raises:
            BadInput: the server refuses its shape or dtype.
            ClientError: its other subclasses say what to do.
        """
        deadline = self._deadline(timeout_s)
        if not isinstance(images, np.ndarray) or not images.ndim:
            raise BadInput(f"a batch is uint8 [N, 224, 224, 3], not {type(images).__name__} {np.shape(images)}")
        with self._call("infer", len(images)):
            return await self._model.infer(images, deadline, on_sent=on_sent)

    async def signature(self, *, timeout_s: float | None = None) -> ModelSignature:
        """What the server says of the model; asked once, then remembered."""
        return await self._model.signature(self._deadline(timeout_s))

    async def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether a server and the model there are ready, proved by an inference.

        Raises:
            ClientError: they say so, but do not answer.
        """
        deadline = self._deadline(timeout_s)
        if not await self._fleet.ask(lambda transport, until: transport.ready(until), deadline):
            return False
        if not await self._fleet.ask(lambda transport, until: transport.model_ready(self.model, until), deadline):
            return False
        await self._model.ask_labels("", deadline)  # Triton 2.51 stays "ready" with a dead backend; an answer is proof
        return True

    async def server_version(self, *, timeout_s: float | None = None) -> str:
        """Triton's version, such as "2.51.0"."""
        deadline = self._deadline(timeout_s)
        return str((await self._fleet.ask(lambda transport, until: transport.server_metadata(until), deadline)).version)

    async def labels(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """Class names of the release that serves now, in the order of the logits."""
        return await self._model.ask_labels("", self._deadline(timeout_s))

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline.after(self.timeout_s if timeout_s is None else timeout_s)

    @contextmanager
    def _call(self, name: str, images: int) -> Iterator[None]:
        """A caller's own span, if there is tracing, and the record of how the call ended."""
        began_s, outcome = time.monotonic(), "cancelled"  # if the caller is cancelled
        span = nullcontext() if self._tracing is None else self._tracing.call(name, model=self.model, images=images)
        try:
            with span:
                yield
            outcome = "ok"
        except Exception as error:
            outcome = outcome_of(error)
            raise
        finally:
            self._tell(CallEnded(outcome, images, time.monotonic() - began_s))

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                logging.getLogger(__name__).exception("a listener failed; the call goes on")
