"""One model on a fleet of servers: what it is, what its classes are called, and batches that are sent to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from alexnet_client import codec
from alexnet_client.answers import BatchAnswer, ModelSignature
from alexnet_client.batcher import Batcher
from alexnet_client.batching import BatchOptions
from alexnet_client.deadline import Deadline
from alexnet_client.errors import ClientError
from alexnet_client.events import BatchAnswered, Listener
from alexnet_client.fleet import Fleet
from alexnet_client.shared_memory import SharedTransport
from alexnet_client.signature import OUTPUTS, ask_labels, ask_signature, read_answer
from alexnet_client.transport import Transport

if TYPE_CHECKING:  # tracing is optional: its package may be missing
    from alexnet_client.tracing import Tracing


class ServedModel:
    """A model and the queue in front of it.

    Args:
        name: on the servers.
        version: to request; empty lets each server choose.
        fleet: the servers.
        batching: how images become batches.
        on_event: told of each batch.
        tracing: makes spans.
    """

    def __init__(
        self,
        name: str,
        fleet: Fleet,
        batching: BatchOptions,
        *,
        version: str = "",
        on_event: Listener,
        tracing: Tracing | None,
    ) -> None:
        self._name, self._version, self._fleet, self._options = name, version, fleet, batching
        self._on_event, self._tracing = on_event, tracing
        self.batcher = Batcher(
            self._send,
            options=batching,
            capacity=lambda: fleet.replicas.capacity,
            on_event=on_event,
            tracing=tracing,
        )
        fleet.replicas.on_change = self.batcher.wake
        self._asking = asyncio.Lock()  # many callers at once ask for signature and labels once
        self._signature: ModelSignature | None = None
        self._labels: dict[str, tuple[str, ...]] = {}
        self._served_at: dict[str, str] = {}

    async def signature(self, deadline: Deadline) -> ModelSignature:
        """What the servers say of it; asked once, then remembered. Raises ``ClientError``."""
        if self._signature is not None:
            return self._signature
        async with deadline.over("waiting for the model's signature"), self._asking:
            if self._signature is None:
                self._signature = await self._fleet.ask(
                    lambda transport, until: ask_signature(transport, self._name, until), deadline
                )
                most = min(self._options.max_batch, max(1, self._signature.max_batch_size))
                self.batcher.options = replace(self._options, max_batch=most)
            return self._signature

    async def infer(
        self, images: codec.Array, deadline: Deadline, *, on_sent: Callable[[], None] | None = None
    ) -> BatchAnswer:
        """The answers for a batch, in as many requests as it takes; raises ``ClientError``."""
        signature = await self.signature(deadline)
        signature.check(images)
        most = max(1, signature.max_batch_size)
        if len(images) <= most:
            return await self.batcher.submit(images, deadline, on_sent=on_sent)
        starts = range(0, len(images), most)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(
                        self.batcher.submit(
                            images[start : start + most],
                            deadline,
                            more=start > 0,
                            on_sent=None if start else on_sent,
                        )
                    )
                    for start in starts
                ]
        except BaseExceptionGroup as errors:
            raise next((each for each in errors.exceptions if isinstance(each, ClientError)), errors) from None
        return BatchAnswer.joined([task.result() for task in tasks])

    async def labels_of(self, version: str, deadline: Deadline) -> tuple[str, ...]:
        """Class names of a release; asked once for each. Raises ``ClientError``."""
        if version not in self._labels:
            async with deadline.over("waiting for the labels"), self._asking:
                if version not in self._labels:
                    await self.ask_labels(version, deadline)
        return self._labels[version]

    async def ask_labels(self, version: str, deadline: Deadline) -> tuple[str, ...]:
        """Ask for the names of a release, or of the one that serves now if ``version`` is empty. Raises ``ClientError``."""
        signature = self._signature or await self.signature(deadline)
        # While a fleet is renewed, not every server has every release.
        version, names = await self._fleet.ask(
            lambda transport, until: ask_labels(transport, self._name, signature, version or self._version, until),
            deadline,
            at=self._served_at.get(version, ""),
        )
        self._labels[version] = names
        return names

    async def _send(self, parts: Sequence[codec.Array], deadline: Deadline) -> BatchAnswer:
        """One request for the batch, at whatever replica answers it."""
        signature = await self.signature(deadline)
        images = sum(len(part) for part in parts)

        async def attempt(transport: Transport, until: Deadline) -> BatchAnswer:
            began_s = time.perf_counter()
            left_us = max(1, int(1e6 * until.remaining_s("waiting to send")))
            encode = partial(
                codec.encode_batch,
                self._name,
                signature.input_name,
                parts,
                OUTPUTS,
                version=self._version,
                timeout_us=left_us,
            )
            lease = await transport.lease(parts, until) if isinstance(transport, SharedTransport) else None
            request = encode() if lease is None else encode(region=lease.name)
            encoded_s = time.perf_counter()
            metadata = () if self._tracing is None else self._tracing.attempt(transport.target)
            if lease is None:
                response = await transport.infer(request, until, metadata)
            else:
                response = await lease.infer(request, until, metadata, by_wire=encode)
            served_s = time.perf_counter()
            answer = read_answer(response, signature, images, transport.target)
            self._served_at[answer.model_version] = transport.target
            ended_s = time.perf_counter()
            self._on_event(BatchAnswered(images, encoded_s - began_s, served_s - encoded_s, ended_s - served_s))
            return answer

        return await self._fleet.send(attempt, deadline, images=images)
