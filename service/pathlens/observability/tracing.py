"""Spans of calls, on their way to an OpenTelemetry collector; imported only where there is one."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pathlens.errors import PathlensError
from pathlens.explanation import STAGES
from pathlens.observability.settings import TracingSettings
from pathlens.version import __version__
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.v1 import explanation_service_pb2 as messages

# Codes that are faults of a server; any other is a matter of its caller, as OpenTelemetry sees it.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Tracing:
    """Makes spans of calls and sends them to a collector, in batches and by a thread of its own.

    A collector that does not answer costs the spans and nothing else. The environment variables of the SDK hold where
    the settings say nothing: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_* and
    others.

    Args:
        settings: Where the collector is, and how many calls are traced.
    """

    def __init__(self, settings: TracingSettings) -> None:
        self._exporter = OTLPSpanExporter(endpoint=settings.endpoint)
        ours = Resource.create({SERVICE_NAME: "pathlens", SERVICE_VERSION: __version__})
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
            resource=ours.merge(OTELResourceDetector().detect()),
            # `close` does it, within a time.
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("pathlens", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, carrier: Mapping[str, str], request_id: str) -> "CallTrace":
        """Begin the span of a call.

        Args:
            method: Full name of the method.
            carrier: `traceparent` and `tracestate` of the caller, where there are such.
            request_id: Id of the call.

        Returns:
            The span, which must be ended.
        """
        span = self._tracer.start_span(
            method,
            context=self._propagator.extract(carrier, Context()),
            kind=SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": method, "pathlens.request_id": request_id},
        )
        return CallTrace(self._tracer, span)

    def close(self, seconds: float) -> None:
        """Send what is left.

        Args:
            seconds: How long that may take; what is left then is lost.
        """
        closing = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        closing.start()
        closing.join(seconds)
        if closing.is_alive():
            # Breaks off the waiting for a collector that does not answer.
            self._exporter.shutdown()


class CallTrace:
    """The span of a call, and what is beneath it.

    Args:
        tracer: Makes spans.
        span: The span of the call.
    """

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = set_span_in_context(span, Context())

    @property
    def ids(self) -> dict[str, str]:
        """`trace_id` and `span_id`, for log records; none if the SDK is switched off."""
        context = self._span.get_span_context()
        if not context.is_valid:
            return {}
        return {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}

    def end(self, code: str, error_type: str, attributes: Mapping[str, str]) -> None:
        """End the span of the call.

        Args:
            code: Name of the canonical code that the caller sees.
            error_type: What went wrong; empty if nothing did.
            attributes: What else is known of the call.
        """
        self._span.set_attributes({"rpc.response.status_code": code, **attributes})
        if error_type:
            self._span.set_attribute("error.type", error_type)
        if code in _FAULTS:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Make a span of the time before a request is sent to TorchServe."""
        with _ended(self._tracer.start_span("pathlens.admission", context=self._context)):
            yield

    @contextmanager
    def asking(
        self, method: str, model: str, items: int, shared: "UpstreamTrace | None" = None
    ) -> Iterator["UpstreamTrace"]:
        """Make a span of a request to TorchServe.

        Args:
            method: Full name of TorchServe's method.
            model: Name of the model.
            items: How many questions are asked together.
            shared: The span of the same request below another call, to which this one is linked.

        Yields:
            The span.
        """
        span = self._tracer.start_span(
            method,
            context=self._context,
            kind=SpanKind.CLIENT,
            attributes={
                "rpc.system.name": "grpc",
                "rpc.method": method,
                "pathlens.model": model,
                "pathlens.items": items,
            },
            links=() if shared is None else (shared.link,),
        )
        with _ended(span):
            yield UpstreamTrace(self._tracer, span)


class UpstreamTrace:
    """The span of a request to TorchServe, and what is beneath it.

    Args:
        tracer: Makes spans.
        span: The span of the request.
    """

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def link(self) -> Link:
        """What another span has that is about the same request."""
        return Link(self._span.get_span_context())

    def answered(self, response: worker_pb2.WorkerResponse) -> None:
        """Make the spans of the handler and of its stages out of what it reported.

        A stage that was entered several times is one span: the stages are put one after the other.

        Args:
            response: What the handler answered.
        """
        if not self._span.is_recording() or not response.HasField("handler_start"):
            return
        moment = response.handler_start.ToNanoseconds()
        end = moment + response.handler_time.ToNanoseconds()
        handler = self._tracer.start_span(
            "pathlens.handler", context=set_span_in_context(self._span, Context()), start_time=moment
        )
        inside = set_span_in_context(handler, Context())
        timings = _timings(response)
        # The queue comes before the handler.
        for stage in STAGES[1:]:
            if not timings.HasField(stage):
                continue
            span = self._tracer.start_span(f"pathlens.{stage}", context=inside, start_time=moment)
            moment = min(moment + getattr(timings, stage).ToNanoseconds(), end)
            span.end(moment)
        handler.end(end)


def _timings(response: worker_pb2.WorkerResponse) -> messages.StageTimings:
    # What is computed together has the same times; what failed has none.
    for reply in response.replies:
        kind = reply.WhichOneof("reply")
        if kind in ("predict", "explain"):
            timings: messages.StageTimings = getattr(reply, kind).timings
            return timings
    return messages.StageTimings()


@contextmanager
def _ended(span: Span) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # Without its message, which may quote a caller.
        span.set_attribute("error.type", error.reason if isinstance(error, PathlensError) else type(error).__name__)
        if not isinstance(error, asyncio.CancelledError):
            span.set_status(Status(StatusCode.ERROR))
        raise
    finally:
        span.end()
