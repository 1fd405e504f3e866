"""Two-sided class pathways: masks that tell the images of a class from all others as the whole classifier does.

A mask that only keeps its own class can do so by carrying the answer in itself: whatever goes in, the class comes out.
So the mask of class c is trained on images of c and, as many, on images of other classes, and asked for P_c of the
whole classifier each time (contrastive transfer; docs/gen-cnp.md has what was tried).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.errors import FitError
from pathlens.explanation import Ablation, Granularity
from pathlens.generator.class_validation import ClassValidation
from pathlens.generator.masked_run import MaskedRun
from pathlens.generator.objective import detection, odds
from pathlens.generator.parallel import ProcessGroup
from pathlens.generator.price import SearchedPrice
from pathlens.pathways.contributions import first_order
from pathlens.pathways.pathway import mask_shape
from pathlens.pathways.replacement import Replacement

FIRST_PRICE = 0.5
SCORES = (0.5, 3.0)
"""Scores of the neurons that matter least and most to the class before training; above 0 is kept."""

BYTES_PER_SCORE = 24
"""Of importance, score, averaged score, gradient and the optimizer's two moments."""

LARGEST_TABLE = 16
"""GiB that the scores of all classes may take with everything that belongs to them."""

LIMITS = (-1.0, 3.0)
"""Scores stay between these, so that a neuron that was removed can come back when it is missed."""

MEMORY = 0.97
"""Weight of the past in the averaged scores, whose masks are the result: those of single steps flicker."""

VALIDATIONS = 60
"""Looks at the validation images in a training, fewer in a short one."""


@dataclass(frozen=True)
class ClassPathwaySettings:
    """How two-sided class pathways are trained.

    Attributes:
        granularity: What counts as one neuron.
        steps: Length of the training.
        survey: Share of the steps that find out how much each neuron matters before any is removed.
        settle: Share of the steps at the end over which the learning rate falls to 0.
        agreement: The least share of the images of a class that are to keep it, in (0, 1).
        forcing: The greatest share of other images that may get the class, in (0, 1).
        learning_rate: Of Adam, for the scores.
    """

    granularity: Granularity = Granularity.CHANNEL
    steps: int = 3000
    survey: float = 0.05
    settle: float = 0.15
    agreement: float = 0.95
    forcing: float = 0.2
    learning_rate: float = 0.015


