"""Whether a quantity stays level."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy.stats import linregress

# Samples of neighbouring seconds repeat each other, which would make the error of a slope too small.
_BLOCK_SECONDS = 5.0
_FEWEST_BLOCKS = 4
_ERRORS = 2.0


@dataclass(frozen=True)
class Trend:
    """The regression line of a quantity over time, of the means of blocks of five seconds.

    Attributes:
        mean: Mean of the quantity.
        slope: Per minute.
        error: Standard error of the slope.
        minutes: Length of the interval.
    """

    mean: float
    slope: float
    error: float
    minutes: float

    @classmethod
    def of(cls, points: Sequence[tuple[float, float]]) -> "Trend | None":
        """Fit the line.

        Args:
            points: Moments in seconds, and the quantity; in order.

        Returns:
            The trend; None with less than twenty seconds.
        """
        blocks: dict[int, list[float]] = {}
        for moment, value in points:
            blocks.setdefault(int((moment - points[0][0]) / _BLOCK_SECONDS), []).append(value)
        if len(blocks) < _FEWEST_BLOCKS:
            return None
        minutes = [number * _BLOCK_SECONDS / 60.0 for number in blocks]
        means = [fmean(values) for values in blocks.values()]
        # The error of a constant is not a number to scipy.
        fit = linregress(minutes, means) if len(set(means)) > 1 else None
        slope, error = (0.0, 0.0) if fit is None else (float(fit.slope), float(fit.stderr))
        return cls(fmean(value for _, value in points), slope, error, minutes[-1] - minutes[0])

    @property
    def growth(self) -> float:
        """What was added over the interval at the least, if the slope is two standard errors less steep."""
        return (self.slope - _ERRORS * self.error) * self.minutes
