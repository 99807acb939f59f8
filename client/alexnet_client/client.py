"""``Client``: classifies images on Triton servers."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alexnet_client.admin import loopback_address
from alexnet_client.batching import BatchOptions
from alexnet_client.concurrency import ConcurrencyRange
from alexnet_client.connection import Connection
from alexnet_client.deadline import Deadline
from alexnet_client.decoding import Decoder
from alexnet_client.errors import BadInput, ClientError
from alexnet_client.events import CallEnded, Event, Listener, outcome_of
from alexnet_client.images import ImageSource
from alexnet_client.load_balancer import LoadBalancer
from alexnet_client.ordered_map import map_in_order
from alexnet_client.resolver import parse_targets
from alexnet_client.results import BatchResult, Classification, Prediction
from alexnet_client.retries import RetryOptions
from alexnet_client.served_model import ServedModel
from alexnet_client.shared_memory import SharedMemoryTransport
from alexnet_client.signature import ModelSignature
from alexnet_client.transport import Transport

if TYPE_CHECKING:  # tracing is optional: the package may be missing
    from alexnet_client.tracing import Tracing

DEFAULT_TARGET = "127.0.0.1:8001"


class Client(AbstractAsyncContextManager["Client"]):
    """An image classifier on one or more Triton servers.

        async with Client("127.0.0.1:8001,127.0.0.1:8011") as client:
            result = await client.classify("photo.jpg")

    Images of concurrent calls share requests. The names of tensors and classes come from the server, so a model with other
    classes needs no change here. A client must be used in one event loop.

    Args:
        target: host:port of the gRPC endpoint of a server, several separated by commas, or ``dns:///name:port``, each of
            whose addresses is a server.
        model: name of the model on the servers.
        version: of the model to request; empty lets each server choose.
        timeout_s: default deadline of a call, seconds; it includes decoding, queueing and all attempts.
        batching: sizes and delays of batches, limits of the queue.
        retries: limits and waits of retries, hedging.
        connection: TLS and metadata.
        listeners: receive all events, for example ``alexnet_client.metrics.ClientMetrics``.
        tracing: creates spans of calls and batches.
        shared_memory: pass pixels to the servers in shared memory instead of the gRPC payload. Requires servers on this machine
            with loopback addresses that the launcher of the same user started.

    Raises:
        BadInput: an argument is invalid.
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
        if shared_memory:
            for address in targets.addresses:
                loopback_address(address)
        connect = partial(SharedMemoryTransport, on_event=self._publish) if shared_memory else Transport
        self._balancer = LoadBalancer(
            targets,
            model,
            connect=lambda address: connect(address, connection),
            retries=retries or RetryOptions(),
            bounds=ConcurrencyRange(batching.min_in_flight, batching.max_in_flight),
            on_event=self._publish,
            rng=random.Random(),  # noqa: S311  for load balancing and backoff
        )
        self._model = ServedModel(
            model, self._balancer, batching, version=version, on_event=self._publish, tracing=tracing
        )
        self._decoder = Decoder()
        for listener in self._listeners:
            if (watch := getattr(listener, "watch", None)) is not None:
                watch(self._model.batcher, self._balancer.replicas, model=model, tls=connection.tls)

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; queued calls and calls in flight raise ``Closed``."""
        try:
            await self._model.batcher.close()
        finally:
            self._decoder.close()
            await self._balancer.close()

    async def classify(self, image: ImageSource, *, top: int = 5, timeout_s: float | None = None) -> Classification:
        """Classify one image.

        Args:
            image: path, bytes of a JPEG, PNG or WebP file, PIL image, or uint8 [224, 224, 3]. A model that reads files accepts
                only a path or bytes, and gets the file unchanged.
            top: number of classes in ``Classification.top``.
            timeout_s: deadline of this call, seconds.

        Raises:
            ImageError: the image cannot be read.
            ClientError: see its subclasses.
        """
        if top < 1:
            raise BadInput(f"top must be at least 1, got {top}")
        deadline = self._deadline(timeout_s)
        with self._call("classify", 1):
            signature = await self._model.signature(deadline)
            batch = await self._decoder.load(image, encoded=signature.encoded, deadline=deadline)
            result = await self._model.batcher.submit(batch, deadline)
            labels = await self._model.labels_of(result.model_version, deadline)
        probabilities = result.probabilities[0]
        best = np.argsort(-probabilities, kind="stable")[:top]
        predictions = tuple(Prediction(labels[index], int(index), float(probabilities[index])) for index in best)
        return Classification(predictions, result.logits[0], probabilities, result.model_version)

    async def classify_many(
        self,
        images: Iterable[ImageSource] | AsyncIterable[ImageSource],
        *,
        top: int = 5,
        timeout_s: float | None = None,
        window: int = 0,
        return_errors: bool = False,
    ) -> AsyncIterator[Classification | ClientError]:
        """Classify a stream of images concurrently, with results in the order of the images.

        Args:
            images: as for ``classify``; read when they are needed.
            top: number of classes in ``Classification.top``.
            timeout_s: deadline of each image, seconds.
            window: maximum number of images in progress; 0 for four batches.
            return_errors: yield the error of an image in its place instead of raising it.
        """

        async def classify(image: ImageSource) -> Classification | ClientError:
            try:
                return await self.classify(image, top=top, timeout_s=timeout_s)
            except ClientError as error:
                if return_errors:
                    return error
                raise

        async with aclosing(map_in_order(classify, images, window=window or self.window)) as results:
            async for result in results:
                yield result

    @property
    def window(self) -> int:
        """Default ``window`` of ``classify_many``: four batches."""
        return 4 * self._model.batcher.options.max_batch

    async def infer(
        self,
        images: npt.NDArray[Any],
        *,
        timeout_s: float | None = None,
        on_sent: Callable[[], None] | None = None,
    ) -> BatchResult:
        """Run a batch. If it is larger than the server's largest batch, it is sent as several requests.

        Args:
            images: uint8 [N, 224, 224, 3]; for a model that reads files, their bytes (dtype object [N, 1]).
            timeout_s: deadline of this call, seconds.
            on_sent: called in the event loop when the first images leave the queue of this client.

        Raises:
            BadInput: the shape or dtype does not match the model.
            ClientError: see its subclasses.
        """
        deadline = self._deadline(timeout_s)
        if not isinstance(images, np.ndarray) or not images.ndim:
            raise BadInput(f"a batch must be uint8 [N, 224, 224, 3], not {type(images).__name__} {np.shape(images)}")
        with self._call("infer", len(images)):
            return await self._model.infer(images, deadline, on_sent=on_sent)

    async def signature(self, *, timeout_s: float | None = None) -> ModelSignature:
        """The signature of the model; fetched once, then cached."""
        return await self._model.signature(self._deadline(timeout_s))

    async def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether a server and the model are ready, including a test inference.

        Raises:
            ClientError: the server reports ready, but the inference failed.
        """
        deadline = self._deadline(timeout_s)
        if not await self._balancer.send(lambda transport, until: transport.ready(until), deadline):
            return False
        if not await self._balancer.send(lambda transport, until: transport.model_ready(self.model, until), deadline):
            return False
        await self._model.fetch_labels("", deadline)  # Triton 2.51 reports ready even if the backend process is dead
        return True

    async def server_version(self, *, timeout_s: float | None = None) -> str:
        """The version of Triton, such as "2.51.0"."""
        deadline = self._deadline(timeout_s)
        metadata = await self._balancer.send(lambda transport, until: transport.server_metadata(until), deadline)
        return str(metadata.version)

    async def labels(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """Class names of the default version, in the order of the logits."""
        return await self._model.fetch_labels("", self._deadline(timeout_s))

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline.after(self.timeout_s if timeout_s is None else timeout_s)

    @contextmanager
    def _call(self, name: str, images: int) -> Iterator[None]:
        """Create the span of a call and publish its outcome."""
        began_s, outcome = time.monotonic(), "cancelled"
        span = nullcontext() if self._tracing is None else self._tracing.call(name, model=self.model, images=images)
        try:
            with span:
                yield
            outcome = "ok"
        except Exception as error:
            outcome = outcome_of(error)
            raise
        finally:
            self._publish(CallEnded(outcome, images, time.monotonic() - began_s))

    def _publish(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                logging.getLogger(__name__).exception("a listener raised an exception; the call continues")
