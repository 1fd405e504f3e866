"""What comes back from a handler."""

from collections.abc import Sequence
from dataclasses import dataclass

from pathlens.wire.internal.v1 import worker_pb2


@dataclass(frozen=True)
class Answer:
    """What the handler answered.

    Attributes:
        replies: One per call, in order.
        queue_seconds: The part of the round trip that was not spent inside the handler.
        is_first: Whether nobody else has seen its stages before; those who are answered together share them.
        together: How many askers were answered together.
    """

    replies: Sequence[worker_pb2.WorkerReply]
    queue_seconds: float
    is_first: bool = True
    together: int = 1
