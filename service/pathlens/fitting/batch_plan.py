"""Which images each step of a training sees: the same for the same seed, from whatever step it is resumed."""

from collections.abc import Sequence
from functools import lru_cache
from typing import overload

import torch


class BatchPlan(Sequence[list[int]]):
    """Batches of positions, every image at most once in each round, in another order each round.

    What fills no batch at the end of a round has its turn in another.

    Args:
        positions: Of the images to train on, at least one.
        batch_size: Images in a batch; all of them if there are fewer.
        steps: Number of batches.
        seed: Of the order.
    """

    def __init__(self, positions: Sequence[int], batch_size: int, steps: int, seed: int) -> None:
        self._positions = torch.tensor(positions)
        self._size = min(batch_size, len(positions))
        self._per_round = len(positions) // self._size
        self._steps = steps
        # A method's cache would keep the plan itself alive.
        self._order = lru_cache(maxsize=2)(lambda number: self._shuffled(seed, number))

    def __len__(self) -> int:
        """Return the number of batches."""
        return self._steps

    @overload
    def __getitem__(self, step: int) -> list[int]: ...
    @overload
    def __getitem__(self, step: slice) -> list[list[int]]: ...
    def __getitem__(self, step: int | slice) -> list[int] | list[list[int]]:
        """Return the batch of a step, or those of several."""
        if isinstance(step, slice):
            return [self[number] for number in range(*step.indices(self._steps))]
        if not 0 <= step < self._steps:
            raise IndexError(f"step {step} of {self._steps}")
        number, place = divmod(step, self._per_round)
        batch: list[int] = self._order(number)[place * self._size : (place + 1) * self._size].tolist()
        return batch

    def _shuffled(self, seed: int, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        return self._positions[torch.randperm(len(self._positions), generator=generator)]
