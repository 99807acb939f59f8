"""Spans of calls and batches, and the W3C context that makes the server's spans their children.

The only module that imports OpenTelemetry, and only its interface; nothing else here may import this one at run time, so
that a client without tracing does not need the package.
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
    """What a client does, as spans.

    Each call is a span in its caller's trace. Each batch is one as well: of kind "client", with a link to every call in
    it. A span has one parent, so a batch joins the trace of its first call that is sampled: a sampler that asks the
    parent, as is usual, then keeps the batches of the calls it keeps. The other calls are given a link to the batch.
    Times in the queue are what lies between the start of a call's span and that of its batch.

    Args:
        provider: makes the tracer; None for the one that is set for the whole process.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("alexnet_client", tracer_provider=provider)
        self._w3c = TraceContextTextMapPropagator()

    @contextmanager
    def call(self, name: str, *, model: str, images: int) -> Iterator[None]:
        """A caller's span, under whatever span is current in its task.

        Args:
            name: of the method, such as "classify".
            model: on the server.
            images: in the call.
        """
        attributes: dict[str, str | int] = {"alexnet.model": model, "alexnet.images": images}
        with (
            self._tracer.start_as_current_span(f"alexnet {name}", attributes=attributes) as span,
            _mark_cancelled_as_error(span),
        ):
            yield

    def caller(self) -> trace.Span:
        """The span of the call that the running task works for."""
        return trace.get_current_span()

    @contextmanager
    def batch(self, callers: Sequence[trace.Span], *, images: int) -> Iterator[None]:
        """The span of one request, with all its attempts.

        Args:
            callers: spans of the calls in it, as ``caller`` gave them.
            images: in the batch.
        """
        callers = [each for each in callers if each.get_span_context().is_valid]
        parent = max(callers, key=lambda each: each.get_span_context().trace_flags.sampled, default=trace.INVALID_SPAN)
        with (
            self._tracer.start_as_current_span(
                "alexnet batch",
                # The task that sends a batch inherits the context of any one caller, whose baggage is not the batch's.
                trace.set_span_in_context(parent, Context()),
                kind=trace.SpanKind.CLIENT,
                attributes={"alexnet.images": images, "alexnet.callers": len(callers)},
                links=[trace.Link(each.get_span_context()) for each in callers],
            ) as span,
            _mark_cancelled_as_error(span),
        ):
            for each in callers:
                if each is not parent and each.is_recording():
                    each.add_link(span.get_span_context())
            yield

    def attempt(self, replica: str) -> tuple[tuple[str, str], ...]:
        """Metadata of an attempt within ``batch``, ``traceparent`` and ``tracestate``; the span names the replica."""
        trace.get_current_span().add_event("attempt", {"alexnet.replica": replica})
        carrier: dict[str, str] = {}
        self._w3c.inject(carrier)
        return tuple(carrier.items())


@contextmanager
def _mark_cancelled_as_error(span: trace.Span) -> Iterator[None]:
    """OpenTelemetry records what is an ``Exception``; a cancellation is none, and its span would look like a success."""
    try:
        yield
    except asyncio.CancelledError:
        span.set_status(trace.StatusCode.ERROR, "cancelled")
        raise
