"""One model on the replicas: its signature, its labels, and the inference requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from alexnet_client import codec
from alexnet_client.batcher import Batcher
from alexnet_client.batching import BatchOptions
from alexnet_client.deadline import Deadline
from alexnet_client.errors import ClientError
from alexnet_client.events import BatchCompleted, Listener
from alexnet_client.load_balancer import LoadBalancer
from alexnet_client.results import BatchResult
from alexnet_client.shared_memory import SharedMemoryTransport
from alexnet_client.signature import OUTPUTS, ModelSignature, fetch_labels, fetch_signature, read_result
from alexnet_client.transport import Transport

if TYPE_CHECKING:  # tracing is optional: the package may be missing
    from alexnet_client.tracing import Tracing


class ServedModel:
    """A model, with the queue of images for it. If ``version`` is empty, each server chooses the version."""

    def __init__(
        self,
        name: str,
        balancer: LoadBalancer,
        batching: BatchOptions,
        *,
        version: str = "",
        on_event: Listener,
        tracing: Tracing | None,
    ) -> None:
        self._name, self._version, self._balancer, self._options = name, version, balancer, batching
        self._on_event, self._tracing = on_event, tracing
        self.batcher = Batcher(
            self._send,
            options=batching,
            concurrency_limit=lambda: balancer.replicas.concurrency_limit,
            on_event=on_event,
            tracing=tracing,
        )
        balancer.replicas.on_change = self.batcher.wake
        self._fetching = asyncio.Lock()  # concurrent calls fetch the signature and the labels only once
        self._signature: ModelSignature | None = None
        self._labels: dict[str, tuple[str, ...]] = {}
        self._replica_of_version: dict[str, str] = {}

    async def signature(self, deadline: Deadline) -> ModelSignature:
        """The signature of the model; fetched once, then cached. Raises ``ClientError``."""
        if self._signature is not None:
            return self._signature
        async with deadline.over("waiting for the signature of the model"), self._fetching:
            if self._signature is None:
                self._signature = await self._balancer.send(
                    lambda transport, until: fetch_signature(transport, self._name, until), deadline
                )
                max_batch = min(self._options.max_batch, max(1, self._signature.max_batch_size))
                self.batcher.options = replace(self._options, max_batch=max_batch)
            return self._signature

    async def infer(
        self, images: codec.Array, deadline: Deadline, *, on_sent: Callable[[], None] | None = None
    ) -> BatchResult:
        """Run a batch in as many requests as necessary. Raises ``ClientError``."""
        signature = await self.signature(deadline)
        signature.check(images)
        size = max(1, signature.max_batch_size)
        if len(images) <= size:
            return await self.batcher.submit(images, deadline, on_sent=on_sent)
        parts = [
            self.batcher.submit(images[at : at + size], deadline, more=at > 0, on_sent=None if at else on_sent)
            for at in range(0, len(images), size)
        ]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(each) for each in parts]
        except BaseExceptionGroup as errors:
            raise next((each for each in errors.exceptions if isinstance(each, ClientError)), errors) from None
        return BatchResult.joined([task.result() for task in tasks])

    async def labels_of(self, version: str, deadline: Deadline) -> tuple[str, ...]:
        """Class names of a version; fetched once per version, then cached. Raises ``ClientError``."""
        if version not in self._labels:
            async with deadline.over("waiting for the labels"), self._fetching:
                if version not in self._labels:
                    await self.fetch_labels(version, deadline)
        return self._labels[version]

    async def fetch_labels(self, version: str, deadline: Deadline) -> tuple[str, ...]:
        """Fetch the class names of a version; of the default version if it is empty. Raises ``ClientError``."""
        signature = self._signature or await self.signature(deadline)
        # During a rolling update, not every server has every version.
        version, labels = await self._balancer.send(
            lambda transport, until: fetch_labels(transport, self._name, signature, version or self._version, until),
            deadline,
            prefer=self._replica_of_version.get(version, ""),
        )
        self._labels[version] = labels
        return labels

    async def _send(self, parts: Sequence[codec.Array], deadline: Deadline) -> BatchResult:
        signature = await self.signature(deadline)
        images = sum(len(part) for part in parts)
        encode = partial(codec.encode_batch, self._name, signature.input_name, parts, OUTPUTS, version=self._version)
        payload = codec.PayloadCache(encode)

        async def attempt(transport: Transport, until: Deadline) -> BatchResult:
            began_s = time.perf_counter()
            left_us = max(1, int(1e6 * until.remaining_s("waiting to send")))
            lease = await transport.lease(parts, until) if isinstance(transport, SharedMemoryTransport) else None
            request = payload.get(left_us) if lease is None else encode(timeout_us=left_us, region=lease.region.name)
            encoded_s = time.perf_counter()
            metadata = () if self._tracing is None else self._tracing.attempt(transport.target)
            if lease is None:
                response = await transport.infer(request, until, metadata)
            else:
                response = await lease.infer(request, until, metadata, encode_payload=partial(payload.get, left_us))
            served_s = time.perf_counter()
            result = read_result(response, signature, images, transport.target)
            self._replica_of_version[result.model_version] = transport.target
            ended_s = time.perf_counter()
            self._on_event(BatchCompleted(images, encoded_s - began_s, served_s - encoded_s, ended_s - served_s))
            return result

        return await self._balancer.send(attempt, deadline, images=images)