class ClassPathwayTraining:
    """Trains the masks of all classes at once, and the constants of `Ablation.OPTIMAL` with them.

    Every image of a batch goes through the pathway network of its own class and through that of another class, drawn at
    random. Loss: `objective.detection` of both, weighed by what the class finds harder, plus the class's price for the
    share it keeps, which rises until agreement or forcing stand in the way on validation images. Gradients pass the
    rounding straight through a sigmoid. The result is the mask of the averaged scores.

    Args:
        classifier: The captured classifier, on the device and in the precision to compute in.
        classes: Those that get a pathway, at least two.
        replacement: What stands in for removed neurons, one row; for `Ablation.OPTIMAL`, where its constants begin.
        settings: How.
        validation: Images that are not trained on and tell what the masks are worth, [V, C, H, W]; in each process its
            share of them.
        group: The processes that train together.
        seed: Of the choice of other classes.

    Raises:
        FitError: If scores of so many neurons and classes would not fit into memory.
    """

    def __init__(
        self,
        classifier: CapturedClassifier,
        classes: Sequence[int],
        replacement: Replacement,
        settings: ClassPathwaySettings,
        validation: Tensor,
        group: ProcessGroup,
        seed: int,
    ) -> None:
        device = classifier.device
        neurons = sum(math.prod(mask_shape(tap, settings.granularity)) for tap in classifier.taps)
        gigabytes = len(classes) * neurons * BYTES_PER_SCORE / 2**30
        if gigabytes > LARGEST_TABLE:
            raise FitError(
                f"Training two-sided pathways of {len(classes)} classes with {neurons} neurons each would need "
                f"{gigabytes:.0f} GiB, more than {LARGEST_TABLE}; fit channels (--granularity channel), raise "
                "--minimum-images, or ask for --class-pathways frequency."
            )
        self._classifier = classifier
        self._classes = torch.tensor(classes, device=device)
        self._row_of_class = torch.full((classifier.classes,), -1, device=device)
        self._row_of_class[self._classes] = torch.arange(len(classes), device=device)
        self._first = replacement
        self._settings = settings
        self._group = group
        self._seed = seed
        shapes = [(len(classes), *mask_shape(tap, settings.granularity)) for tap in classifier.taps]
        self._importance = [torch.zeros(shape, device=device) for shape in shapes]
        self._scores = [torch.ones(shape, device=device, requires_grad=True) for shape in shapes]
        self._constants: list[Tensor] = []
        groups: list[dict[str, Any]] = [{"params": self._scores}]
        if replacement.ablation is Ablation.OPTIMAL:
            # In units of the tap's mean, so that one learning rate fits all taps.
            self._units = [float(value.abs().mean()) + 1e-6 for value in replacement.values]
            rows = [value.expand(len(classes), *value.shape[1:]) for value in replacement.values]
            self._constants = [
                (row / unit).clone().requires_grad_() for row, unit in zip(rows, self._units, strict=True)
            ]
            groups.append({"params": self._constants})
        self._optimizer = torch.optim.Adam(groups, settings.learning_rate, betas=(0.9, 0.99))
        self._averaged = [tensor.detach().clone() for tensor in (*self._scores, *self._constants)]
        self._search = SearchedPrice(len(classes), FIRST_PRICE, settings.steps, settings.agreement, settings.forcing)
        self._validation = ClassValidation(classifier, self._classes, settings.granularity, validation, group)
        self._interval = max(1, settings.steps // VALIDATIONS)
        self._figures: dict[str, float] = {}
        self._number = 0

    def step(self, images: Tensor) -> Mapping[str, float]:
        """Take one step on a batch, [B, C, H, W].

        Returns:
            Loss and sparsity of the step once masks are learned, agreement and forcing once images have validated them.
        """
        with torch.no_grad():
            logits = self._classifier(images)
        own = self._row_of_class[logits.argmax(1)]
        chosen = own >= 0
        # A network without an image is undefined; one that stands for none keeps the processes in step.
        usable = bool(chosen.any())
        if not usable:
            chosen[:1], own[:1] = True, 0
        images, logits, own = images[chosen], logits[chosen], own[chosen]
        count = len(self._classes)
        # Seeded step by step, so that a resumed training draws what an uninterrupted one would.
        seed = (self._seed * 1_000_003 + self._number) * self._group.size + self._group.rank
        shift = torch.randint(1, count, (len(own),), generator=torch.Generator().manual_seed(seed)).to(own.device)
        images, logits = torch.cat([images, images]), torch.cat([logits, logits])
        rows = torch.cat([own, (own + shift) % count])
        survey = max(1, round(self._settings.survey * self._settings.steps))
        if self._number < survey:
            self._note_importance(images, rows, usable)
        else:
            if self._number == survey:
                self._begin()
            self._learn(images, logits, rows, len(own), usable)
            look, rest = divmod(self._number - survey + 1, self._interval)
            if not rest:
                self._validate(look)
        self._number += 1
        return dict(self._figures)

    def _note_importance(self, images: Tensor, rows: Tensor, usable: bool) -> None:
        """Add up what each neuron is worth to the odds of a class, to first order."""
        trace = self._classifier.trace(images)
        with torch.enable_grad():
            total = odds(trace.logits, self._classes[rows]).sum()
        gradients = torch.autograd.grad(total, trace.activations, allow_unused=True, materialize_grads=True)
        moved = [
            activation.detach() - self._first.of(index, activation)
            for index, activation in enumerate(trace.activations)
        ]
        worth = first_order(self._classifier.taps, moved, gradients, self._settings.granularity)
        added = [torch.zeros_like(importance) for importance in self._importance]
        for total_worth, scores in zip(added, worth.scores, strict=True):
            total_worth.index_add_(0, rows, scores * usable)
        # At once, so that every process holds what all have seen and any of them can write it down.
        self._group.average(added)
        for importance, total_worth in zip(self._importance, added, strict=True):
            importance += total_worth

    def _begin(self) -> None:
        """Order the neurons of each class by importance, so that the least important go first."""
        flat = torch.cat([importance.flatten(1) for importance in self._importance], 1)
        places = flat.argsort(dim=1, stable=True).argsort(1).float() / max(1, flat.shape[1] - 1)
        low, high = SCORES
        with torch.no_grad():
            parts = torch.split(places, [importance[0].numel() for importance in self._importance], 1)
            for scores, averaged, part in zip(self._scores, self._averaged, parts, strict=False):
                scores.copy_((low + (high - low) * part).view_as(scores))
                averaged.copy_(scores)

    def _learn(self, images: Tensor, logits: Tensor, rows: Tensor, members: int, usable: bool) -> None:
        unsettled = min(1.0, (1 - self._number / self._settings.steps) / self._settings.settle)
        for group, rate in zip(self._optimizer.param_groups, (1.0, 1 / 3), strict=False):
            group["lr"] = self._settings.learning_rate * rate * unsettled
        masks = [_straight_through(scores[rows]) for scores in self._scores]
        replacement = self._values(self._constants).select(rows)
        run = MaskedRun(self._classifier.taps, masks, self._settings.granularity, replacement)
        alone = self._classifier(images, run)
        price = self._search.charged.to(rows.device)[rows]
        weight = self._search.weights(rows.cpu(), members).to(rows.device)
        wrong = detection(logits, alone, self._classes[rows])
        loss = usable * (2 * (weight * wrong).mean() + (price * run.density).mean())
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        trained = [*self._scores, *self._constants]
        self._group.average(tensor.grad for tensor in trained)
        self._optimizer.step()
        with torch.no_grad():
            for scores in self._scores:
                scores.clamp_(*LIMITS)
            for averaged, tensor in zip(self._averaged, trained, strict=True):
                averaged.lerp_(tensor, 1 - MEMORY)
        kept = sum((mask.flatten(1).sum(1) for mask in self._masks), start=torch.zeros((), device=rows.device))
        sparsity = (1 - kept / sum(scores[0].numel() for scores in self._scores)).cpu()
        shown = torch.bincount(rows.cpu(), minlength=len(self._classes)) * usable
        self._group.add(shown)
        self._search.follow(shown, sparsity)
        figure = loss.detach().cpu()
        self._group.average([figure])
        self._figures.update(loss=float(figure), sparsity=float(sparsity.mean()))

    def _validate(self, look: int) -> None:
        """Let the images that train nothing tell what the masks are worth."""
        replacement = self._values(self._averaged[len(self._scores) :])
        found = self._validation.look(look, self._masks, replacement)
        if found is not None:
            # The bounds are to hold for other images, too: of few, they ask for more.
            self._search.judge(found.kept - found.kept_error, found.forced + found.forced_error, self._interval)
            self._figures.update(agreement=float(found.kept.mean()), forcing=float(found.forced.mean()))

    @property
    def _masks(self) -> list[Tensor]:
        """The masks of all classes, one bool tensor [classes, ...] per tap."""
        return [averaged > 0 for averaged in self._averaged[: len(self._scores)]]

    def _values(self, constants: Sequence[Tensor]) -> Replacement:
        """Return what stands in for removed neurons, with a row for each class that is trained or one for all."""
        if not constants:
            return self._first
        values = tuple(constant * unit for constant, unit in zip(constants, self._units, strict=True))
        return Replacement(Ablation.OPTIMAL, values)

    def masks(self) -> dict[int, Tensor]:
        """Return the masks by class, bool [N] on the CPU."""
        table = torch.cat([mask.flatten(1).cpu() for mask in self._masks], 1)
        return dict(zip(self._classes.tolist(), table, strict=True))

    def replacement(self) -> Replacement:
        """Return what stands in for removed neurons: one row, or for `Ablation.OPTIMAL` one for each of all classes."""
        learned = self._values(self._averaged[len(self._scores) :])
        if learned is self._first:
            return learned
        values = []
        for trained, first in zip(learned.values, self._first.values, strict=True):
            # Classes without a pathway keep what all began with.
            whole = first.repeat(self._classifier.classes, *[1] * (first.ndim - 1))
            whole[self._classes] = trained
            values.append(whole)
        return Replacement(Ablation.OPTIMAL, tuple(values))

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on."""
        return {
            "importance": self._importance,
            "scores": [scores.detach() for scores in self._scores],
            "constants": [constant.detach() for constant in self._constants],
            "averaged": self._averaged,
            "optimizer": self._optimizer.state_dict(),
            "search": self._search.state_dict(),
            "figures": dict(self._figures),
            "number": self._number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another training with the same settings stopped."""
        with torch.no_grad():
            for name, tensors in (
                ("importance", self._importance),
                ("scores", self._scores),
                ("constants", self._constants),
                ("averaged", self._averaged),
            ):
                for tensor, stored in zip(tensors, state[name], strict=True):
                    tensor.copy_(stored)
        self._optimizer.load_state_dict(state["optimizer"])
        self._search.load_state_dict(state["search"])
        self._figures = dict(state["figures"])
        self._number = state["number"]


def _straight_through(scores: Tensor) -> Tensor:
    """Return 1 where a score is above 0, else 0, with the gradient of a sigmoid."""
    soft = torch.sigmoid(scores)
    # In brackets, because 1 + soft - soft would be 1 but for rounding.
    return (scores > 0).to(scores.dtype) + (soft - soft.detach())
