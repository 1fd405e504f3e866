"""RPD, the recursive pathway decoder: the importance of every neuron, tap after tap."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathlens.classifier.taps import Tap
from pathlens.explanation import Granularity
from pathlens.generator.channel_means import Glance
from pathlens.generator.distance_aware_quantizer import quantize

INITIAL_SCORE = 1.5
"""Scores begin here, with every neuron kept; the price of sparsity then removes what is not missed."""


class RecursivePathwayDecoder(nn.Module):
    """Walks the taps from the deepest to the shallowest; each step knows what the step before kept.

    From deep to shallow, because what has to be kept of a tap is what the deeper taps read. A step joins the class
    code, the tap's embedding, the state of the step before and the channels kept there (arXiv 2309.09887, section 3.2,
    in sizes of our own).

    The score of a channel is a linear function of the step's state. The score of a unit adds the unit's own activation
    to that of its channel, in units of the channel's mean magnitude: a unit is kept if it is active enough, and how
    much is enough is decided for each channel and image. A score of its own for every unit would cost more than the
    classifier.

    Args:
        taps: The taps of the classifier.
        scales: Mean magnitude of each channel over many images, one tensor [C] per tap, above 0.
        width: Size of code and embeddings.
        granularity: What counts as one neuron.
    """

    scale: Tensor

    def __init__(self, taps: tuple[Tap, ...], scales: Sequence[Tensor], width: int, granularity: Granularity) -> None:
        super().__init__()
        self._taps = taps
        self._glances = [Glance(tap) for tap in taps]
        self._channels = [tap.channels for tap in taps]
        self._granularity = granularity
        self.start = nn.Linear(width, width)
        self.embedding = nn.Linear(width, width, bias=False)
        self.recurrence = nn.Linear(width, width, bias=False)
        self._scores = [nn.Linear(width, tap.channels) for tap in taps]
        self._kept = [nn.Linear(tap.channels, width, bias=False) for tap in taps[1:]]
        self.scores, self.kept = nn.ModuleList(self._scores), nn.ModuleList(self._kept)
        self.register_buffer("scale", torch.cat(list(scales)))
        for layer in self._scores:
            nn.init.normal_(layer.weight, std=0.1 / width**0.5)
            nn.init.constant_(layer.bias, INITIAL_SCORE)

    def forward(self, code: Tensor, embeddings: Sequence[Tensor], activations: Sequence[Tensor]) -> list[Tensor]:
        """Score the neurons.

        Args:
            code: Of the pathway distillation network, [B, width].
            embeddings: Of the recursive feature embedder, one [B, width] per tap.
            activations: One tensor [B, ...] per tap.

        Returns:
            One tensor per tap, [B, C] or [B, ...] with the tap's shape; a neuron is kept if its score is above 0.
        """
        if self._granularity is Granularity.CHANNEL:
            return self._walk(code, embeddings, lambda _, values: (values, quantize(values)))
        scales = torch.split(self.scale, self._channels)

        def score(index: int, values: Tensor) -> tuple[Tensor, Tensor]:
            tap = self._taps[index]
            scores = activations[index].float() / tap.spread(scales[index]) + tap.spread(values)
            glance = self._glances[index]
            return scores, glance(quantize(scores)) / glance.count

        return self._walk(code, embeddings, score)

    def masks(self, code: Tensor, embeddings: Sequence[Tensor], activations: Sequence[Tensor]) -> list[Tensor]:
        """Tell which neurons are kept, bool, as scores above 0 do, with one look at each unit.

        Args:
            code: As for `forward`.
            embeddings: As for `forward`.
            activations: As for `forward`.
        """
        if self._granularity is Granularity.CHANNEL:
            nothing = code.new_zeros(())
            scores = self._walk(code, embeddings, lambda _, values: (values, torch.heaviside(values, nothing)))
            return list(torch.split(torch.cat(scores, 1) > 0, self._channels, 1))
        scales = torch.split(-self.scale, self._channels)

        def decide(index: int, values: Tensor) -> tuple[Tensor, Tensor]:
            mask = activations[index] > self._taps[index].spread(values * scales[index])
            glance = self._glances[index]
            return mask, glance(mask) / glance.count

        return self._walk(code, embeddings, decide)

    def _walk(
        self, code: Tensor, embeddings: Sequence[Tensor], visit: Callable[[int, Tensor], tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        """Visit the taps from the deepest with a value for each channel; a visit tells what share of it is kept."""
        # What every step gets whatever the others do, in one product: [taps, B, width].
        given = torch.matmul(torch.stack(list(embeddings)), self.embedding.weight.t()) + self.start(code)
        recurrence = self.recurrence.weight.t()
        # The last tap has no step before it.
        before = [None, *reversed([layer.weight for layer in self._kept])]
        results: list[Tensor] = []
        state = kept = given
        for place, (entered, scores, weight) in enumerate(
            zip(reversed(given.unbind()), reversed(self._scores), before, strict=True)
        ):
            if weight is not None:
                entered = torch.addmm(entered, state, recurrence)
                entered = torch.addmm(entered, kept, weight.t())
            state = torch.tanh(entered)
            result, kept = visit(len(self._taps) - 1 - place, F.linear(state, scores.weight, scores.bias))
            results.append(result)
        return results[::-1]
