"""Data of a load test: the plan, one record per request, and the statistics of client and server. No behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet_client.connection import Connection

OK = "ok"
"""Outcome of an answered request; all other outcomes are the client's exceptions in snake case."""
NO_BATCHING = {"max_batch": 1, "min_in_flight": 256, "max_in_flight": 256}
"""``BatchOptions`` of a client that sends each request immediately and unchanged, like many separate clients would."""


@dataclass(frozen=True)
class Plan:
    """What the load generator sends.

    Attributes:
        target: server addresses in the format of ``alexnet_client.Client``.
        model: name of the model on the server.
        arrivals: arrival process, such as "poisson:200" (open loop) or "closed:16" (closed loop).
        duration_s: how long requests are sent, including the warm-up, seconds.
        warm_up_s: time at the start that is excluded from all results, seconds.
        sizes: pairs of images per request and share of such requests.
        images: "generated" or a directory.
        senders: number of sender processes.
        timeout_s: deadline of a request, seconds.
        seed: seed of the arrival times, request sizes and generated images.
        batching: fields of ``alexnet_client.BatchOptions`` that differ from the defaults.
        metrics_port: port of the first sender's client metrics; the other senders use the following ports; 0 for none.
        metrics_address: address on which the client metrics are served.
        tls: directory with ca.crt, tls.crt and tls.key for mutual TLS; empty for none.
        tls_name: host name in the server certificate if it differs from the address.
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
    seed: int = 0
    batching: dict[str, Any] = field(default_factory=dict)
    metrics_port: int = 0
    metrics_address: str = "127.0.0.1"
    tls: str = ""
    tls_name: str = ""

    @property
    def connection(self) -> Connection:
        """Connection options for the servers."""
        return Connection.secured(Path(self.tls) if self.tls else None, self.tls_name)

    @property
    def closed_loop(self) -> bool:
        """Whether each caller waits for an answer before it sends the next request."""
        return self.arrivals.startswith("closed:")


@dataclass(frozen=True)
class Records:
    """One entry per request, sorted by planned time; times are seconds since the start of the run.

    Attributes:
        planned_s: planned send time, float64 [N].
        sent_s: time when the first image left the client, float64 [N]; if none did, the time when the request failed.
        ended_s: time of the answer or error, float64 [N].
        lag_s: load generator lag: delay between the planned time and the call of the client, float64 [N].
        images: images in the request, int32 [N].
        outcome: index into ``outcomes``, int16 [N].
        outcomes: names of the outcomes; the first one is ``OK``.
    """

    planned_s: npt.NDArray[np.float64]
    sent_s: npt.NDArray[np.float64]
    ended_s: npt.NDArray[np.float64]
    lag_s: npt.NDArray[np.float64]
    images: npt.NDArray[np.int32]
    outcome: npt.NDArray[np.int16]
    outcomes: tuple[str, ...] = (OK,)

    def __len__(self) -> int:
        return len(self.planned_s)


@dataclass
class ClientStatistics:
    """What the clients of all senders counted during the whole run, including the warm-up.

    Attributes:
        wall_s: time from the first planned request to the last answer, seconds.
        cpu_s: CPU time of each sender, seconds.
        attempts: attempts to send a batch to a server, by outcome.
        batches: images in a batch -> number of answered batches of this size.
        images: images in answered batches.
        queued_s, encoded_s, served_s, decoded_s: time in each phase, summed over images, seconds: waiting in the client
            queue, encoding, network and server, decoding.
        retries, retry_budget_exhausted: retries, and retries that the retry budget prevented, by reason.
        hedges, ejections: number of hedged attempts and of ejected replicas.
        errors: one example for each outcome that is not ``OK``.
        interrupted: whether the run was stopped early.
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
class ServerStatistics:
    """What Triton counted for the model during the run, summed over all servers.

    Attributes:
        success, failure: requests.
        inferences: processed images.
        executions: processed batches.
        queue_s, input_s, infer_s, output_s: time in each phase, summed over requests, seconds.
        request_s: time in the server, summed over successful requests, seconds.
        busy_s: input, infer and output time, summed over executions: the time instances were busy, seconds.
        batches: images in an execution -> number of executions of this size.
        instances: model instances on all servers, which is the number of simultaneous executions.
        wall_s: time between the first and the last reading of the counters, seconds.
    """

    success: int = 0
    failure: int = 0
    inferences: int = 0
    executions: int = 0
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
    """A load test, or as much of it as its file contains.

    Attributes:
        plan: what was sent.
        records: all requests, including those of the warm-up.
        client: statistics of the clients; None if the file is incomplete.
        server: statistics of the servers; None if they were not available.
        server_missing: why ``server`` is None.
        machine: CPU of the load generator.
        started: start time, ISO 8601 with the time zone.
        version: version of this package.
    """

    plan: Plan
    records: Records
    client: ClientStatistics | None = None
    server: ServerStatistics | None = None
    server_missing: str = ""
    machine: str = ""
    started: str = ""
    version: str = ""
