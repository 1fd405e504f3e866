"""What a request may ask of a fitted classifier; each violation is an error with a reason and a remedy."""

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathlens.errors import FailedPreconditionError, InvalidRequestError
from pathlens.explanation import (
    LINEARITY_RADII,
    MAX_INTEGRATION_STEPS,
    MAX_TARGETS,
    MAX_TOP_NEURONS,
    ExplanationOptions,
    Granularity,
    Output,
    PathwaySource,
)

_FITTED = frozenset({PathwaySource.TRANSFERRED, PathwaySource.GENERATED})
"""Sources whose pathways have the granularity of the bundle and a sparsity of their own."""


def check_options(
    options: ExplanationOptions, sources: Collection[PathwaySource], granularity: Granularity, classes: int
) -> None:
    """Check that the options can be answered.

    Args:
        options: What was asked.
        sources: The sources that this bundle can answer.
        granularity: Of the stored class pathways and of the generator.
        classes: Number of classes.

    Raises:
        InvalidRequestError: If an option is out of range or contradicts another.
        FailedPreconditionError: If this bundle lacks what was asked for.
    """
    # A transferred pathway that is not stored is reported class by class, with the class's name.
    if options.source not in sources and options.source is not PathwaySource.TRANSFERRED:
        available = ", ".join(source.name for source in sources)
        raise FailedPreconditionError(
            f"This model cannot answer source {options.source.name}; available: {available}. For generated "
            "pathways, fit the bundle with --source generated.",
            reason="PATHWAY_SOURCE_UNAVAILABLE",
            field="options.source",
            metadata={"source": options.source.name, "available": available},
        )
    fitted = options.source in _FITTED
    if fitted and options.sparsity is not None:
        raise invalid_option(
            "sparsity",
            options.sparsity,
            f"is found by {options.source.name} pathways themselves; leave it out or ask for source NEURON_MCT",
        )
    if options.sparsity is not None and not 0 <= options.sparsity < 1:
        raise invalid_option("sparsity", options.sparsity, "must be in [0, 1)")
    if fitted and options.granularity not in (None, granularity):
        raise FailedPreconditionError(
            f"The {options.source.name} pathways of this model have granularity {granularity.name}; leave the "
            "granularity out, or ask for source NEURON_MCT.",
            reason="GRANULARITY_UNAVAILABLE",
            field="options.granularity",
            metadata={"available": granularity.name},
        )
    if not 0 <= options.targets.top_k <= classes:
        raise invalid_option(
            "targets.top_k", options.targets.top_k, f"must be from 0 to {classes}, the number of classes", limit=classes
        )
    named = options.targets.top_k + len(options.targets.class_indices) + len(options.targets.labels)
    if named > MAX_TARGETS:
        raise invalid_option("targets", named, f"may name at most {MAX_TARGETS} classes", limit=MAX_TARGETS)
    if not 0 <= options.top_neurons <= MAX_TOP_NEURONS:
        raise invalid_option(
            "top_neurons", options.top_neurons, f"must be from 0 to {MAX_TOP_NEURONS}", limit=MAX_TOP_NEURONS
        )
    if not 1 <= options.integration_steps <= MAX_INTEGRATION_STEPS:
        raise invalid_option(
            "integration_steps",
            options.integration_steps,
            f"must be from 1 to {MAX_INTEGRATION_STEPS}",
            limit=MAX_INTEGRATION_STEPS,
        )
    least, most = LINEARITY_RADII
    if options.linearity_radius is not None and not least <= options.linearity_radius <= most:
        raise invalid_option("linearity_radius", options.linearity_radius, f"must be from {least:g} to {most:g}")


def check_integration(steps: int, targets: int) -> None:
    """Check that the integrals of one image cost no more than a request may.

    Raises:
        InvalidRequestError: If there are too many steps for so many targets.
    """
    if steps * targets > MAX_INTEGRATION_STEPS:
        raise invalid_option(
            "integration_steps",
            steps,
            f"is too many for {targets} targets; ask for at most {MAX_INTEGRATION_STEPS} steps over all targets",
            limit=MAX_INTEGRATION_STEPS,
            targets=targets,
        )


def check_prediction_count(count: int) -> None:
    """Check how many classes a request wants reported.

    Raises:
        InvalidRequestError: If the number is negative.
    """
    if count < 0:
        raise invalid_option("predictions", count, "must not be negative")


def check_overlay(options: ExplanationOptions, has_pixels: bool) -> None:
    """Check that an overlay has a picture to be drawn on.

    Raises:
        InvalidRequestError: If only a preprocessed tensor was sent.
    """
    if Output.OVERLAY in options.outputs and not has_pixels:
        raise invalid_option(
            "outputs", Output.OVERLAY.name, "needs an image to draw on: send pixels, or ask for HEATMAP"
        )


def check_tensor(array: NDArray[np.float32], input_shape: Sequence[int]) -> Tensor:
    """Check a preprocessed input and return it as a tensor.

    Args:
        array: float32 [C, H, W].
        input_shape: What the classifier takes.

    Raises:
        InvalidRequestError: If the shape differs or a value is not finite.
    """
    if array.shape != tuple(input_shape):
        raise InvalidRequestError(
            f"The tensor is float32 {list(array.shape)}; this classifier takes float32 {list(input_shape)} (channels, "
            "height, width), or uint8 pixels [height, width, 3].",
            reason="TENSOR_INVALID",
            field="image",
            metadata={"shape": list(array.shape), "expected_shape": list(input_shape)},
        )
    if not np.isfinite(array).all():
        raise InvalidRequestError(
            "The tensor holds NaN or infinite values; every value must be finite.",
            reason="TENSOR_NOT_FINITE",
            field="image",
        )
    return torch.from_numpy(np.array(array))


def check_finite(values: Tensor, what: str = "The classifier's output") -> Tensor:
    """Return what was computed for one image if all of it is finite.

    Args:
        values: Of any shape.
        what: Begins the message of the error.

    Raises:
        InvalidRequestError: If not.
    """
    # What is not finite makes the sum so, which is found in a tenth of the time; a sum may also be too large of itself.
    if not math.isfinite(values.sum().item()) and not bool(values.isfinite().all()):
        raise InvalidRequestError(
            f"{what} is not finite for this image; send pixels, or a tensor of the usual range.",
            reason="OUTPUT_NOT_FINITE",
            field="image",
        )
    return values


def invalid_option(name: str, value: object, rule: str, **limits: object) -> InvalidRequestError:
    """Make the error of an option that breaks a rule; `limits` are the other values that the rule names."""
    return InvalidRequestError(
        f"Option {name} is {value}; it {rule}.",
        reason="OPTION_INVALID",
        field=f"options.{name}",
        metadata={"option": name, "value": value, **limits},
    )
