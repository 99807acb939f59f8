"""Values of the metrics, as Prometheus reads them."""

from __future__ import annotations

import asyncio
import importlib.metadata
import random
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from prometheus_client import CollectorRegistry, Counter
from waiting import until

from alexnet_client import BadInput, Client, Overloaded, Tls, errors
from alexnet_client.certificates import expiries
from alexnet_client.concurrency import ConcurrencyRange
from alexnet_client.events import (
    Attempted,
    BatchCompleted,
    BatchSent,
    CallEnded,
    Ejected,
    Hedged,
    Retried,
    RetryBudgetExhausted,
    SharedMemoryFallback,
    outcome_of,
)
from alexnet_client.metrics import ClientMetrics, serve_metrics
from alexnet_client.replicas import ReplicaSet
from alexnet_client.retries import RetryOptions, retry_reason

IMAGE = np.zeros((1, 224, 224, 3), np.uint8)
ERRORS = [kind() for kind in vars(errors).values() if isinstance(kind, type) and kind is not errors.ClientError]
TIMEOUT = CallEnded("deadline_exceeded", 1, 9)


@pytest.fixture
def shown():
    """(metrics, read): ``read(name, **labels)`` returns a value, or None if there is no such series."""
    registry = CollectorRegistry()
    metrics = ClientMetrics(registry)
    return metrics, lambda name, **labels: registry.get_sample_value(f"alexnet_client_{name}", labels)


def replica_set(*addresses: str) -> ReplicaSet:
    return ReplicaSet(addresses, bounds=ConcurrencyRange(), clock=lambda: 0.0, rng=random.Random(1))


def batcher(**values: object) -> SimpleNamespace:
    return SimpleNamespace(**{"queued": 0, "in_flight": 0, "closed": False, **values})


@pytest.mark.parametrize(
    ("event", "name", "labels", "value"),
    [
        (CallEnded("ok", 3, 0.25), "calls_total", {"outcome": "ok"}, 1),
        (CallEnded("ok", 3, 0.25), "images_total", {"outcome": "ok"}, 3),
        (CallEnded("ok", 3, 0.25), "call_duration_seconds_sum", {"outcome": "ok"}, 0.25),
        (TIMEOUT, "call_duration_seconds_bucket", {"outcome": "deadline_exceeded", "le": "5.0"}, 0),
        (TIMEOUT, "call_duration_seconds_bucket", {"outcome": "deadline_exceeded", "le": "10.0"}, 1),
        (BatchSent(5, (0.5, 0.25)), "batch_images_sum", {}, 5),
        (BatchSent(5, (0.5, 0.25)), "batch_images_bucket", {"le": "4.0"}, 0),
        (BatchSent(5, (0.5, 0.25)), "phase_duration_seconds_sum", {"phase": "queued"}, 0.75),
        (BatchSent(5, (0.5, 0.25)), "phase_duration_seconds_count", {"phase": "queued"}, 2),
        (BatchCompleted(5, 1, 2, 4), "phase_duration_seconds_sum", {"phase": "encoded"}, 1),
        (BatchCompleted(5, 1, 2, 4), "phase_duration_seconds_sum", {"phase": "served"}, 2),
        (BatchCompleted(5, 1, 2, 4), "phase_duration_seconds_sum", {"phase": "decoded"}, 4),
        (Attempted("a:1", "overloaded"), "attempts_total", {"replica": "a:1", "outcome": "overloaded"}, 1),
        (Retried("unavailable"), "retries_total", {"reason": "unavailable"}, 1),
        (RetryBudgetExhausted("overloaded"), "retry_budget_exhausted_total", {"reason": "overloaded"}, 1),
        (Hedged(won=True), "hedges_total", {"result": "won"}, 1),
        (Hedged(won=True), "hedges_total", {"result": "lost"}, 0),
        (Hedged(won=False), "hedges_total", {"result": "lost"}, 1),
        (Ejected("a:1"), "ejections_total", {"replica": "a:1"}, 1),
        (SharedMemoryFallback("a:1", "full"), "shared_memory_fallbacks_total", {"reason": "full"}, 1),
        (SharedMemoryFallback("a:1", "full"), "shared_memory_fallbacks_total", {"reason": "rejected"}, 0),
    ],
)
def test_each_event_increases_its_metrics(shown, event, name, labels, value):
    metrics, read = shown
    metrics(event)
    assert read(name, **labels) == value
    metrics(event)
    assert read(name, **labels) == 2 * value


