"""Exported spans, and the trace context at the server."""

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
from waiting import until

from alexnet_client import Client, ServerFault
from alexnet_client.fake import Step
from alexnet_client.tracing import Tracing

IMAGE = np.zeros((1, 224, 224, 3), np.uint8)


class Spans:
    """Collects finished spans, in the order in which they ended."""

    def __init__(self, **options) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("tests")

    def __call__(self, name):
        return [span for span in self._exporter.get_finished_spans() if span.name == name]


class MetadataRecorder(grpc.aio.ServerInterceptor):
    """Records the trace context of each inference."""

    def __init__(self) -> None:
        self.contexts = []

    async def intercept_service(self, continuation, details):
        metadata = dict(details.invocation_metadata)
        if "traceparent" in metadata:
            assert details.method == "/inference.GRPCInferenceService/ModelInfer"
            self.contexts.append({key: metadata[key] for key in ("traceparent", "tracestate") if key in metadata})
        return await continuation(details)


@pytest.fixture
def spans():
    return Spans()


@pytest.fixture
async def recorded(server):
    """(target, contexts) of the fake server behind a recorder of trace contexts."""
    recorder = MetadataRecorder()
    front = grpc.aio.server(interceptors=[recorder])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(server, front)
    port = front.add_insecure_port("127.0.0.1:0")
    await front.start()
    yield f"127.0.0.1:{port}", recorder.contexts
    await front.stop(None)


def remote(*, sampled: bool, state: tuple[tuple[str, str], ...] = ()) -> NonRecordingSpan:
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return NonRecordingSpan(
        SpanContext(0xA11, 0xB0B + sampled, is_remote=True, trace_flags=flags, trace_state=TraceState(state))
    )


def links(span):
    return [link.context.span_id for link in span.links]


async def test_the_span_of_a_call_belongs_to_the_trace_of_its_caller(spans, server):
    with spans.tracer.start_as_current_span("request") as request:
        async with Client(server.target, tracing=Tracing(spans.provider)) as client:
            await client.classify(IMAGE[0])
            await client.infer(IMAGE)
    for name in ("alexnet classify", "alexnet infer"):
        (span,) = spans(name)
        assert span.parent.span_id == request.get_span_context().span_id
        assert span.kind is SpanKind.INTERNAL
        assert dict(span.attributes) == {"alexnet.model": "alexnet", "alexnet.images": 1}
        assert span.status.status_code is StatusCode.UNSET


async def test_a_batch_and_its_calls_are_linked(spans, server):
    async with Client(server.target, tracing=Tracing(spans.provider)) as client:
        await client.signature()
        await asyncio.gather(*(client.infer(IMAGE) for _ in range(3)))
    (batch,), calls = spans("alexnet batch"), sorted(spans("alexnet infer"), key=lambda span: span.start_time)
    assert batch.kind is SpanKind.CLIENT
    assert dict(batch.attributes) == {"alexnet.images": 3, "alexnet.calls": 3}
    assert links(batch) == [call.context.span_id for call in calls]
    assert batch.parent.span_id == calls[0].context.span_id
    assert [links(call) for call in calls] == [[], [batch.context.span_id], [batch.context.span_id]]
    assert len({call.context.trace_id for call in calls}) == 3


async def test_all_batches_of_a_large_call_are_linked_to_it(spans, server):
    async with Client(server.target, tracing=Tracing(spans.provider)) as client:
        await client.infer(np.repeat(IMAGE, 12, 0))
    (call,) = spans("alexnet infer")
    assert [links(batch) for batch in spans("alexnet batch")] == [[call.context.span_id]] * 2


