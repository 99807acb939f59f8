"""OpenTelemetry spans of calls and batches, and the W3C trace context for the server.

The only module that imports OpenTelemetry, and only its API package. No other module imports this one at run time, so that a
client without tracing does not need the package.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as missing:
    raise ImportError("tracing needs the package opentelemetry-api: pip install 'alexnet-client[tracing]'") from missing


class Tracing:
    """Creates the spans of a client.

    Each call has a span in the trace of its caller. Each batch has a span of kind "client" with a link to every call in it. A
    span has only one parent, so a batch belongs to the trace of its first sampled call; a parent-based sampler then keeps the
    batches of the calls that it keeps. The other calls get a link to the batch. The time in the queue is the time between the
    start of a call's span and the start of its batch's span.

    Args:
        provider: creates the tracer; None for the global provider.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("alexnet_client", tracer_provider=provider)
        self._w3c = TraceContextTextMapPropagator()

    @contextmanager
    def call(self, name: str, *, model: str, images: int) -> Iterator[None]:
        """The span of a call of the method ``name``, a child of the current span."""
        attributes: dict[str, str | int] = {"alexnet.model": model, "alexnet.images": images}
        with (
            self._tracer.start_as_current_span(f"alexnet {name}", attributes=attributes) as span,
            _mark_cancelled_as_error(span),
        ):
            yield

    def current_span(self) -> trace.Span:
        """The span of the call in the running task."""
        return trace.get_current_span()

    @contextmanager
    def batch(self, calls: Sequence[trace.Span], *, images: int) -> Iterator[None]:
        """The span of one batch with all its attempts; ``calls`` are the spans of the calls in it."""
        calls = [each for each in calls if each.get_span_context().is_valid]
        parent = max(calls, key=lambda each: each.get_span_context().trace_flags.sampled, default=trace.INVALID_SPAN)
        with (
            self._tracer.start_as_current_span(
                "alexnet batch",
                # The task that sends a batch inherits the context of an arbitrary call; its baggage must not be used.
                trace.set_span_in_context(parent, Context()),
                kind=trace.SpanKind.CLIENT,
                attributes={"alexnet.images": images, "alexnet.calls": len(calls)},
                links=[trace.Link(each.get_span_context()) for each in calls],
            ) as span,
            _mark_cancelled_as_error(span),
        ):
            for each in calls:
                if each is not parent and each.is_recording():
                    each.add_link(span.get_span_context())
            yield

    def attempt(self, replica: str) -> tuple[tuple[str, str], ...]:
        """Add an attempt to the span of the batch; returns its metadata, ``traceparent`` and ``tracestate``."""
        trace.get_current_span().add_event("attempt", {"alexnet.replica": replica})
        carrier: dict[str, str] = {}
        self._w3c.inject(carrier)
        return tuple(carrier.items())


@contextmanager
def _mark_cancelled_as_error(span: trace.Span) -> Iterator[None]:
    """OpenTelemetry records only an ``Exception``; a cancellation is none, so its span would look successful."""
    try:
        yield
    except asyncio.CancelledError:
        span.set_status(trace.StatusCode.ERROR, "cancelled")
        raise