def test_every_outcome_and_reason_starts_at_zero(shown):
    _, read = shown
    assert len(ERRORS) == 9
    for outcome in ("ok", "cancelled", *map(outcome_of, ERRORS)):
        assert read("calls_total", outcome=outcome) == read("images_total", outcome=outcome) == 0, outcome
    for reason in filter(None, map(retry_reason, ERRORS)):
        for name in ("retries_total", "retry_budget_exhausted_total"):
            assert read(name, reason=reason) == 0, reason


async def test_calls_of_a_client_are_counted_with_their_phases_and_attempts(shown, server):
    metrics, read = shown
    async with Client(server.target, listeners=[metrics]) as client:
        await client.signature()
        assert read("attempts_total", replica=server.target, outcome="ok") == 1
        await asyncio.gather(*(client.infer(IMAGE) for _ in range(3)))
    assert read("calls_total", outcome="ok") == read("images_total", outcome="ok") == 3
    assert read("call_duration_seconds_count", outcome="ok") == 3
    assert read("phase_duration_seconds_count", phase="queued") == 3
    for phase in ("encoded", "served", "decoded"):
        assert read("phase_duration_seconds_count", phase=phase) == 1
    assert (read("batch_images_count"), read("batch_images_sum")) == (1, 3)
    assert read("attempts_total", replica=server.target, outcome="ok") == 2


async def test_an_overloaded_call_is_counted_with_its_attempts_and_retries(shown, server):
    metrics, read = shown
    retries = RetryOptions(initial_backoff_s=1e-6, burst=1)
    async with Client(server.target, listeners=[metrics], retries=retries) as client:
        await client.signature()
        server.fail = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        with pytest.raises(Overloaded):
            await client.infer(IMAGE)
    assert read("calls_total", outcome="overloaded") == 1
    assert read("attempts_total", replica=server.target, outcome="overloaded") == 2
    assert read("retries_total", reason="overloaded") == 1
    assert read("retry_budget_exhausted_total", reason="overloaded") == 1


async def test_the_gauges_show_a_call_in_flight_and_the_counters_its_cancellation(shown, server):
    metrics, read = shown
    async with Client(server.target, listeners=[metrics]) as client:
        await client.signature()
        server.hang = True
        call = asyncio.create_task(client.infer(IMAGE))
        await until(lambda: server.working, "the request is at the server")
        assert (read("queued_images"), read("batches_in_flight")) == (0, 1)
        assert read("concurrency_limit") == client._balancer.replicas.concurrency_limit > 0
        assert read("replicas") == read("replicas_healthy") == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert read("calls_total", outcome="cancelled") == 1
    assert read("batches_in_flight") == read("replicas") == 0


def test_the_gauges_are_the_sum_over_all_open_clients(shown):
    metrics, read = shown
    first, second = batcher(queued=3, in_flight=1), batcher(queued=4, in_flight=2)
    replicas, others = replica_set("a:1", "b:1"), replica_set("a:1")
    assert read("queued_images") == 0
    metrics.watch(first, replicas, model="alexnet")
    metrics.watch(second, others, model="alexnet")
    replicas.failed(replicas.all[0], errors.Unavailable("gone"))
    assert (read("queued_images"), read("batches_in_flight")) == (7, 3)
    assert (read("replicas"), read("replicas_healthy")) == (3, 2)
    assert read("concurrency_limit") == replicas.concurrency_limit + others.concurrency_limit
    second.closed = True
    assert (read("queued_images"), read("batches_in_flight")) == (3, 1)
    assert (read("replicas"), read("replicas_healthy")) == (2, 1)


def test_a_new_replica_removes_the_series_of_replicas_that_no_client_uses(shown):
    metrics, read = shown
    replicas = replica_set("old:1", "stays:1")
    metrics.watch(batcher(), replicas, model="alexnet")
    metrics.watch(batcher(), replica_set("others:1"), model="alexnet")
    for address in ("old:1", "stays:1", "others:1"):
        metrics(Attempted(address, "ok"))
        metrics(Ejected(address))
    replicas.update(["stays:1", "new:1"])
    metrics(Attempted("old:1", "cancelled"))
    assert read("attempts_total", replica="old:1", outcome="cancelled") == 1
    metrics(Attempted("new:1", "ok"))
    assert read("attempts_total", replica="old:1", outcome="cancelled") is None
    assert read("ejections_total", replica="old:1") is None
    for address, count in {"old:1": None, "stays:1": 1, "others:1": 1, "new:1": 1}.items():
        assert read("attempts_total", replica=address, outcome="ok") == count, address