async def test_the_server_gets_the_span_of_the_batch_and_the_trace_state_of_the_caller(spans, recorded):
    target, contexts = recorded
    with trace.use_span(remote(sampled=True, state=(("vendor", "7"),))):
        async with Client(target) as client:
            await client.infer(IMAGE)
        assert contexts == [], "a client without tracing sends no context"
        async with Client(target, tracing=Tracing(spans.provider)) as client:
            await client.infer(IMAGE)
    (batch,) = spans("alexnet batch")
    assert contexts == [{"traceparent": f"00-{0xA11:032x}-{batch.context.span_id:016x}-01", "tracestate": "vendor=7"}]


async def test_all_attempts_belong_to_the_span_of_the_batch(spans, server, recorded):
    target, contexts = recorded
    server.next(Step(fail=(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")))
    async with Client(target, tracing=Tracing(spans.provider)) as client:
        await client.infer(IMAGE)
    (batch,) = spans("alexnet batch")
    attempts = [(event.name, dict(event.attributes)) for event in batch.events]
    assert attempts == [("attempt", {"alexnet.replica": target})] * 2
    assert contexts == contexts[:1] * 2
    assert batch.status.status_code is StatusCode.UNSET


async def test_an_error_is_recorded_on_the_call_and_on_the_batch(spans, server):
    server.fail = (grpc.StatusCode.INTERNAL, "Stub process is not healthy")
    async with Client(server.target, tracing=Tracing(spans.provider)) as client:
        with pytest.raises(ServerFault):
            await client.infer(IMAGE)
    for name in ("alexnet infer", "alexnet batch"):
        (span,) = spans(name)
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == f"ServerFault: {server.target}: Stub process is not healthy"
        (error,) = [event for event in span.events if event.name == "exception"]
        assert error.attributes["exception.type"] == "alexnet_client.errors.ServerFault"


async def test_a_cancelled_call_and_its_batch_have_the_status_error(spans, server):
    async with Client(server.target, tracing=Tracing(spans.provider)) as client:
        await client.signature()
        server.hang = True
        call = asyncio.create_task(client.infer(IMAGE))
        await until(lambda: server.working, "the request is at the server")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    for name in ("alexnet infer", "alexnet batch"):
        (span,) = spans(name)
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "cancelled")


def test_a_batch_belongs_to_the_trace_of_a_sampled_call(spans):
    calls = [remote(sampled=False), remote(sampled=True)]
    with Tracing(spans.provider).batch(calls, images=2):
        pass
    (batch,) = spans("alexnet batch")
    assert batch.parent.span_id == calls[1].get_span_context().span_id
    assert links(batch) == [each.get_span_context().span_id for each in calls]


def test_a_batch_of_calls_that_are_not_sampled_is_not_sampled():
    spans = Spans(sampler=ParentBased(StaticSampler(Decision.RECORD_AND_SAMPLE)))
    tracing = Tracing(spans.provider)
    with tracing.batch([remote(sampled=False)], images=1):
        assert tracing.attempt("a:1")[0][1].endswith("-00"), "the server must not sample it"
    assert not spans("alexnet batch")


def test_a_batch_without_traced_calls_starts_a_new_trace(spans):
    with spans.tracer.start_as_current_span("another request"), Tracing(spans.provider).batch([], images=1):
        pass
    (batch,) = spans("alexnet batch")
    assert (batch.parent, list(batch.links)) == (None, [])


def test_without_an_sdk_the_server_gets_the_context_of_the_caller():
    tracing, call = Tracing(trace.NoOpTracerProvider()), remote(sampled=True)
    with tracing.batch([call], images=1):
        assert tracing.attempt("a:1") == (("traceparent", f"00-{0xA11:032x}-{0xB0C:016x}-01"),)
    with tracing.batch([tracing.current_span()], images=1):
        assert tracing.attempt("a:1") == ()


def test_without_opentelemetry_only_the_tracing_module_reports_its_absence():
    program = """import sys; sys.modules["opentelemetry"] = None
import alexnet_client.client
try: import alexnet_client.tracing
except ImportError as error: assert "pip install 'alexnet-client[tracing]'" in str(error)
else: raise SystemExit("imported")"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
