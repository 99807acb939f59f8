"""Spans as an exporter gets them, and the context as the server gets it."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import grpc
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, StaticSampler
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from tritonclient.grpc import service_pb2_grpc

from alexnet_client import Client, ServerFault
from alexnet_client.events import BatchSent, Retried
from alexnet_client.retries import RetryOptions
from alexnet_client.tracing import Tracing

IMAGE = np.zeros((1, 224, 224, 3), np.uint8)


class Spans:
    """A provider that keeps the spans it was given, in the order in which they ended."""

    def __init__(self, **options) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("tests")

    def __call__(self, name):
        return [span for span in self._exporter.get_finished_spans() if span.name == name]


class Ear(grpc.aio.ServerInterceptor):
    """Keeps the metadata of each inference that has a trace."""

    def __init__(self) -> None:
        self.heard = []

    async def intercept_service(self, continuation, details):
        metadata = dict(details.invocation_metadata)
        if "traceparent" in metadata:
            assert details.method == "/inference.GRPCInferenceService/ModelInfer"
            self.heard.append({key: metadata[key] for key in ("traceparent", "tracestate") if key in metadata})
        return await continuation(details)


@pytest.fixture
def spans():
    return Spans()


@pytest.fixture
async def overheard(scripted):
    """(server, target, what it heard) of the scripted server behind an ear."""
    servicer, _ = scripted
    ear = Ear()
    server = grpc.aio.server(interceptors=[ear])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}", ear.heard
    await server.stop(None)


def remote(*, sampled: bool, state: tuple[tuple[str, str], ...] = ()) -> NonRecordingSpan:
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return NonRecordingSpan(
        SpanContext(0xA11, 0xB0B + sampled, is_remote=True, trace_flags=flags, trace_state=TraceState(state))
    )


def links(span):
    return [link.context.span_id for link in span.links]


async def test_a_call_is_a_span_in_its_callers_trace(spans, scripted):
    _, target = scripted
    with spans.tracer.start_as_current_span("request") as request:
        async with Client(target, tracing=Tracing(spans.provider)) as client:
            await client.classify(IMAGE[0])
            await client.infer(IMAGE)
    for name in ("alexnet classify", "alexnet infer"):
        (span,) = spans(name)
        assert span.parent.span_id == request.get_span_context().span_id
        assert span.kind is SpanKind.INTERNAL
        assert dict(span.attributes) == {"alexnet.model": "alexnet", "alexnet.images": 1}
        assert span.status.status_code is StatusCode.UNSET


async def test_a_batch_is_linked_to_all_its_calls_and_each_of_them_leads_to_it(spans, scripted):
    _, target = scripted
    async with Client(target, tracing=Tracing(spans.provider)) as client:
        await client.signature()
        await asyncio.gather(*(client.infer(IMAGE) for _ in range(3)))
    (batch,), calls = spans("alexnet batch"), sorted(spans("alexnet infer"), key=lambda span: span.start_time)
    assert batch.kind is SpanKind.CLIENT
    assert dict(batch.attributes) == {"alexnet.images": 3, "alexnet.callers": 3}
    assert links(batch) == [call.context.span_id for call in calls]
    assert batch.parent.span_id == calls[0].context.span_id
    assert [links(call) for call in calls] == [[], [batch.context.span_id], [batch.context.span_id]]
    assert len({call.context.trace_id for call in calls}) == 3


async def test_a_call_larger_than_a_batch_is_linked_from_every_batch(spans, scripted):
    _, target = scripted
    async with Client(target, tracing=Tracing(spans.provider)) as client:
        await client.infer(np.repeat(IMAGE, 12, 0))
    (call,), batches = spans("alexnet infer"), spans("alexnet batch")
    assert sorted(batch.attributes["alexnet.images"] for batch in batches) == [4, 8]
    assert [links(batch) for batch in batches] == [[call.context.span_id]] * 2


async def test_the_server_is_told_the_batchs_span_and_the_callers_state(spans, overheard):
    _, target, heard = overheard
    async with Client(target, tracing=Tracing(spans.provider)) as client:
        with trace.use_span(remote(sampled=True, state=(("vendor", "7"),))):
            await client.infer(IMAGE)
    (batch,) = spans("alexnet batch")
    assert heard == [{"traceparent": f"00-{0xA11:032x}-{batch.context.span_id:016x}-01", "tracestate": "vendor=7"}]


async def test_all_attempts_belong_to_one_batch_which_names_their_replicas(spans, overheard):
    server, target, heard = overheard

    def mend(event):
        if isinstance(event, Retried):
            server.fail = None

    options = RetryOptions(first_backoff_s=1e-6)
    async with Client(target, retries=options, listeners=[mend], tracing=Tracing(spans.provider)) as client:
        server.fail = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        await client.infer(IMAGE)
    (batch,) = spans("alexnet batch")
    assert [(event.name, dict(event.attributes)) for event in batch.events] == [
        ("attempt", {"alexnet.replica": target}),
        ("attempt", {"alexnet.replica": target}),
    ]
    assert len(heard) == 2
    assert heard[0] == heard[1]
    assert batch.status.status_code is StatusCode.UNSET


async def test_an_error_is_recorded_on_the_call_and_on_the_batch(spans, scripted):
    server, target = scripted
    server.fail = (grpc.StatusCode.INTERNAL, "Stub process is not healthy")
    async with Client(target, tracing=Tracing(spans.provider)) as client:
        with pytest.raises(ServerFault):
            await client.infer(IMAGE)
    for span in (*spans("alexnet infer"), *spans("alexnet batch")):
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == f"ServerFault: {target}: Stub process is not healthy"
        (error,) = [event for event in span.events if event.name == "exception"]
        assert error.attributes["exception.type"] == "alexnet_client.errors.ServerFault"
    assert len(spans("alexnet infer")) == len(spans("alexnet batch")) == 1


async def test_a_call_that_is_cancelled_is_an_error_and_so_is_its_batch(spans, scripted):
    server, target = scripted
    sent = asyncio.Event()
    tell = lambda event: sent.set() if isinstance(event, BatchSent) else None  # noqa: E731
    async with Client(target, listeners=[tell], tracing=Tracing(spans.provider)) as client:
        await client.signature()
        server.hang = True
        call = asyncio.create_task(client.infer(IMAGE))
        await sent.wait()
        await asyncio.wait([call], timeout=0)  # the batch's task begins
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    for name in ("alexnet infer", "alexnet batch"):
        (span,) = spans(name)
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "cancelled")


def test_a_batch_joins_the_trace_of_a_call_that_is_sampled(spans):
    callers = [remote(sampled=False), remote(sampled=True)]
    with Tracing(spans.provider).batch(callers, images=2):
        pass
    (batch,) = spans("alexnet batch")
    assert batch.parent.span_id == callers[1].get_span_context().span_id
    assert links(batch) == [each.get_span_context().span_id for each in callers]


def test_a_batch_of_calls_that_are_not_sampled_is_not_either():
    everything_else = Spans(sampler=ParentBased(StaticSampler(Decision.RECORD_AND_SAMPLE)))
    tracing = Tracing(everything_else.provider)
    with tracing.batch([remote(sampled=False)], images=1):
        assert tracing.attempt("a:1")[0][1].endswith("-00"), "the server shall not sample it either"
    assert not everything_else("alexnet batch")


def test_a_batch_without_traced_calls_begins_a_trace_whatever_task_sends_it(spans):
    with spans.tracer.start_as_current_span("somebody's"), Tracing(spans.provider).batch([], images=1):
        pass
    (batch,) = spans("alexnet batch")
    assert batch.parent is None
    assert not batch.links


def test_without_an_sdk_the_callers_own_context_reaches_the_server():
    tracing, caller = Tracing(trace.NoOpTracerProvider()), remote(sampled=True)
    with tracing.batch([caller], images=1):
        assert tracing.attempt("a:1") == (("traceparent", f"00-{0xA11:032x}-{0xB0C:016x}-01"),)
    with tracing.batch([tracing.caller()], images=1):
        assert tracing.attempt("a:1") == ()


async def test_a_client_without_tracing_sends_no_context(overheard, spans):
    _, target, heard = overheard
    with spans.tracer.start_as_current_span("request"):
        async with Client(target) as client:
            await client.infer(IMAGE)
    assert heard == []


@pytest.mark.parametrize(
    "program",
    [
        "import sys, alexnet_client.__main__, alexnet_client.metrics; assert 'opentelemetry' not in sys.modules",
        """import sys; sys.modules["opentelemetry"] = None
import alexnet_client.client
try: import alexnet_client.tracing
except ImportError as error: assert "pip install 'alexnet-client[tracing]'" in str(error)
else: raise SystemExit("imported")""",
    ],
    ids=["it is not imported", "its absence is told only to those who want it"],
)
def test_the_package_for_traces_is_optional(program):
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
