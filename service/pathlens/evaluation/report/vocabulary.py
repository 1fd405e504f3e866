"""The names, colours and units in which a report shows methods and measures."""

import math
import zlib
from dataclasses import dataclass

INK = "#1C2128"

PALETTE = (
    ("#0072B2", "#4FA8F0"),
    ("#D55E00", "#FF9A3D"),
    ("#12A085", "#3FD9B0"),
    ("#5A3A08", "#8F6A2A"),
    ("#8C1D2F", "#E5534B"),
    ("#1F5130", "#C4E87C"),
    ("#4B2E83", "#DCCFFF"),
    ("#C2307F", "#FF6FB5"),
    ("#868C96", "#7E8591"),
)
"""Colours of methods on a light page and on a dark one.

Any two differ by 6 or more (CIEDE2000) for normal sight, deuteranopia and protanopia, and each has a contrast of 3 or
more with the page.
"""

_GREY = len(PALETTE) - 1


@dataclass(frozen=True)
class Method:
    """How a method appears.

    Attributes:
        label: What readers call it.
        colour: Index into `PALETTE`; None is the colour of the text.
        marker: In matplotlib's notation.
    """

    label: str
    colour: int | None
    marker: str

    @property
    def light(self) -> str:
        """Its colour on a light page."""
        return INK if self.colour is None else PALETTE[self.colour][0]


# A method of pathways and one of maps may share a colour: only rows with their names on show both.
METHODS = {
    "neuron_mct": Method("NeuronMCT", 0, "o"),
    "neuron_intgrad": Method("NeuronIntGrad", 1, "s"),
    "greedy_pruning": Method("Greedy pruning", 2, "^"),
    "distillation_guided_routing": Method("DGR", 3, "D"),
    "generated": Method("GEN-CNP", 7, "P"),
    "transferred": Method("Transferred", 6, "X"),
    "transferred by frequency": Method("Transferred by frequency", 4, "v"),
    "gradient": Method("Gradient", 2, "^"),
    "gradient_times_input": Method("Gradient × input", 3, "D"),  # noqa: RUF001 - that is its name
    "integrated_gradients": Method("Integrated gradients", 4, "v"),
    "grad_cam": Method("Grad-CAM", 5, "p"),
    "random": Method("Random", _GREY, "h"),
    "whole network": Method("Whole network", None, "*"),
    "centre": Method("Image centre", _GREY, "o"),
    "box area": Method("Area of the box", _GREY, "s"),
}

_RANKS = {name: rank for rank, name in enumerate(METHODS)}


def method(name: str) -> Method:
    """Return how a method appears; one that is not in `METHODS` goes by its name."""
    return METHODS.get(name) or Method(name, zlib.crc32(name.encode()) % _GREY, "o")


def rank(name: str) -> int:
    """Return where a method stands among others; those not in `METHODS` come last."""
    return _RANKS.get(name, len(_RANKS))


@dataclass(frozen=True)
class Measure:
    """How a measure appears.

    Attributes:
        label: What readers call it.
        percent: Whether it is a fraction, shown as a percentage.
        better: "↑" if high values are better, "↓" if low ones; empty if neither.
    """

    label: str
    percent: bool = False
    better: str = ""


MEASURES = {
    "accuracy": Measure("Accuracy", True, "↑"),
    "seconds per forward": Measure("Seconds per forward pass"),
    "agreement": Measure("Agreement", True, "↑"),
    "instance forcing": Measure("Forcing", True, "↓"),
    "confidence drop": Measure("Confidence drop (mDC)", True, "↓"),
    "confidence increase": Measure("Confidence increase (mIC)", True, "↑"),
    "dead share": Measure("Dead neurons in the pathway", True, "↓"),
    "instance leak": Measure("Leak", True),
    "instance leak reference": Measure("Leak reference", True),
    "realised sparsity": Measure("Neurons removed", True),
    "sparsity spread": Measure("Standard deviation over images", True),
    "lowest sparsity": Measure("Fewest", True),
    "highest sparsity": Measure("Most", True),
    "acIOU": Measure("Same class (acIOU)", better="↑"),
    "cross IoU": Measure("Different classes (cross IoU)", better="↓"),
    "overlap": Measure("Overlap"),
    "class agreement": Measure("Agreement", True, "↑"),
    "forcing": Measure("Forcing", True, "↓"),
    "class confidence drop": Measure("Confidence drop (mDC)", True, "↓"),
    "class confidence increase": Measure("Confidence increase (mIC)", True, "↑"),
    "leak": Measure("Leak", True),
    "leak reference": Measure("Leak reference", True),
    "class sparsity": Measure("Neurons removed", True),
    "MoRF": Measure("Most relevant first (MoRF)", better="↓"),
    "LeRF": Measure("Least relevant first (LeRF)", better="↑"),
    "MoRF area": Measure("MoRF area", better="↓"),
    "LeRF area": Measure("LeRF area", better="↑"),
    "area between": Measure("Area between", better="↑"),
    "absolute spearman": Measure("Absolute Spearman correlation", better="↓"),
    "spearman": Measure("Spearman correlation"),
    "ssim": Measure("Structural similarity (SSIM)", better="↓"),
    "pointing game": Measure("Pointing game", True, "↑"),
    "energy in box": Measure("Energy in the box", True, "↑"),
    "linearity error": Measure("Linearity error", better="↓"),
    "cost": Measure("Forward passes", better="↓"),
    "floor": Measure("Lower bound"),
    "accuracy after retraining": Measure("Accuracy after retraining", True, "↓"),
}


def measure(name: str) -> Measure:
    """Return how a measure appears; one that is not in `MEASURES` goes by its name."""
    return MEASURES.get(name) or Measure(name)


def percentage(value: float) -> str:
    """Write a fraction as a short percentage: 0.8 as "80 %", 0.995 as "99.5 %"."""
    return f"{100 * value:.4g} %"


def decimals(value: float) -> int:
    """Return how many decimals show three significant digits of a value, at most 3."""
    return min(3, max(0, 2 - math.floor(math.log10(abs(value))))) if value else 3
