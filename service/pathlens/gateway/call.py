"""The call that is being answered, for whatever is logged or traced meanwhile."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING

from structlog.contextvars import bind_contextvars, bound_contextvars

from pathlens.errors import PathlensError
from pathlens.explanation import PathwaySource
from pathlens.gateway.metrics import SERVICE
from pathlens.model_version import ModelVersion
from pathlens.wire.enums import from_number
from pathlens.wire.request_id import REQUEST_ID_KEY, is_request_id, new_request_id
from pathlens.wire.v1 import explanation_service_pb2 as messages

if TYPE_CHECKING:
    from pathlens.observability.tracing import CallTrace, Tracing

Metadata = Iterable[tuple[str, str | bytes]]

_TRACE_KEYS = ("traceparent", "tracestate")

_current: ContextVar["Call | None"] = ContextVar("call", default=None)
_item: ContextVar[int] = ContextVar("item", default=0)
_caller: ContextVar[str] = ContextVar("caller", default="")
# A name of its own, so that the lines about calls can be told from all others.
_access = logging.getLogger("pathlens.access")


class Call:
    """A call of our service, from its arrival to its end.

    Everything that is logged for it carries its id: that of the caller if it is one, or else a new one. Tasks that are
    begun for it belong to it.

    Args:
        method: Name of the method.
        metadata: What the caller sent along.
        tracing: Makes spans; None for none.

    Attributes:
        request_id: The id.
        source: The source of the pathways in the answer; empty without any, and for batches and streams.
    """

    def __init__(self, method: str, metadata: Metadata, tracing: "Tracing | None") -> None:
        self.method = method
        sent = {key: value for key, value in metadata if isinstance(value, str)}
        wanted = sent.get(REQUEST_ID_KEY, "")
        self.request_id = wanted if is_request_id(wanted) else new_request_id()
        self.trace: CallTrace | None = None
        self.source = ""
        self._models: dict[ModelVersion, None] = {}
        bind_contextvars(request_id=self.request_id)
        if tracing is not None:
            carrier = {key: sent[key] for key in _TRACE_KEYS if key in sent}
            self.trace = tracing.begin(f"{SERVICE}/{method}", carrier, self.request_id)
            bind_contextvars(**self.trace.ids)
        _current.set(self)

    def asks(self, model: messages.Model) -> None:
        """Note which model is asked.

        Args:
            model: One that is served; a stream may ask several.
        """
        version = ModelVersion(model.model.name, model.model.version)
        self._models.pop(version, None)
        self._models[version] = None

    def explains(self, answer: messages.ExplainResponse) -> None:
        """Note what the answer to a lone image explains it by.

        Args:
            answer: The answer; a request has one source for all its targets.
        """
        for explanation in answer.explanations[:1]:
            source = from_number(PathwaySource, explanation.source, "source", PathwaySource.TRANSFERRED)
            self.source = source.value

    @property
    def version(self) -> ModelVersion | None:
        """The version that is asked; of a stream that asks several, the last one. None while that is not known."""
        return next(reversed(self._models), None)

    def end(self, code: str, error: BaseException | None, seconds: float, remaining: float | None) -> None:
        """Log the call and end its span.

        Args:
            code: Name of the canonical code that the caller sees.
            error: What went wrong; None if nothing did.
            seconds: How long the call took.
            remaining: Seconds that were left of the caller's time; None if it had no limit.
        """
        reason = error.reason if isinstance(error, PathlensError) else "" if error is None else code
        known = {
            "model": ",".join(model.name for model in self._models),
            "version": ",".join(model.version for model in self._models),
        }
        known = {key: value for key, value in known.items() if value}
        fields: dict[str, object] = {"method": self.method, "code": code, "seconds": round(seconds, 6), **known}
        if caller := _caller.get():
            fields["caller"] = caller
        if reason:
            fields["reason"] = reason
        if remaining is not None:
            fields["deadline_left"] = round(remaining, 6)
        if code == "INTERNAL":
            _access.error("%s failed", self.method, exc_info=error, extra=fields)
        else:
            _access.info("%s finished", self.method, extra=fields)
        if self.trace is not None:
            self.trace.end(code, reason, {f"pathlens.{key}": value for key, value in known.items()})


def current_call() -> Call | None:
    """Return the call that this task works for; None if it works for the gateway itself."""
    return _current.get()


def called_by(name: str) -> None:
    """Note whose token the call has that this task is about to answer.

    Args:
        name: The name beside the token, which is the operator's and not the caller's.
    """
    _caller.set(name)


def current_item() -> int:
    """Return the number of the image in its stream that this task works for, from 1; 0 outside of streams."""
    return _item.get()


@contextmanager
def stream_item(number: int) -> Iterator[None]:
    """Let everything in the context be logged for one image of a stream.

    The image's own id is a text of the caller, of any length: it is numbered instead.

    Args:
        number: Its number, from 1.
    """
    token = _item.set(number)
    try:
        with bound_contextvars(item=number):
            yield
    finally:
        _item.reset(token)


def admission_span() -> AbstractContextManager[None]:
    """Make a span of the time that a request waits for its turn, where there is tracing."""
    call = _current.get()
    return nullcontext() if call is None or call.trace is None else call.trace.waiting()
