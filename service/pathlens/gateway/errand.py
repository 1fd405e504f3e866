"""What one asker wants to know from the handler."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pathlens.gateway.admission import Place
from pathlens.gateway.call import Call
from pathlens.gateway.costs import Work
from pathlens.gateway.traffic import VersionTraffic
from pathlens.model_version import ModelVersion
from pathlens.wire.internal.v1 import worker_pb2

if TYPE_CHECKING:
    from pathlens.gateway.dispatch import Dispatch


@dataclass(eq=False)
class Errand:
    """Questions on their way through the queue to the handler and back.

    Attributes:
        version: The version of a model that is asked.
        traffic: What is known of its answers.
        calls: The questions.
        work: What the handler has to do.
        place: What they take of TorchServe.
        ahead: Seconds of work that they found before them.
        began: When they came, on the monotonic clock.
        end: When nobody waits for the answer any more, on the same clock; infinite without such a moment.
        largest: Most bytes of the answer.
        pixels: Of the image of a lone question that may be answered together with others; None if it may not.
        caller: The application's call; None if the gateway itself asks.
        item: Number of the image in its stream, from 1; 0 outside of streams.
        dispatch: The request that they went with; None while they wait.
    """

    version: ModelVersion
    traffic: VersionTraffic
    calls: Sequence[worker_pb2.WorkerCall]
    work: Work
    place: Place
    ahead: float
    began: float
    end: float
    largest: int
    pixels: int | None
    caller: Call | None
    item: int
    dispatch: "Dispatch | None" = None
