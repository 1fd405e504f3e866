"""Which questions that wait may go to the handler in one request."""

import time

from pathlens.gateway.costs import Costs
from pathlens.gateway.errand import Errand
from pathlens.gateway.settings import GatewaySettings

# What is decoded together; of pictures beyond it, decoding is what they cost.
_MOST_PIXELS = 4 * 1024 * 1024


class Company:
    """Gathers the questions of one request, beginning with the one whose turn it is.

    Questions join if they cost the handler about the same: lone ones about the same version, by the same method and
    source, with one target each. Their options may differ otherwise. How many there are is bounded by their number,
    their bytes and pixels, and by the time that all of them are expected to take together: each of them waits for all,
    and so do the predictions behind them. Nobody joins, nor is joined, who may not have this time.

    Args:
        first: Whose turn it is.
        costs: What the handler is expected to take.
        settings: The limits.
    """

    def __init__(self, first: Errand, costs: Costs, settings: GatewaySettings) -> None:
        self.errands = [first]
        self._costs = costs
        self._settings = settings
        self._end = first.end
        self._bytes = first.place.size
        self._pixels = first.pixels
        self._now = time.monotonic()

    @property
    def is_open(self) -> bool:
        """Whether others may join at all."""
        return self._pixels is not None and self._fits(2, self._end)

    def joins(self, errand: Errand) -> bool:
        """Let a question join if it may.

        Args:
            errand: One that waits.

        Returns:
            Whether it is part of the request now.
        """
        first, end = self.errands[0], min(self._end, errand.end)
        if self._pixels is None or errand.pixels is None:
            return False
        pixels, size = self._pixels + errand.pixels, self._bytes + errand.place.size
        if (
            (errand.version, errand.work) != (first.version, first.work)
            or pixels > _MOST_PIXELS
            or size > self._settings.max_chunk_bytes
            or not self._fits(len(self.errands) + 1, end)
        ):
            return False
        self.errands.append(errand)
        self._end, self._pixels, self._bytes = end, pixels, size
        return True

    def _fits(self, count: int, end: float) -> bool:
        if count > self._settings.batch_chunk:
            return False
        expected = self._costs.together(self.errands[0].work, count)
        return expected is not None and expected <= min(self._settings.join_seconds, end - self._now)
