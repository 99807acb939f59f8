"""Sends requests to the replicas: retries, hedges, probes of ejected replicas, and DNS updates."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from alexnet_client.concurrency import ConcurrencyRange
from alexnet_client.deadline import Deadline
from alexnet_client.errors import ClientError, Closed, DeadlineExceeded, Unavailable
from alexnet_client.events import Attempted, Ejected, Hedged, Listener, Retried, RetryBudgetExhausted, outcome_of
from alexnet_client.replicas import MIN_EJECTION_S, Replica, ReplicaSet
from alexnet_client.resolver import Targets
from alexnet_client.retries import HedgeDelay, RetryBudget, RetryOptions, plan_retry
from alexnet_client.transport import Transport

T = TypeVar("T")
PROBE_TIMEOUT_S = 1.0
Attempt = Callable[[Transport, Deadline], Awaitable[T]]
"""Sends one request to a replica."""


class LoadBalancer:
    """Sends requests to the replicas of one model.

    Args:
        model: name of the model, for probes.
        connect: creates the transport to an address.
        bounds: of the concurrency limit per replica.
        probe_interval_s: time between two checks for ejected replicas that are due for a probe, seconds.
        resolve_interval_s: time between two DNS lookups, seconds.
        min_ejection_s: time from ejection to the first probe, seconds.
    """

    def __init__(
        self,
        targets: Targets,
        model: str,
        *,
        connect: Callable[[str], Transport],
        retries: RetryOptions,
        bounds: ConcurrencyRange,
        on_event: Listener,
        rng: random.Random,
        probe_interval_s: float = 0.25,
        resolve_interval_s: float = 5.0,
        min_ejection_s: float = MIN_EJECTION_S,
    ) -> None:
        self._targets, self._model, self._connect = targets, model, connect
        self._retries, self._budget, self._on_event, self._rng = retries, RetryBudget(retries), on_event, rng
        self._probe_interval_s, self._resolve_interval_s = probe_interval_s, resolve_interval_s
        self.replicas = ReplicaSet(
            targets.addresses,
            bounds=bounds,
            clock=time.monotonic,
            rng=rng,
            on_ejected=lambda replica: on_event(Ejected(replica.address)),
            min_ejection_s=min_ejection_s,
        )
        self._transports: dict[str, Transport] = {}
        self._hedge_delay = HedgeDelay(retries.hedge_quantile)
        self._maintenance: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def send(self, send_to: Attempt[T], deadline: Deadline, *, images: int = 0, prefer: str = "") -> T:
        """Send a request to a replica, and to others if it fails, within the deadline and the retry budget.

        Args:
            send_to: makes one attempt.
            deadline: of all attempts together.
            images: in the request, to compare latencies of similar requests; 0 for requests without an inference.
            prefer: address of the replica for the first attempt, if it is healthy.

        Raises:
            ClientError: the error of the last attempt.
        """
        await self._start(deadline)
        self._budget.deposit()
        tried: list[Replica] = []
        attempt = 0
        while True:
            attempt += 1
            self._check_open()
            deadline.remaining_s("waiting to send")  # a request that was not sent must not count against a replica
            replica = self.replicas.choose(without=tried, prefer=prefer)
            try:
                return await self._attempt_with_hedge(replica, send_to, deadline, images, tried)
            except ClientError as error:
                await self._wait_before_retry(error, attempt, tried, deadline)

    async def close(self) -> None:
        """Close all channels; requests in flight are cancelled."""
        self._closed = True
        if self._maintenance is not None:
            self._maintenance.cancel()
            await asyncio.gather(self._maintenance, return_exceptions=True)
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        for transport in list(self._transports.values()):
            await transport.close()

    async def _wait_before_retry(
        self, error: ClientError, attempt: int, tried: list[Replica], deadline: Deadline
    ) -> None:
        """Return when the next attempt may start; raise the error if there must be none."""
        others = any(each not in tried for each in self.replicas.healthy)
        left_s = deadline.at - time.monotonic()
        retry = plan_retry(error, attempt=attempt, others=others, left_s=left_s, options=self._retries, rng=self._rng)
        if self._closed:
            raise Closed("this client is closed") from error
        if retry is None:
            raise self._final_error(error)
        if not self._budget.take():
            self._on_event(RetryBudgetExhausted(retry.reason))
            raise self._final_error(error)
        self._on_event(Retried(retry.reason))
        await asyncio.sleep(retry.after_s)

    def _final_error(self, error: ClientError) -> ClientError:
        """If all of several replicas are ejected, the error describes each of them."""
        if isinstance(error, Unavailable) and not self.replicas.healthy and len(self.replicas.all) > 1:
            return Unavailable(self.replicas.describe_errors())
        return error

    async def _attempt(
        self, replica: Replica, send_to: Attempt[T], deadline: Deadline, images: int, tried: list[Replica]
    ) -> T:
        self.replicas.started(replica)
        in_flight, began_s = replica.outstanding, time.monotonic()
        outcome = "ok"
        try:
            result = await send_to(self._transport(replica.address), deadline)
        except ClientError as error:
            outcome = outcome_of(error)
            tried.append(replica)
            self.replicas.failed(replica, error)
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            self.replicas.failed(replica, DeadlineExceeded(f"{replica.address}: no response before the cancellation"))
            raise
        else:
            latency_s = time.monotonic() - began_s
            self.replicas.succeeded(replica, latency_s, images=images, in_flight=in_flight)
            if images:
                self._hedge_delay.record(latency_s)
            return result
        finally:
            self.replicas.ended(replica)
            self._on_event(Attempted(replica.address, outcome))

    async def _attempt_with_hedge(
        self, replica: Replica, send_to: Attempt[T], deadline: Deadline, images: int, tried: list[Replica]
    ) -> T:
        """Make an attempt, and a second one at another replica if the first is slow; return the first result."""
        delay_s = self._hedge_delay.seconds
        if delay_s is None or len(self.replicas.healthy) < 2:
            return await self._attempt(replica, send_to, deadline, images, tried)
        first = asyncio.ensure_future(self._attempt(replica, send_to, deadline, images, tried))
        attempts = {first}
        try:
            await asyncio.wait(attempts, timeout=delay_s)
            others = any(each is not replica for each in self.replicas.healthy)
            if first.done() or not others or not self._budget.take():
                return await first
            other = self.replicas.choose(without=[replica])
            second = asyncio.ensure_future(self._attempt(other, send_to, deadline, images, tried))
            attempts.add(second)
            done, _ = await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED)
            winner = done.pop()
            if winner.exception() is not None:
                winner = second if winner is first else first
            result = await winner
            self._on_event(Hedged(won=winner is second))
            return result
        finally:
            for each in attempts:
                each.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)

    def _transport(self, address: str) -> Transport:
        if address not in self._transports:
            self._check_open()
            self._transports[address] = self._connect(address)
        return self._transports[address]

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this client is closed")

    async def _start(self, deadline: Deadline) -> None:
        """Start the maintenance task and resolve the addresses, if that was not done yet."""
        self._check_open()
        if self._maintenance is None or self._maintenance.done():
            self._maintenance = asyncio.create_task(self._maintain(), name="alexnet-client replica maintenance")
        if not self.replicas.all:
            async with deadline.over("resolving the address"):
                await self._resolve()

    async def _maintain(self) -> None:
        async with asyncio.TaskGroup() as group:  # a slow lookup must not delay probes
            group.create_task(self._keep_probing())
            if self._targets.name is not None:
                group.create_task(self._keep_resolving())

    async def _keep_probing(self) -> None:
        while True:
            await asyncio.sleep(self._probe_interval_s)
            await asyncio.gather(*(self._probe(each) for each in self.replicas.due_for_probe()))

    async def _keep_resolving(self) -> None:
        while True:
            await asyncio.sleep(self._resolve_interval_s)
            with suppress(Unavailable):  # keep the known addresses
                await self._resolve()

    async def _probe(self, replica: Replica) -> None:
        failure: ClientError | None = None
        try:
            if not await self._transport(replica.address).model_ready(self._model, Deadline.after(PROBE_TIMEOUT_S)):
                failure = Unavailable(f"{replica.address}: {self._model} is not ready")
        except ClientError as error:
            failure = error
        self.replicas.probed(replica, failure)

    async def _resolve(self) -> None:
        for each in self.replicas.update(await self._targets.resolve()):
            transport = self._transports.pop(each.address, None)
            if transport is not None:
                self._close_when_idle(transport, each)

    def _close_when_idle(self, transport: Transport, replica: Replica) -> None:
        async def close() -> None:
            try:
                while replica.outstanding:  # noqa: ASYNC110  there is no event for the last response of a removed replica
                    await asyncio.sleep(self._probe_interval_s)
            finally:
                await transport.close()

        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
