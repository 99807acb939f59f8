"""The spans of the client and of Triton belong to one trace at an OTLP collector."""

from __future__ import annotations

import base64
import re
import time
from itertools import pairwise

import numpy as np
from google.protobuf import json_format
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from servers import receiver
from waiting import until

from alexnet_client import Client
from alexnet_client.tracing import Tracing

IMAGE = np.zeros((1, 224, 224, 3), np.uint8)
IDENTIFIER = re.compile(r'("(?:traceId|spanId|parentSpanId)": *)"([0-9a-fA-F]*)"')
NAMES = ["alexnet infer", "alexnet batch", "InferRequest", "alexnet", "compute"]
"""The spans of a call, from the outermost to the innermost."""


def spans_of(body: bytes, content_type: str) -> list[tuple[str, Span]]:
    """The services and spans in an OTLP request."""
    request = ExportTraceServiceRequest()
    if content_type == "application/json":
        json_format.Parse(hex_as_base64(body.decode()), request, ignore_unknown_fields=True)
    else:
        request.ParseFromString(body)
    return [
        (next(each.value.string_value for each in resource.resource.attributes if each.key == "service.name"), span)
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def hex_as_base64(text: str) -> str:
    """Convert the identifiers of OTLP's JSON, which are hexadecimal, to the base64 of protobuf's JSON."""
    return IDENTIFIER.sub(lambda found: f'{found[1]}"{base64.b64encode(bytes.fromhex(found[2])).decode()}"', text)


async def test_a_call_its_batch_and_the_execution_are_spans_of_one_trace(cheap_server):
    provider = TracerProvider(resource=Resource.create({"service.name": "caller"}))
    received: list[tuple[str, Span]] = []
    with receiver(lambda path, content_type, body: received.extend(spans_of(body, content_type))) as port:
        endpoint = f"http://127.0.0.1:{port}/v1/traces"
        with cheap_server("--trace-endpoint", endpoint, "--probe-interval", "0") as server:
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))

            def spans():
                trace = next((span.trace_id for _, span in received if span.name == NAMES[0]), None)
                found = {span.name: (service, span) for service, span in received if span.trace_id == trace}
                return [found[name] for name in NAMES] if set(NAMES) <= found.keys() else None

            began_ns = time.time_ns()
            async with Client(server.target, tracing=Tracing(provider)) as client:
                await client.infer(IMAGE)
            ended_ns = time.time_ns()
            provider.shutdown()
            found = await until(spans, "all spans arrive")
    services, chain = zip(*found, strict=True)
    assert services == ("caller", "caller", *["triton-inference-server"] * 3)
    assert not chain[0].parent_span_id
    assert began_ns <= chain[0].start_time_unix_nano < chain[0].end_time_unix_nano <= ended_ns
    for outer, inner in pairwise(chain):
        assert inner.parent_span_id == outer.span_id, f"{inner.name} is no child of {outer.name}"
        assert outer.start_time_unix_nano <= inner.start_time_unix_nano <= inner.end_time_unix_nano
        if inner.name != "InferRequest":  # Triton ends this span after it sent the response
            assert inner.end_time_unix_nano <= outer.end_time_unix_nano, f"{inner.name} ends after {outer.name}"
