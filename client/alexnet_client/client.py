"""``Client``: classify images on Triton servers. The asyncio shell over batcher, fleet, codec and decoding."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from alexnet_client import codec
from alexnet_client.answers import BatchAnswer, Classification, Guess, ModelSignature
from alexnet_client.batcher import Batcher
from alexnet_client.batching import BatchOptions
from alexnet_client.connection import Connection
from alexnet_client.deadline import Deadline
from alexnet_client.decoding import Decoders
from alexnet_client.errors import BadInput, ClientError
from alexnet_client.events import BatchAnswered, CallEnded, Event, Listener, outcome_of
from alexnet_client.fleet import Fleet
from alexnet_client.images import ImageSource
from alexnet_client.ordered import in_order
from alexnet_client.retries import RetryOptions
from alexnet_client.signature import OUTPUTS, ask_labels, ask_signature, read_answer
from alexnet_client.targets import Targets, parse_targets
from alexnet_client.transport import Transport

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
        model: its name there.
        timeout_s: deadline of a call that names none, seconds; it covers everything the call does.
        batching: how images become batches, and how many may wait.
        retries: how persistent to be.
        connection: security, metadata, compression, gRPC's own balancing.
        decoders: threads that decode images; 0 for one a processor.
        listeners: told what happens, such as ``alexnet_client.metrics.ClientMetrics``.

    Raises:
        BadInput: an argument makes no sense.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        model: str = "alexnet",
        timeout_s: float = 10.0,
        batching: BatchOptions | None = None,
        retries: RetryOptions | None = None,
        connection: Connection | None = None,
        decoders: int = 0,
        listeners: Sequence[Listener] = (),
    ) -> None:
        if not 0 < timeout_s < math.inf:
            raise BadInput(f"timeout_s must be positive and finite, got {timeout_s}")
        self.target, self.model, self.timeout_s = target, model, timeout_s
        self._batching, self._listeners = batching or BatchOptions(), tuple(listeners)
        connection = connection or Connection()
        targets = parse_targets(target)
        if connection.balance == "grpc":
            targets = Targets(target, (_grpc_name(targets),))
        self._fleet = Fleet(
            targets,
            model,
            connect=lambda address: Transport(address, connection),
            retries=retries or RetryOptions(),
            most_in_flight=self._batching.most_in_flight,
            on_event=self._tell,
            chance=random.Random(),  # noqa: S311  it spreads load
        )
        self._batcher = Batcher(
            self._send, options=self._batching, capacity=lambda: self._fleet.replicas.capacity, on_event=self._tell
        )
        self._decoders = Decoders(decoders)
        self._asking = asyncio.Lock()  # many callers at once ask for signature and labels once
        self._signature: ModelSignature | None = None
        self._labels: dict[str, tuple[str, ...]] = {}
        for listener in self._listeners:
            if (watch := getattr(listener, "watch", None)) is not None:
                watch(self._batcher, self._fleet.replicas)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls in flight and in the queue are told ``Closed``."""
        await self._batcher.close()
        await self._fleet.close()
        self._decoders.close()

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
        deadline, began_s = self._deadline(timeout_s), time.monotonic()
        failure: ClientError | None = None
        try:
            signature = await self._signature_by(deadline)
            batch = await self._decoders.load(image, encoded=signature.encoded, deadline=deadline)
            answer = await self._batcher.submit(batch, deadline)
            labels = await self._labels_of(answer.model_version, deadline)
        except ClientError as error:
            failure = error
            raise
        finally:
            self._tell(CallEnded(outcome_of(failure), 1, time.monotonic() - began_s))
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

        async for answer in in_order(one, images, window=window or 4 * self._batching.max_batch):
            yield answer

    async def infer(self, images: npt.NDArray[Any], *, timeout_s: float | None = None) -> BatchAnswer:
        """Run a batch: uint8 [N, 224, 224, 3]. More than the server takes at once travels in several requests.

        A model that reads files takes an array [N, 1] of their bytes (dtype object).

        Raises:
            BadInput: the server refuses its shape or dtype.
            ClientError: its other subclasses say what to do.
        """
        deadline, began_s = self._deadline(timeout_s), time.monotonic()
        if not isinstance(images, np.ndarray):
            raise BadInput(f"a batch is uint8 [N, 224, 224, 3], not a {type(images).__name__}")
        failure: ClientError | None = None
        try:
            signature = await self._signature_by(deadline)
            signature.check(images)
            most = max(1, signature.max_batch_size)
            parts = [images[start : start + most] for start in range(0, len(images), most)]
            if len(parts) == 1:
                return await self._batcher.submit(images, deadline)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._batcher.submit(part, deadline)) for part in parts]
            return BatchAnswer.joined([task.result() for task in tasks])
        except ClientError as error:
            failure = error
            raise
        except BaseExceptionGroup as errors:
            failure = next((each for each in errors.exceptions if isinstance(each, ClientError)), None)
            raise failure or errors from None
        finally:
            self._tell(CallEnded(outcome_of(failure), len(images), time.monotonic() - began_s))

    async def signature(self, *, timeout_s: float | None = None) -> ModelSignature:
        """What the server says of the model; asked once, then remembered."""
        return await self._signature_by(self._deadline(timeout_s))

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
        await self._ask_labels("", deadline)  # Triton 2.51 stays "ready" with a dead backend; an answer is proof
        return True

    async def server_version(self, *, timeout_s: float | None = None) -> str:
        """Triton's version, such as "2.51.0"."""
        deadline = self._deadline(timeout_s)
        return str((await self._fleet.ask(lambda transport, until: transport.server_metadata(until), deadline)).version)

    async def labels(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """Class names of the release that serves now, in the order of the logits."""
        deadline = self._deadline(timeout_s)
        return self._labels[await self._ask_labels("", deadline)]

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline.after(self.timeout_s if timeout_s is None else timeout_s)

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    async def _send(self, parts: Sequence[codec.Array], deadline: Deadline) -> BatchAnswer:
        """One request for the batch, at whatever replica answers it."""
        signature = await self._signature_by(deadline)
        images = sum(len(part) for part in parts)

        async def attempt(transport: Transport, until: Deadline) -> BatchAnswer:
            began_s = time.perf_counter()
            left_us = max(1, int(1e6 * until.remaining_s("waiting to send")))
            request = codec.encode_batch(self.model, signature.input_name, parts, OUTPUTS, timeout_us=left_us)
            encoded_s = time.perf_counter()
            response = await transport.infer(request, until)
            served_s = time.perf_counter()
            answer = read_answer(response, signature, images, transport.target)
            ended_s = time.perf_counter()
            self._tell(BatchAnswered(images, encoded_s - began_s, served_s - encoded_s, ended_s - served_s))
            return answer

        return await self._fleet.send(attempt, deadline, images=images)

    async def _signature_by(self, deadline: Deadline) -> ModelSignature:
        if self._signature is not None:
            return self._signature
        async with self._asking:
            if self._signature is None:
                self._signature = await self._fleet.ask(
                    lambda transport, until: ask_signature(transport, self.model, until), deadline
                )
                most = min(self._batching.max_batch, max(1, self._signature.max_batch_size))
                self._batcher.options = replace(self._batching, max_batch=most)
            return self._signature

    async def _labels_of(self, version: str, deadline: Deadline) -> tuple[str, ...]:
        if version not in self._labels:
            async with self._asking:
                if version not in self._labels:
                    await self._ask_labels(version, deadline)
        return self._labels[version]

    async def _ask_labels(self, version: str, deadline: Deadline) -> str:
        signature = self._signature or await self._signature_by(deadline)
        version, names = await self._fleet.ask(
            lambda transport, until: ask_labels(transport, self.model, signature, version, until), deadline
        )
        self._labels[version] = names
        return version


def _grpc_name(targets: Targets) -> str:
    """The targets as one name for gRPC, which then balances by itself."""
    if targets.name is not None:
        return targets.text
    return f"ipv4:{','.join(targets.addresses)}"
