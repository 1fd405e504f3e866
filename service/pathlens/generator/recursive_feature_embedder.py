"""RFE, the recursive feature embedder: what every tap says, known to all shallower taps."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathlens.classifier.taps import Tap
from pathlens.generator.channel_means import Glance


class RecursiveFeatureEmbedder(nn.Module):
    """Embeds the feature maps of every tap and carries a state from the deepest tap to the shallowest.

    A map enters by its mean over the positions that a glance sees, divided by its mean magnitude over many images: an
    unusual channel says as much in a tap of small values as in one of large values. The recursion is h = tanh(W a + U h
    + b), because a gated unit would cost small classifiers more than a tenth of their own pass (arXiv 2309.09887,
    section 3.2, in sizes of our own).

    Args:
        taps: The taps of the classifier.
        scales: Mean magnitude of each channel over many images, one tensor [C] per tap, above 0.
        width: Size of an embedding.
    """

    gain: Tensor
    share: Tensor

    def __init__(self, taps: tuple[Tap, ...], scales: Sequence[Tensor], width: int) -> None:
        super().__init__()
        self._glances = [Glance(tap) for tap in taps]
        self._channels = [tap.channels for tap in taps]
        self._entries = [nn.Linear(tap.channels, width) for tap in taps]
        self.entries = nn.ModuleList(self._entries)
        self.recurrence = nn.Linear(width, width, bias=False)
        self.register_buffer("gain", 1 / torch.cat(list(scales)))
        # Not stored: how many positions a glance sees is a matter of the code that looks.
        shares = [
            1 / glance.count for tap, glance in zip(taps, self._glances, strict=True) for _ in range(tap.channels)
        ]
        self.register_buffer("share", torch.tensor(shares), persistent=False)

    def forward(self, activations: Sequence[Tensor]) -> list[Tensor]:
        """Embed the activations of a run.

        Args:
            activations: One tensor [B, ...] per tap.

        Returns:
            One embedding [B, width] per tap, in call order; the first has seen all the others.
        """
        sums = [glance(activation) for glance, activation in zip(self._glances, activations, strict=True)]
        # One product for all taps: on small maps, the number of operations is what costs.
        entering = torch.split(torch.cat(sums, 1) * (self.gain * self.share), self._channels, 1)
        recurrence = self.recurrence.weight.t()
        embeddings: list[Tensor] = []
        for value, entry in zip(reversed(entering), reversed(self._entries), strict=True):
            entered = F.linear(value, entry.weight, entry.bias)
            if embeddings:
                entered = torch.addmm(entered, embeddings[-1], recurrence)
            embeddings.append(torch.tanh(entered))
        return embeddings[::-1]
