"""The replicas with their channels: a request goes to one of them, again elsewhere if that fails, and is answered once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from alexnet_client.deadline import Deadline
from alexnet_client.errors import ClientError, Closed, DeadlineExceeded, Unavailable
from alexnet_client.events import Attempted, Ejected, Hedged, Listener, Retried, RetryBudgetExhausted, outcome_of
from alexnet_client.limit import LimitRange
from alexnet_client.replicas import Replica, ReplicaSet
from alexnet_client.retries import Patience, RetryBudget, RetryOptions, again
from alexnet_client.targets import Targets
from alexnet_client.transport import Transport

T = TypeVar("T")
TEND_EVERY_S = 0.25
RESOLVE_EVERY_S = 5.0
PROBE_TIMEOUT_S = 1.0
Call = Callable[[Transport, Deadline], Awaitable[T]]


class Fleet:
    """Sends requests to replicas of one model.

    Args:
        targets: where they are.
        model: its name, for probes.
        connect: makes the transport to an address.
        retries: how persistent to be.
        bounds: of the requests at one replica.
        on_event: told what happens.
        chance: source of randomness.
    """

    def __init__(
        self,
        targets: Targets,
        model: str,
        *,
        connect: Callable[[str], Transport],
        retries: RetryOptions,
        bounds: LimitRange,
        on_event: Listener,
        chance: random.Random,
    ) -> None:
        self._targets, self._model, self._connect = targets, model, connect
        self._retries, self._budget, self._on_event, self._chance = retries, RetryBudget(retries), on_event, chance
        self.replicas = ReplicaSet(
            targets.addresses,
            bounds=bounds,
            clock=time.monotonic,
            chance=chance,
            on_ejected=lambda replica: on_event(Ejected(replica.address)),
        )
        self._transports: dict[str, Transport] = {}
        self._patience = Patience(retries.hedge_quantile)
        self._tending: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def send(self, call: Call[T], deadline: Deadline, *, images: int, at: str = "") -> T:
        """What a replica answers; other replicas are asked if the first ones fail, within deadline and budget.

        Args:
            call: makes one attempt; the deadline it is given is the same each time.
            deadline: of all attempts together.
            images: how much work it is, to compare latencies.
            at: address of the replica to ask first, if it is in use.

        Raises:
            ClientError: what the last attempt came to.
        """
        await self._ready(deadline)
        self._budget.deposit()
        tried: list[Replica] = []
        attempt = 0
        while True:
            attempt += 1
            self._check_open()
            deadline.remaining_s("waiting to send")  # what was not sent is no replica's fault
            replica = self.replicas.choose(without=tried, rather=at)
            try:
                return await self._hedged(replica, call, deadline, images, tried)
            except ClientError as error:
                await self._before_again(error, attempt, tried, deadline)

    async def ask(self, call: Call[T], deadline: Deadline, *, at: str = "") -> T:
        """The same for a question that is no work."""
        return await self.send(call, deadline, images=0, at=at)

    async def close(self) -> None:
        """Close all channels; requests in flight are cancelled."""
        self._closed = True
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        for transport in list(self._transports.values()):
            await transport.close()

    async def _before_again(self, error: ClientError, attempt: int, tried: list[Replica], deadline: Deadline) -> None:
        """Returns when the next attempt may be made; raises what the caller is told otherwise."""
        others = any(each not in tried for each in self.replicas.usable)
        left_s = deadline.at - deadline.clock()
        step = again(error, attempt=attempt, others=others, left_s=left_s, options=self._retries, chance=self._chance)
        if self._closed:
            raise Closed("this client is closed") from error
        if step is None:
            raise self._verdict(error)
        if not self._budget.take():
            self._on_event(RetryBudgetExhausted(step.reason))
            raise self._verdict(error)
        self._on_event(Retried(step.reason))
        await asyncio.sleep(step.after_s)

    def _verdict(self, error: ClientError) -> ClientError:
        """Of several replicas that are all out of use the caller hears about each."""
        if isinstance(error, Unavailable) and not self.replicas.usable and len(self.replicas.all) > 1:
            return Unavailable(self.replicas.epitaph())
        return error

    async def _attempt(
        self, replica: Replica, call: Call[T], deadline: Deadline, images: int, tried: list[Replica]
    ) -> T:
        self.replicas.sent(replica)
        in_flight, began_s = replica.outstanding, time.monotonic()
        outcome = "ok"
        try:
            answer = await call(self._transport(replica.address), deadline)
        except ClientError as error:
            outcome = outcome_of(error)
            tried.append(replica)
            self.replicas.failed(replica, error)
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            self.replicas.failed(replica, DeadlineExceeded(f"{replica.address}: no answer before the callers gave up"))
            raise
        else:
            latency_s = time.monotonic() - began_s
            self.replicas.answered(replica, latency_s, images=images, in_flight=in_flight)
            if images:
                self._patience.seen(latency_s)
            return answer
        finally:
            self.replicas.ended(replica)
            self._on_event(Attempted(replica.address, outcome))

    async def _hedged(
        self, replica: Replica, call: Call[T], deadline: Deadline, images: int, tried: list[Replica]
    ) -> T:
        """An attempt, and a second one elsewhere if this one is among the slowest; the first good answer counts."""
        patience_s = self._patience.seconds
        if patience_s is None or len(self.replicas.usable) < 2:
            return await self._attempt(replica, call, deadline, images, tried)
        first = asyncio.ensure_future(self._attempt(replica, call, deadline, images, tried))
        racing = {first}
        try:
            await asyncio.wait(racing, timeout=patience_s)
            elsewhere = any(each is not replica for each in self.replicas.usable)
            if first.done() or not elsewhere or not self._budget.take():
                return await first
            other = self.replicas.choose(without=[replica])
            second = asyncio.ensure_future(self._attempt(other, call, deadline, images, tried))
            racing.add(second)
            done, _ = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
            winner = done.pop()
            if winner.exception() is not None:
                winner = second if winner is first else first
            answer = await winner
            self._on_event(Hedged(won=winner is second))
            return answer
        finally:
            for each in racing:
                each.cancel()
            await asyncio.gather(*racing, return_exceptions=True)

    def _transport(self, address: str) -> Transport:
        if address not in self._transports:
            self._check_open()
            self._transports[address] = self._connect(address)
        return self._transports[address]

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this client is closed")

    async def _ready(self, deadline: Deadline) -> None:
        """Know the addresses, and look after the replicas from now on."""
        self._check_open()
        if self._tending is None or self._tending.done():
            self._tending = asyncio.create_task(self._tend(), name="alexnet-client tends its replicas")
        if not self.replicas.all:
            async with deadline.over("looking up the address"):
                await self._resolve()

    async def _tend(self) -> None:
        """Probe what was ejected, and look the name up again, until the client is closed."""
        async with asyncio.TaskGroup() as group:  # a slow lookup holds up no probe
            group.create_task(self._keep_probing())
            if self._targets.name is not None:
                group.create_task(self._keep_resolving())

    async def _keep_probing(self) -> None:
        while True:
            await asyncio.sleep(TEND_EVERY_S)
            await asyncio.gather(*(self._probe(each) for each in self.replicas.due()))

    async def _keep_resolving(self) -> None:
        while True:
            await asyncio.sleep(RESOLVE_EVERY_S)
            with suppress(Unavailable):  # the addresses known so far go on serving
                await self._resolve()

    async def _probe(self, replica: Replica) -> None:
        failure: ClientError | None = None
        try:
            if not await self._transport(replica.address).model_ready(self._model, Deadline.after(PROBE_TIMEOUT_S)):
                failure = Unavailable(f"{replica.address}: {self._model} is not ready there")
        except ClientError as error:
            failure = error
        self.replicas.probed(replica, failure)

    async def _resolve(self) -> None:
        _, gone = self.replicas.update(await self._targets.resolve())
        for each in gone:
            transport = self._transports.pop(each.address, None)
            if transport is not None:
                self._spawn_close(transport, each)

    def _spawn_close(self, transport: Transport, replica: Replica) -> None:
        """Close a channel once what is in flight on it has been answered."""

        async def close() -> None:
            try:
                while replica.outstanding:  # noqa: ASYNC110  nobody signals the last answer of a replica that has gone
                    await asyncio.sleep(TEND_EVERY_S)
            finally:
                await transport.close()

        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
