"""Training the pathway generator: sparse pathways that keep the classifier's output, taught by the classifier alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.generator.distance_aware_quantizer import quantize
from pathlens.generator.generator import PathwayGenerator
from pathlens.generator.masked_run import MaskedRun
from pathlens.generator.objective import distillation
from pathlens.generator.parallel import ProcessGroup
from pathlens.pathways.replacement import Replacement

RAMP = 0.3
"""Share of the steps over which a price rises from 0: neurons that nobody misses go first."""

TEMPERATURE = 0.8
"""Of the distribution that the pathway network is taught: below 1, because a student falls short of its teacher."""

SEARCH = 0.4
"""Share of the steps after which a price is searched. Agreement is poor while a generator learns, at whatever price."""

VALIDATIONS, VALIDATION_BATCH = 25, 64
"""Looks at the validation images while the price is searched, fewer in a short training, and images in one pass."""

GAIN = 0.2
"""The logarithm of the price moves by this much at a look, at most."""


class Training(Protocol):
    """Work in steps that can be interrupted and resumed."""

    def step(self, images: Tensor) -> Mapping[str, float]:
        """Take one step on a batch, [B, C, H, W], and return figures to show."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on: tensors, numbers and containers of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another training with the same settings stopped."""
        ...


@dataclass(frozen=True)
class GeneratorSettings:
    """How a pathway generator is trained.

    Attributes:
        granularity: What counts as one neuron.
        steps: Length of the training.
        price: λ, what keeping all neurons costs, in nats: beside it, the divergence of the pathway network's output.
            Where the price is searched, the search begins there.
        agreement: Share of images that are to keep their class, in (0, 1), for which the price is searched; None
            leaves the price as it is.
        code_weight: Weight of the divergence of what the class-relevant code says.
        learning_rate: Of AdamW, falling to a twentieth over the training.
    """

    granularity: Granularity = Granularity.CHANNEL
    steps: int = 1000
    price: float = 2.0
    agreement: float | None = None
    code_weight: float = 0.5
    learning_rate: float = 2e-3


class GeneratorTraining:
    """Trains a generator with the objective of arXiv 2309.09887.

    Loss: KL(f'(x) ‖ f(x; m)) + λ · mean(m) + w · KL(f(x) ‖ code), where f' is f at temperature 0.8. No budget is set:
    every image finds its own sparsity.

    Args:
        classifier: The captured classifier, on the device and in the precision to compute in.
        scales: Mean magnitude of each channel over many images, one tensor [C] per tap.
        replacement: What stands in for removed neurons, with one row or one for each class.
        settings: How.
        validation: Images that are not trained on and tell what pathways are worth where the price is searched,
            [V, C, H, W]; in each process its share of them.
        group: The processes that train together.
        seed: Of the generator's first parameters.
    """

    def __init__(
        self,
        classifier: CapturedClassifier,
        scales: Sequence[Tensor],
        replacement: Replacement,
        settings: GeneratorSettings,
        validation: Tensor,
        group: ProcessGroup,
        seed: int,
    ) -> None:
        self._classifier = classifier
        self._replacement = replacement
        self._settings = settings
        self._validation = validation
        self._group = group
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = PathwayGenerator.for_classifier(classifier, scales, settings.granularity)
        self.generator = generator.to(classifier.device)
        self._optimizer = torch.optim.AdamW(self.generator.parameters(), settings.learning_rate, weight_decay=1e-4)
        self._price = settings.price
        self._interval = max(1, round((1 - SEARCH) * settings.steps / VALIDATIONS))
        self._number = 0

    def step(self, images: Tensor) -> Mapping[str, float]:
        """Take one step on a batch, [B, C, H, W]; returns loss, agreement and sparsity."""
        settings = self._settings
        progress = self._number / settings.steps
        for group in self._optimizer.param_groups:
            warm = min(1.0, (self._number + 1) / (0.05 * settings.steps))
            group["lr"] = settings.learning_rate * warm * (0.05 + 0.475 * (1 + math.cos(math.pi * progress)))
        whole = self._classifier.observe(images)
        logits, activations = whole.logits, whole.activations
        predicted = logits.argmax(1)
        generation = self.generator(activations)
        masks = [quantize(score) for score in generation.scores]
        replacement = self._replacement.select(predicted)
        run = MaskedRun(self._classifier.taps, masks, settings.granularity, replacement)
        alone = self._classifier(images, run)
        unfaithfulness = distillation(logits / TEMPERATURE, alone)
        code = distillation(logits, generation.class_logits)
        density = run.density.mean()
        price = self._price * min(1.0, progress / RAMP)
        loss = unfaithfulness + price * density + settings.code_weight * code
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._group.average(parameter.grad for parameter in self.generator.parameters())
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), 1.0)
        self._optimizer.step()
        kept = (alone.detach().argmax(1) == predicted).float().mean()
        figures = torch.stack([loss.detach(), kept, 1 - density.detach()]).cpu()
        self._group.average([figures])
        if settings.agreement is not None and progress >= SEARCH and self._number % self._interval == 0:
            self._move_price(settings.agreement)
        self._number += 1
        return dict(zip(("loss", "agreement", "sparsity"), figures.tolist(), strict=True))

    @torch.no_grad()
    def _move_price(self, agreement: float) -> None:
        """Let images that do not train the generator tell how many keep their class, and raise or lower the price."""
        kept = torch.zeros(2)
        for images in torch.split(self._validation, VALIDATION_BATCH):
            whole = self._classifier.observe(images)
            predicted = whole.logits.argmax(1)
            pathway = self.generator.pathways(whole.activations, self._replacement.select(predicted))
            kept += torch.tensor([len(images), int((self._classifier(images, pathway).argmax(1) == predicted).sum())])
        self._group.add(kept)
        images_seen, images_kept = kept.tolist()
        slack = 1 - (1 - images_kept / images_seen) / (1 - agreement)
        self._price *= math.exp(GAIN * min(1.0, max(-1.0, slack)))

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on."""
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "price": self._price,
            "number": self._number,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another training with the same settings stopped."""
        self.generator.load_state_dict(state["generator"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._price = state["price"]
        self._number = state["number"]
