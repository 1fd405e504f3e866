"""An OpenTelemetry collector that keeps what it gets."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class SeenSpan:
    """A span as it arrived."""

    span: trace_pb2.Span
    resource: dict[str, str]

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in self.span.attributes
        }

    def lies_in(self, other: "SeenSpan") -> bool:
        """Whether it is a child and no longer than its parent."""
        return (
            self.span.parent_span_id == other.span.span_id
            and self.span.trace_id == other.span.trace_id
            and other.span.start_time_unix_nano <= self.span.start_time_unix_nano
            and self.span.end_time_unix_nano <= other.span.end_time_unix_nano
        )


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans on a port of loopback.

    Attributes:
        spans: What has arrived, in that order.
        answering: While cleared, exports are left without an answer.
        endpoint: URL of its port.
    """

    def __init__(self) -> None:
        self.spans: list[SeenSpan] = []
        self.answering = threading.Event()
        self.answering.set()
        self.endpoint = ""

    def __enter__(self) -> Self:
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answering.set()
        self._server.stop(None).wait()

    def Export(  # noqa: N802
        self,
        request: trace_service_pb2.ExportTraceServiceRequest,
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.answering.wait(60)
        for group in request.resource_spans:
            resource = {one.key: one.value.string_value for one in group.resource.attributes}
            self.spans += [SeenSpan(span, resource) for scope in group.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def until(self, count: int, seconds: float = 20.0) -> None:
        """Wait for a number of spans."""
        end = time.monotonic() + seconds
        while len(self.spans) < count:
            assert time.monotonic() < end, [seen.span.name for seen in self.spans]
            time.sleep(0.02)

    def named(self, name: str) -> SeenSpan:
        """Return the only span whose name ends so."""
        (found,) = (seen for seen in self.spans if seen.span.name.endswith(name))
        return found
