"""The price of sparsity of class pathways, searched while training for the agreement and forcing that are asked for."""

import torch
from torch import Tensor

LOWEST, HIGHEST = 0.01, 200.0

SPEED = 1.2
"""Sparsity that is aimed at grows by this much over a training in which nothing stands in its way, on average."""

LEAD, LAG = 0.1, 0.3
"""The sparsity that is aimed at is never further above and below the present one: masks must become denser quickly."""

GAIN = 0.06
"""The logarithm of a price grows by this much in a step for each unit of sparsity that is missing."""

SHIFT, LARGEST_BALANCE = 7.0, 3.0
"""Weight moves between agreement and forcing by this much over a training, in log odds, and never further than that."""

FULL_STEP = 12
"""Images of a class that move its price by a whole step; fewer move it in proportion, as they move the masks."""


class SearchedPrice:
    """Prices that make masks sparser while what was asked for holds, and denser while it does not.

    Whether it holds is told by images that train nothing: on those that do, masks look better than they are, by more
    the more neurons they choose from.

    The sparsity that is aimed at rises or falls at a steady speed, and the price follows what is missing of it: masks
    answer a price late, and a price that rose until a bound is crossed would be far too high by then.

    Near a bound the price is charged in part, and beyond it not at all: that takes effect at once, as the price itself,
    which moves slowly, would not.

    The search is part of the training and so costs no second one. Of agreement and forcing, what is further from its
    bound lends weight to the other.

    Args:
        count: Number of classes, each with a price.
        first: Where they begin.
        steps: Length of the training.
        agreement: The least share of images that keep their class, in (0, 1).
        forcing: The greatest share of other images that get the class, in (0, 1).
    """

    def __init__(self, count: int, first: float, steps: int, agreement: float, forcing: float) -> None:
        self._lost, self._forcing = 1 - agreement, forcing
        self._steps = steps
        self.prices = torch.full((count,), first)
        self.balance = torch.zeros(count)
        # Where the first masks are.
        self._aim = torch.full((count,), torch.nan)
        # Before anything is known, all is what it would be if every neuron were kept.
        self._slack = torch.ones(count)

    def judge(self, kept: Tensor, forced: Tensor, passed: int) -> None:
        """Take in what the masks are worth.

        Args:
            kept: Share of images that keep their class, [count].
            forced: Share of other images that get it, [count].
            passed: Steps since the last time.
        """
        own, other = 1 - (1 - kept) / self._lost, 1 - forced / self._forcing
        change = SHIFT * passed / self._steps * (other - own).clamp(-1, 1)
        self.balance = (self.balance + change).clamp(-LARGEST_BALANCE, LARGEST_BALANCE)
        self._slack = torch.minimum(own, other)

    def follow(self, images: Tensor, sparsity: Tensor) -> None:
        """Move the prices after a step.

        Args:
            images: How many of each class the step has seen, [count].
            sparsity: Of the masks, [count].
        """
        step = (images / FULL_STEP).clamp(max=1)
        # In proportion to a class's share of the images: over a training, the aim of each of a thousand may go as far.
        speed = images / images.float().mean().clamp(min=1e-9) * SPEED / self._steps
        aim = torch.where(self._aim.isnan(), sparsity, self._aim) + speed * (4 * self._slack).clamp(-1, 1)
        self._aim = torch.minimum(torch.maximum(aim, sparsity - LAG), sparsity + LEAD).clamp(0, 1)
        self.prices = (self.prices * (step * GAIN * (self._aim - sparsity)).exp()).clamp(LOWEST, HIGHEST)

    @property
    def charged(self) -> Tensor:
        """The prices to pay now, [count]."""
        return self.prices * (4 * self._slack).clamp(0, 1)

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
        return {"prices": self.prices, "balance": self.balance, "aim": self._aim, "slack": self._slack}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where another search stopped."""
        self.prices, self.balance = state["prices"], state["balance"]
        self._aim, self._slack = state["aim"], state["slack"]
