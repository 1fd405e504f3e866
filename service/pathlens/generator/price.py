"""The price of sparsity, searched while training for what is asked of the masks."""

import torch
from torch import Tensor

from pathlens.generator.parallel import ProcessGroup

LOWEST, HIGHEST = 0.01, 200.0

SPEED = 1.2
"""Sparsity that is aimed at grows by this much over a training in which nothing stands in its way."""

LEAD, LAG = 0.1, 0.3
"""The sparsity that is aimed at is never further above and below the present one: masks must become denser quickly."""

GAIN = 0.06
"""The logarithm of a price grows by this much in a step for each unit of sparsity that is missing."""

FULL_STEP = 12
"""Images of a class that move its price by a whole step; of fewer, it moves in proportion, and learns no more."""

MEMORY = 512
"""Images that the running figures remember."""


class SearchedPrice:
    """Prices that make masks sparser while what was asked for holds, and denser while it does not.

    The sparsity that is aimed at rises or falls at a steady speed, and the price follows what is missing of it: masks
    answer a price late, and a price that rose until a bound is crossed would be far too high by then.

    Near a bound the price is charged in part, and beyond it not at all: that takes effect at once, as the price itself,
    which moves slowly, would not.

    The search is part of the training and so costs no second one. Where both agreement and forcing are asked for, what
    is further from its bound lends weight to the other.

    Args:
        count: Number of prices, one for each class or one for all.
        first: Where they begin.
        steps: Length of the training.
        agreement: The least share of images that keep their class, in (0, 1).
        group: The processes that train together; all get the same prices.
        forcing: The greatest share of other images that get the class, in (0, 1); None where nothing can be forced.
    """

    def __init__(
        self, count: int, first: float, steps: int, agreement: float, group: ProcessGroup, forcing: float | None = None
    ) -> None:
        self._lost, self._forcing = 1 - agreement, forcing
        self._steps = steps
        self._group = group
        self.prices = torch.full((count,), first)
        self.charged = self.prices
        self.balance = torch.zeros(count)
        self._aim = torch.zeros(count)
        # Before the first image they are what they would be if everything were kept.
        self._kept, self._forced, self._sparsity = torch.ones(count), torch.zeros(count), torch.zeros(count)
        self._seen = torch.zeros(3, count)

    def update(self, rows: Tensor, members: int, hit: Tensor, sparsity: Tensor) -> None:
        """Take what a batch showed into the running figures and move the prices.

        Args:
            rows: Which price each image belongs to, int64 [B].
            members: How many of the first images are of their own class.
            hit: Whether the class came out, bool [B].
            sparsity: Of the mask of each image, [B].
        """
        count = len(self.prices)
        tally = torch.zeros(6, count)
        others = slice(members, None)
        for place, (chosen, values) in enumerate(
            ((slice(None), sparsity), (slice(0, members), hit[:members]), (others, hit[members:]))
        ):
            tally[2 * place].index_add_(0, rows[chosen], torch.ones(len(values)))
            tally[2 * place + 1].index_add_(0, rows[chosen], values.float())
        self._group.add(tally)
        self._sparsity = self._running(0, self._sparsity, tally[0], tally[1])
        self._kept = self._running(1, self._kept, tally[2], tally[3])
        room = 1 - (1 - self._kept) / self._lost
        step = (tally[0] / FULL_STEP).clamp(max=1)
        speed = step * SPEED / self._steps
        if self._forcing is not None:
            self._forced = self._running(2, self._forced, tally[4], tally[5])
            other = 1 - self._forced / self._forcing
            self.balance = (self.balance + 4 * speed * (other - room).clamp(-1, 1)).clamp(-2, 2)
            room = torch.minimum(room, other)
        aim = self._aim + speed * (4 * room).clamp(-1, 1)
        self._aim = torch.minimum(torch.maximum(aim, self._sparsity - LAG), self._sparsity + LEAD).clamp(0, 1)
        self.prices = (self.prices * (step * GAIN * (self._aim - self._sparsity)).exp()).clamp(LOWEST, HIGHEST)
        self.charged = self.prices * (4 * room).clamp(0, 1)

    def _running(self, figure: int, before: Tensor, count: Tensor, total: Tensor) -> Tensor:
        """Return the running means of a figure over the last images of each price: over all, until memory is full."""
        self._seen[figure] = (self._seen[figure] + count).clamp(max=MEMORY)
        weight = count / self._seen[figure].clamp(min=1)
        return before + weight.clamp(max=1) * (total / count.clamp(min=1) - before)

    def weights(self, rows: Tensor, members: int) -> Tensor:
        """Return the weight of each image's loss, of mean 1 over a class and the others: [B].

        Args:
            rows: Which price each image belongs to, int64 [B].
            members: How many of the first images are of their own class.
        """
        share = torch.sigmoid(self.balance)[rows]
        return 2 * torch.cat([share[:members], 1 - share[members:]])

    def state_dict(self) -> dict[str, Tensor]:
        """Return what `load_state_dict` needs to go on."""
        return {
            "prices": self.prices,
            "charged": self.charged,
            "balance": self.balance,
            "aim": self._aim,
            "kept": self._kept,
            "forced": self._forced,
            "sparsity": self._sparsity,
            "seen": self._seen,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where another search stopped."""
        self.prices, self.charged = state["prices"], state["charged"]
        self.balance, self._aim = state["balance"], state["aim"]
        self._kept, self._forced, self._sparsity = state["kept"], state["forced"], state["sparsity"]
        self._seen = state["seen"].clone()
