"""Numbers that the commands take."""

import math
from typing import Any

import click


class FloatRange(click.FloatRange):
    """As click's own range, through which NaN would pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number that was written, if it lies in the range."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number