def test_late_results_of_removed_replicas_do_not_accumulate_series():
    registry = CollectorRegistry()
    metrics, replicas = ClientMetrics(registry), replica_set("0:1")
    metrics.watch(batcher(), replicas, model="alexnet")
    for number in range(50):
        replicas.update([f"{number}:1"])
        metrics(Attempted(f"{number}:1", "ok"))
        metrics(Attempted(f"{number - 1}:1", "cancelled"))
    family = next(each for each in registry.collect() if each.name == "alexnet_client_attempts")
    assert {sample.labels["replica"] for sample in family.samples} == metrics._addresses == {"48:1", "49:1"}


def test_the_models_of_open_clients_are_listed(shown):
    metrics, read = shown
    first = batcher()
    metrics.watch(first, replica_set("a:1"), model="alexnet")
    metrics.watch(batcher(), replica_set("a:1"), model="alexnet_encoded")
    version = importlib.metadata.version("alexnet-client")
    assert read("info", model="alexnet", version=version) == read("info", model="alexnet_encoded", version=version) == 1
    first.closed = True
    assert read("info", model="alexnet", version=version) is None


def test_the_earliest_certificate_expiry_of_each_file_is_shown(shown, tmp_path):
    metrics, read = shown
    for name, days in {"old": 3, "older": 1, "own": 9}.items():
        (tmp_path / f"{name}.pem").write_bytes(certificate(name, days=days))
    (tmp_path / "roots.pem").write_bytes((tmp_path / "old.pem").read_bytes() + (tmp_path / "older.pem").read_bytes())
    tls = Tls(roots=tmp_path / "roots.pem", certificate=tmp_path / "own.pem", key=tmp_path / "none.pem")
    metrics.watch(batcher(), replica_set("a:1"), model="alexnet", tls=tls)
    for name, days in (("ca", 1), ("tls", 9)):
        expiry_s = read("certificate_expiry_timestamp_seconds", certificate=name)
        assert expiry_s == pytest.approx(time.time() + days * 86_400, abs=600)


def test_a_file_without_a_certificate_shows_no_expiry(tmp_path):
    (tmp_path / "other.pem").write_bytes(b"no certificate")
    assert expiries(Tls(roots=tmp_path / "missing.pem", certificate=tmp_path / "other.pem")) == {}


def certificate(name, *, days):
    """A self-signed certificate, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=days))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_a_second_instance_in_a_registry_is_rejected_and_registers_nothing():
    registry = CollectorRegistry()
    Counter("alexnet_client_hedges", "Of another instance.", registry=registry)
    with pytest.raises(BadInput, match=r"alexnet_client_hedges.*use one ClientMetrics for all clients"):
        ClientMetrics(registry)
    assert [each.name for each in registry.collect()] == ["alexnet_client_hedges"]


def test_the_metrics_are_served_over_http_until_the_server_is_closed():
    registry = CollectorRegistry()
    ClientMetrics(registry)(CallEnded("ok", 1, 0.1))
    with serve_metrics(0, registry=registry) as server:
        with urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=60) as response:
            body = response.read().decode()
        with pytest.raises(BadInput, match=f"127.0.0.1:{server.port}: the port is in use; stop the other program"):
            serve_metrics(server.port, registry=registry)
    assert 'alexnet_client_calls_total{outcome="ok"} 1.0' in body.splitlines()
    serve_metrics(server.port, registry=registry).close()


@pytest.mark.parametrize(
    ("port", "address", "message"),
    [(0, "192.0.2.1", "cannot assign requested address; choose another address"), (65536, "127.0.0.1", "0 to 65535")],
)
def test_an_address_that_cannot_be_used_is_bad_input(port, address, message):
    with pytest.raises(BadInput, match=message):
        serve_metrics(port, address=address, registry=CollectorRegistry())
