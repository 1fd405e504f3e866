"""One request to TorchServe."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pathlens.gateway.answer import Answer
from pathlens.gateway.costs import Work
from pathlens.gateway.errand import Errand
from pathlens.gateway.predictions import PREDICTIONS, predictions_request
from pathlens.wire.internal.v1 import torchserve_pb2, worker_pb2
from pathlens.wire.status import OK

if TYPE_CHECKING:
    from pathlens.observability.tracing import UpstreamTrace


@dataclass(eq=False)
class Dispatch:
    """One request to TorchServe, and all who wait for its answer.

    Attributes:
        errands: Whose questions it holds, in order. The first one has the place.
        task: What ends with its answer. Never cancel it.
    """

    errands: Sequence[Errand]
    task: asyncio.Task[Answer]
    _observed: bool = False

    def answer_to(self, errand: Errand) -> Answer:
        """Give one asker its part of the answer, once there is one.

        Args:
            errand: One of those in the request.

        Returns:
            The replies to its questions. To the first one who asks, the stages are new; errors hold none.

        Raises:
            PathlensError: All of them failed.
        """
        answer = self.task.result()
        first = sum(len(other.calls) for other in self.errands[: self.errands.index(errand)])
        replies = answer.replies[first : first + len(errand.calls)]
        observes = not self._observed and (_succeeds(replies) or not _succeeds(answer.replies))
        self._observed = self._observed or observes
        return replace(answer, replies=replies, is_first=observes, together=len(self.errands))


def request_of(errands: Sequence[Errand], patience: float) -> torchserve_pb2.PredictionsRequest:
    """Write what TorchServe gets.

    Args:
        errands: Whose questions it holds, all about one version.
        patience: Most seconds that anyone waits.

    Returns:
        The message. Each question has its own deadline and the id of its own call.
    """
    first = errands[0]
    content = worker_pb2.WorkerRequest(max_response_bytes=first.largest)
    for errand in errands:
        left = min(patience, errand.end - time.monotonic())
        deadline = round((time.time() + left) * 1e9)
        for call in errand.calls:
            question = content.calls.add()
            question.CopyFrom(call)
            question.deadline.FromNanoseconds(deadline)
            if errand.caller is not None:
                question.request_id, question.item = errand.caller.request_id, errand.item
    return predictions_request(first.place.model, first.version.version, content)


def work_of(errands: Sequence[Errand]) -> Work:
    """Describe what is asked together.

    Args:
        errands: Whose questions these are; if they are several, of one kind and lone.

    Returns:
        Their description.
    """
    first = errands[0].work
    return first if len(errands) == 1 else replace(first, items=len(errands))


@contextmanager
def upstream_spans(errands: Sequence[Errand]) -> "Iterator[list[UpstreamTrace]]":
    """Make a span of the request below the span of each call that is part of it, where there is tracing.

    Those after the first one are linked to it.

    Args:
        errands: Whose questions it holds.

    Yields:
        The spans.
    """
    items = sum(len(errand.calls) for errand in errands)
    with ExitStack() as stack:
        spans: list[UpstreamTrace] = []
        for errand in errands:
            if errand.caller is not None and errand.caller.trace is not None:
                asking = errand.caller.trace.asking(
                    PREDICTIONS.removeprefix("/"), errand.place.model, items, spans[0] if spans else None
                )
                spans.append(stack.enter_context(asking))
        yield spans


def _succeeds(replies: Sequence[worker_pb2.WorkerReply]) -> bool:
    return any(reply.status.code == OK.code for reply in replies)
