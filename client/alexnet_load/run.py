"""What a run is and what it leaves: the plan, one record a request, what both sides counted. Records, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet_client.connection import Connection

OK = "ok"
"""The outcome of a request that was answered; the others are the client's exceptions in snake case."""


@dataclass(frozen=True)
class Plan:
    """What was asked of the load tester.

    Attributes:
        target: the servers, as ``alexnet_client.Client`` takes them.
        model: its name there.
        arrivals: when requests come, such as "poisson:200" (open loop) or "closed:16" (callers who wait for answers).
        duration_s: how long requests are sent, warm-up included, seconds.
        warm_up_s: the first part of it, which no figure counts, seconds.
        sizes: images in a request, and the share of requests with so many.
        images: where they come from: "generated" or a directory.
        senders: processes that send.
        timeout_s: deadline of a request, seconds.
        max_count: requests after which the run ends, whatever the time; 0 for no such bound.
        seed: of the arrivals, the sizes and the generated images.
        batching: fields of ``alexnet_client.BatchOptions`` that differ from the defaults.
        metrics_port: where the first sender shows its client's metrics, the next ones on the ports after it; 0 for nowhere.
        metrics_address: on which it does.
        tls: directory with ca.crt, tls.crt and tls.key for mutual TLS; empty for none.
        tls_name: the name in the servers' certificates, if it is not their address's.
    """

    target: str = "127.0.0.1:8001"
    model: str = "alexnet"
    arrivals: str = "poisson:100"
    duration_s: float = 60.0
    warm_up_s: float = 2.0
    sizes: tuple[tuple[int, float], ...] = ((1, 1.0),)
    images: str = "generated"
    senders: int = 1
    timeout_s: float = 10.0
    max_count: int = 0
    seed: int = 0
    batching: dict[str, Any] = field(default_factory=dict)
    metrics_port: int = 0
    metrics_address: str = "127.0.0.1"
    tls: str = ""
    tls_name: str = ""

    @property
    def connection(self) -> Connection:
        """How its servers are reached."""
        return Connection.secured(Path(self.tls) if self.tls else None, self.tls_name)

    @property
    def closed_loop(self) -> bool:
        """Whether callers wait for answers before they send again."""
        return self.arrivals.startswith("closed:")


@dataclass(frozen=True)
class Records:
    """One entry a request, in the order of their planned times; seconds since the run began.

    Attributes:
        planned_s: when it was to be sent, float64 [N].
        sent_s: when its first image left the client for a server, float64 [N]; for one that never did, when that was clear.
        ended_s: when its answer or error was there, float64 [N].
        late_s: how much after its planned time it was handed to the client: the sender's own lag, float64 [N].
        images: how many it held, int32 [N].
        outcome: index into ``outcomes``, int16 [N].
        outcomes: their names; ``OK`` is the first.
    """

    planned_s: npt.NDArray[np.float64]
    sent_s: npt.NDArray[np.float64]
    ended_s: npt.NDArray[np.float64]
    late_s: npt.NDArray[np.float64]
    images: npt.NDArray[np.int32]
    outcome: npt.NDArray[np.int16]
    outcomes: tuple[str, ...] = (OK,)

    def __len__(self) -> int:
        return len(self.planned_s)


@dataclass(frozen=True)
class ClientSide:
    """What the senders' clients counted over the whole run, warm-up included.

    Attributes:
        wall_s: from the first planned time to the last answer, seconds.
        cpu_s: processor time of each sender, seconds.
        attempts: requests that went to servers, by outcome.
        batches: images in a request that went to a server -> how many such requests were answered.
        images: images in answered requests.
        queued_s, encoded_s, served_s, decoded_s: sums over images of the time each spent in a phase: waiting for its
            batch to leave, made into bytes, on the wire and at the server, read.
        retries, retry_budget_exhausted: attempts made again or not, by reason.
        hedges, ejections: how many.
        errors: an example of each outcome that is not ``OK``.
        interrupted: the run was ended before its time.
    """

    wall_s: float = 0.0
    cpu_s: tuple[float, ...] = ()
    attempts: dict[str, int] = field(default_factory=dict)
    batches: dict[int, int] = field(default_factory=dict)
    images: int = 0
    queued_s: float = 0.0
    encoded_s: float = 0.0
    served_s: float = 0.0
    decoded_s: float = 0.0
    retries: dict[str, int] = field(default_factory=dict)
    retry_budget_exhausted: dict[str, int] = field(default_factory=dict)
    hedges: int = 0
    ejections: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


@dataclass(frozen=True)
class ServerSide:
    """What Triton counted of the model between the run's begin and end: the difference of its statistics, over all servers.

    Attributes:
        servers: how many were asked.
        success, failure: requests.
        inferences: images that were computed.
        executions: batches that were computed.
        rejected: requests refused for a full queue or an expired queue timeout; None where the server does not count them.
        queue_s, input_s, infer_s, output_s: sums over requests of the time each spent in a phase.
        request_s: sums over successful requests of the time each spent in the server.
        busy_s: sum over executions of input, infer and output: the time that instances worked.
        batches: images in an execution -> executions.
        instances: of the model, over all servers: so many executions can run at once.
        wall_s: between the two looks, seconds.
    """

    servers: int = 1
    success: int = 0
    failure: int = 0
    inferences: int = 0
    executions: int = 0
    rejected: int | None = None
    queue_s: float = 0.0
    input_s: float = 0.0
    infer_s: float = 0.0
    output_s: float = 0.0
    request_s: float = 0.0
    busy_s: float = 0.0
    batches: dict[int, int] = field(default_factory=dict)
    instances: int = 1
    wall_s: float = 0.0


@dataclass(frozen=True)
class Run:
    """A run that was made, or as much of it as its file holds.

    Attributes:
        plan: what was asked.
        records: of all requests, those of the warm-up too.
        client: what the senders counted; None if the file ends too early.
        server: what the servers counted; None if nobody could ask them, for the reason in ``server_missing``.
        server_missing: why not, in words.
        machine: where the senders ran, in words.
        started: when, ISO 8601 with the time zone.
        version: of this package.
    """

    plan: Plan
    records: Records
    client: ClientSide | None = None
    server: ServerSide | None = None
    server_missing: str = ""
    machine: str = ""
    started: str = ""
    version: str = ""
