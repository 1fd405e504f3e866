"""Observations: every figure of an evaluation in one form, image by image, and their summary."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, order=True)
class Observation:
    """One measured value.

    Attributes:
        measure: What was measured, such as "agreement".
        value: The figure; a truth is 1 or 0.
        method: Which pathway or map it was measured of; empty for the classifier itself.
        sparsity: Fraction of neurons that the method was asked to remove; None where there is no pathway, or one that
            finds its own sparsity.
        control: Whether it is of the random control of the same size instead.
        detail: What the measure is broken down by: a layer, a radius, the share of pixels removed, another method.
        subject: Position of the image, or name of the class, that it was measured on.
        ablation: What stands in for the neurons that the pathway removes; empty where there is no pathway.
    """

    measure: str
    value: float
    method: str = ""
    sparsity: float | None = None
    control: bool = False
    detail: str = ""
    subject: int | str = ""
    ablation: str = ""


@dataclass(frozen=True)
class Summary:
    """The observations of one measure under the same conditions.

    Attributes:
        measure: As in `Observation`, like the other conditions.
        method: Likewise.
        sparsity: Likewise.
        control: Likewise.
        detail: Likewise.
        mean: Of the values.
        standard_error: Of that mean; None for a single value.
        count: Number of values.
        ablation: As in `Observation`.
    """

    measure: str
    method: str
    sparsity: float | None
    control: bool
    detail: str
    mean: float
    standard_error: float | None
    count: int
    ablation: str = ""


def summarise(observations: Iterable[Observation]) -> list[Summary]:
    """Average the observations that differ in their subject alone, in order of first appearance."""
    groups: dict[Observation, list[float]] = {}
    for observation in observations:
        alike = replace(observation, value=0.0, subject="")
        groups.setdefault(alike, []).append(observation.value)
    summaries = []
    for of, values in groups.items():
        error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        mean = float(np.mean(values))
        conditions = (of.measure, of.method, of.sparsity, of.control, of.detail)
        summaries.append(Summary(*conditions, mean, error, len(values), of.ablation))
    return summaries
