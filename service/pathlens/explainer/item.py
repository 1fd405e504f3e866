"""One request on its way through the explainer, and the rows of work that it asks for."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathlens.errors import DeadlineExceededError, InternalError, PathlensError, ResourceExhaustedError
from pathlens.explanation import (
    ExplanationOptions,
    ExplanationRequest,
    ExplanationResult,
    Linearity,
    NeuronContribution,
    Output,
    PathwaySource,
)
from pathlens.pathways.pathway import Pathway

_DRAWN_FROM_GRADIENT = frozenset({Output.MAP, Output.HEATMAP, Output.OVERLAY})
_logger = logging.getLogger(__name__)


class PredictionPass(Enum):
    """What the pass that predicts an item has to leave behind, beside the logits."""

    PLAIN = "plain"
    """Nothing."""
    RECORDED = "recorded"
    """The outputs of the taps, for the generator."""
    TRACED = "traced"
    """The outputs of the taps and the graph that contributions are computed from."""


_PASSES = {
    PathwaySource.GENERATED: PredictionPass.RECORDED,
    PathwaySource.NEURON_MCT: PredictionPass.TRACED,
}


@dataclass(eq=False)
class Item:
    """One request on its way through the stages; its first error ends its way."""

    request: ExplanationRequest
    error: PathlensError | None = None
    pixels: NDArray[np.uint8] | None = None
    tensor: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    rows: list["Row"] = field(default_factory=list)
    result: ExplanationResult | None = None

    @property
    def prediction_pass(self) -> PredictionPass:
        """What the prediction pass must keep."""
        if self.request.options is None:
            return PredictionPass.PLAIN
        return _PASSES.get(self.options.source, PredictionPass.PLAIN)

    @property
    def is_integrated(self) -> bool:
        """Whether the pathways come from NeuronIntGrad, which runs the network many times for this item alone."""
        return self.request.options is not None and self.options.source is PathwaySource.NEURON_INTGRAD

    def expire(self) -> bool:
        """Give the item an error if nobody waits for it any more; tell whether work on it is to go on."""
        if self.error is None and self.request.deadline is not None and time.time() > self.request.deadline:
            self.error = DeadlineExceededError("The deadline passed before the answer was computed.")
        return self.error is not None

    def check_time(self) -> None:
        """End the work on the item if nobody waits for it any more.

        Raises:
            DeadlineExceededError: If its deadline has passed.
        """
        if self.expire() and self.error is not None:
            raise self.error

    @cached_property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, float32 [K]."""
        return self.logits.softmax(0)

    @cached_property
    def ranking(self) -> list[int]:
        """All classes, most probable first; of equal ones the lowest index, as argmax has it."""
        ranking: list[int] = self.logits.argsort(descending=True, stable=True).tolist()
        return ranking

    @property
    def options(self) -> ExplanationOptions:
        """What was asked; the defaults for a prediction, which has no rows to apply them to."""
        return self.request.options or ExplanationOptions()


@dataclass(eq=False)
class Row:
    """One target of one item, on its way to an explanation."""

    item: Item
    target: int
    pathway: Pathway
    logits: Tensor | None = None
    gradient: Tensor | None = None
    top_neurons: tuple[NeuronContribution, ...] = ()
    linearity: Linearity | None = None

    @property
    def needs_gradient(self) -> bool:
        """Whether the pathway network must run forward and backward."""
        options = self.item.options
        return (
            bool(options.outputs & _DRAWN_FROM_GRADIENT)
            or options.top_neurons > 0
            or options.linearity_radius is not None
        )

    @property
    def needs_run(self) -> bool:
        """Whether the pathway network must run at all."""
        return self.needs_gradient or Output.FAITHFULNESS in self.item.options.outputs


@contextmanager
def errors_of(*items: Item) -> Iterator[None]:
    """Give an error to the items it concerns, and go on with the others."""
    try:
        yield
        return
    except PathlensError as known:
        error = known
    except torch.OutOfMemoryError as memory:
        error = ResourceExhaustedError(
            "The device has no memory left for this request; ask for fewer targets or send fewer images at once.",
            reason="OUT_OF_MEMORY",
            retry_after=1.0,
        )
        error.__cause__ = memory
    except Exception as defect:
        _logger.exception("Explaining failed")
        error = InternalError("The service failed while computing this answer; its log has the details.")
        error.__cause__ = defect
    for item in items:
        item.error = item.error or error
