"""Which calls stand in one line."""

from collections.abc import Sequence
from enum import Enum
from typing import Self

from pathlens.wire.internal.v1 import worker_pb2


class CallKind(Enum):
    """What admission tells apart; the value is the label of the metrics."""

    PREDICTION = "prediction"
    """A prediction, or what costs no more: a class pathway, a description."""
    EXPLANATION = "explanation"
    """A lone explanation."""
    BULK = "bulk"
    """Explanations that are part of a stream or of a batch."""

    @classmethod
    def of(cls, calls: Sequence[worker_pb2.WorkerCall], bulk: bool) -> Self:
        """Tell the kind of what is asked together.

        Args:
            calls: The questions.
            bulk: Whether they are part of a stream or of a batch.

        Returns:
            Their kind.
        """
        if bulk:
            return cls.BULK
        return cls.EXPLANATION if any(call.HasField("explain") for call in calls) else cls.PREDICTION
