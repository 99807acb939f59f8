"""The client's spans and Triton's meet in one trace, at a collector that speaks OTLP over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import numpy as np
from google.protobuf import json_format
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from alexnet_client import Client
from alexnet_client.tracing import Tracing

IMAGE = np.zeros((1, 224, 224, 3), np.uint8)
TRITON_SAYS_IDS_IN_HEX = ("traceId", "spanId", "parentSpanId")


AFTER_ANSWER_NS = 100_000_000


@dataclass(frozen=True)
class Span:
    """What a collector knows of a span: identifiers as hexadecimal digits, times in nanoseconds since 1970."""

    service: str
    name: str
    trace: str
    own: str
    parent: str
    began_ns: int
    ended_ns: int


class Collector:
    """Keeps every span it is sent."""

    def __init__(self):
        self.spans: list[Span] = []
        self._arrived = threading.Condition()

    def take(self, body, kind):
        request = ExportTraceServiceRequest()
        if kind == "application/json":
            json_format.Parse(hex_as_base64(body.decode()), request, ignore_unknown_fields=True)
        else:
            request.ParseFromString(body)
        with self._arrived:
            for resource in request.resource_spans:
                service = next(
                    each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
                )
                for scope in resource.scope_spans:
                    self.spans += [
                        Span(
                            service,
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                        )
                        for span in scope.spans
                    ]
            self._arrived.notify_all()

    def wait(self, names, seconds=15):
        """Spans of the names given, of one trace, as soon as all are there."""

        def found():
            trace = next((each.trace for each in self.spans if each.name == names[0]), "")
            return {each.name: each for each in self.spans if each.trace == trace}

        with self._arrived:
            assert self._arrived.wait_for(lambda: set(names) <= found().keys(), seconds), self.spans
            return [found()[name] for name in names]


def hex_as_base64(text):
    """OTLP's JSON has identifiers in hexadecimal, where protobuf's own has base64."""

    def convert(value):
        if isinstance(value, list):
            return [convert(each) for each in value]
        if not isinstance(value, dict):
            return value
        return {
            key: base64.b64encode(bytes.fromhex(each)).decode() if key in TRITON_SAYS_IDS_IN_HEX else convert(each)
            for key, each in value.items()
        }

    return json.dumps(convert(json.loads(text)))


@contextmanager
def collecting(port):
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            collector.take(self.rfile.read(int(self.headers["Content-Length"])), self.headers["Content-Type"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_call_its_batch_and_tritons_work_are_one_trace(cheap_server, free_port):
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}/v1/traces"
    provider = TracerProvider(resource=Resource.create({"service.name": "caller"}))
    with (
        collecting(port) as collector,
        cheap_server("--trace-endpoint", endpoint, "--probe-interval", "0") as server,
    ):
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))

        async def call():
            async with Client(server.target, tracing=Tracing(provider)) as client:
                await client.infer(IMAGE)

        began_ns = time.time_ns()
        asyncio.run(call())
        ended_ns = time.time_ns()
        provider.shutdown()
        road = collector.wait(["alexnet infer", "alexnet batch", "InferRequest", "alexnet", "compute"])
    assert [each.service for each in road] == ["caller", "caller", *["triton-inference-server"] * 3]
    assert road[0].parent == ""
    for outer, inner in pairwise(road):
        assert inner.parent == outer.own, f"{inner.name} is no child of {outer.name}"
        # Triton ends its request's span a moment after it has sent the answer.
        late_ns = AFTER_ANSWER_NS if inner.name == "InferRequest" else 0
        assert outer.began_ns <= inner.began_ns <= inner.ended_ns <= outer.ended_ns + late_ns, (
            f"{inner.name} outside {outer.name}"
        )
    assert began_ns <= road[0].began_ns < road[0].ended_ns <= ended_ns
