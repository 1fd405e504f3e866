"""One request on its way through the explainer, and the rows of work that it asks for."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathlens.errors import DeadlineExceededError, InternalError, PathlensError, ResourceExhaustedError
from pathlens.explainer.decision import Decision
from pathlens.explanation import (
    ExplanationOptions,
    ExplanationRequest,
    ExplanationResult,
    Faithfulness,
    Linearity,
    NeuronContribution,
    Output,
    PathwaySource,
    TapMask,
)
from pathlens.pathways.pathway import Pathway

DRAWN_FROM_GRADIENT = frozenset({Output.MAP, Output.HEATMAP, Output.OVERLAY})
_DEFAULTS = ExplanationOptions()
_NOTHING = torch.empty(0)
_UNDECIDED = Decision(np.empty(0, np.float32), np.empty(0, np.float32), [])
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
    tensor: Tensor = _NOTHING
    decision: Decision = _UNDECIDED
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

    @property
    def options(self) -> ExplanationOptions:
        """What was asked; the defaults for a prediction, which has no rows to apply them to."""
        return self.request.options or _DEFAULTS

    @property
    def ranking_depth(self) -> int:
        """How many of the most probable classes the answer needs."""
        return max(self.request.prediction_count, self.options.targets.top_k, 1)


@dataclass(eq=False)
class Row:
    """One target of one item, on its way to an explanation.

    Attributes:
        item: The request.
        target: The class that is explained.
        pathways: Of all rows that were made together.
        position: Of this row's pathway among them.
        is_stored: Whether the pathway is the stored one of the target's own class.
        logits: Of the pathway network, float32 [K].
        gradient: Of the target's logit there, float32 [C, H, W].
        sparsity: Of the pathway.
        class_pathway_iou: Its overlap with the stored pathway of the target.
        masks: Of its taps, if they are asked for.
        map: The reduced gradient, if a map or picture is asked for.
        faithfulness: If it is asked for.
        top_neurons: As many as are asked for.
        linearity: If it is asked for.
    """

    item: Item
    target: int
    pathways: Pathway
    position: int = 0
    is_stored: bool = False
    logits: Tensor | None = None
    gradient: Tensor | None = None
    sparsity: float = 0.0
    class_pathway_iou: float | None = None
    masks: tuple[TapMask, ...] = ()
    map: NDArray[np.float32] | None = None
    faithfulness: Faithfulness | None = None
    top_neurons: tuple[NeuronContribution, ...] = ()
    linearity: Linearity | None = None

    @cached_property
    def pathway(self) -> Pathway:
        """The pathway of this row alone."""
        return self.pathways[self.position : self.position + 1] if len(self.pathways) > 1 else self.pathways

    @property
    def needs_gradient(self) -> bool:
        """Whether the pathway network must run forward and backward."""
        options = self.item.options
        return (
            bool(options.outputs & DRAWN_FROM_GRADIENT)
            or options.top_neurons > 0
            or options.linearity_radius is not None
        )

    @property
    def is_transferred(self) -> bool:
        """Whether the pathway network may be run as the stored one of its class, which shows no contributions."""
        return self.is_stored and not self.item.options.top_neurons

    @property
    def needs_run(self) -> bool:
        """Whether the pathway network must run at all."""
        return self.needs_gradient or Output.FAITHFULNESS in self.item.options.outputs


def join_pathways(rows: Sequence[Row]) -> Pathway:
    """Return the pathways of rows of one granularity and ablation as one batch."""
    parts = []
    for pathways, group in groupby(rows, key=lambda row: row.pathways):
        positions = [row.position for row in group]
        parts.append(pathways if positions == list(range(len(pathways))) else pathways[positions])
    return Pathway.concatenate(parts) if len(parts) > 1 else parts[0]


@contextmanager
def errors_of(*items: Item) -> Iterator[None]:
    """Give an error to the items it concerns, and go on with the others."""
    try:
        yield
        return
    except PathlensError as known:
        error = known
    except (torch.OutOfMemoryError, MemoryError) as memory:
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
