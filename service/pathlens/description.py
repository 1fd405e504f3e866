"""What is known of a served model and of the class pathways stored with it, in plain Python and numpy."""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from pathlens.explanation import Ablation, Granularity, PathwaySource, ServedModel, TapMask


class ClassPathwaySelection(Enum):
    """How the neurons of a class pathway were chosen."""

    FREQUENCY = "frequency"
    """Those that at least a fraction τ of the class's instance pathways keep (arXiv 2309.09887)."""
    TWO_SIDED = "two_sided"
    """Learned so that P_c(x; m_c) is P_c(x), for images of the class and for all others."""


@dataclass(frozen=True)
class TransferFigures:
    """How a class mask behaves on images that did not build it.

    Attributes:
        member_images: Held-out images predicted as the class.
        other_images: Held-out images predicted as another class.
        agreement: Share of member images still predicted as the class; None without members.
        mean_increase: mIC, share of member images whose confidence rises; None without members.
        mean_drop: mDC, mean of max(0, p - q) / p over member images; None without members.
        forcing: Share of other images that the mask turns into the class; None without others.
        leak: Mean P_c in the pathway network over other images; None without others.
        leak_reference: Mean P_c in the classifier over the same images; None without others.
    """

    member_images: int
    other_images: int
    agreement: float | None = None
    mean_increase: float | None = None
    mean_drop: float | None = None
    forcing: float | None = None
    leak: float | None = None
    leak_reference: float | None = None


@dataclass(frozen=True)
class MaskFigures:
    """What a class mask is worth on held-out images.

    Attributes:
        sparsity: Fraction of neurons that the mask removes.
        figures: Measured with the mask.
        random_control: The same with a random mask that keeps as many neurons at each tap.
    """

    sparsity: float
    figures: TransferFigures
    random_control: TransferFigures


@dataclass(frozen=True)
class ClassPathwayStatistics:
    """What a stored class pathway was built from and how it transfers.

    Attributes:
        image_count: Images predicted as the class whose pathways were counted.
        threshold: τ, the share of those pathways that must keep a neuron of the mask by frequency.
        source: Where the instance pathways came from.
        selection: How the stored mask was chosen.
        mean_instance_sparsity: Mean sparsity of the instance pathways.
        mean_instance_iou: Mean intersection over union of the class pathway and the instance pathways of held-out
            images of the class; None without such images.
        within_class_iou: Mean intersection over union of every two held-out instance pathways of the class, whose mean
            over the classes is the acIOU of arXiv 2309.09887; None with fewer than two.
        cross_class_iou: Mean intersection over union of the held-out instance pathways of the class with those of other
            classes; None without both.
        stored: The stored mask.
        by_frequency: The mask at τ, which knows the images of its own class only; the stored mask itself if that was
            selected by frequency.
    """

    image_count: int
    threshold: float
    source: PathwaySource
    selection: ClassPathwaySelection
    mean_instance_sparsity: float
    mean_instance_iou: float | None
    within_class_iou: float | None
    cross_class_iou: float | None
    stored: MaskFigures
    by_frequency: MaskFigures


@dataclass(frozen=True, eq=False)
class TapFrequency:
    """How often the instance pathways of a class keep each neuron of a tap.

    Attributes:
        tap: Name of the tap.
        frequency: float32 in [0, 1], [C] for channels, the tap's own shape for units.
    """

    tap: str
    frequency: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ClassPathway:
    """The stored pathway of a class.

    Attributes:
        class_index: Index of the class.
        label: Its label.
        granularity: What counts as one neuron.
        ablation: What stands in for a removed neuron.
        sparsity: Fraction of neurons that the pathway removes.
        pathway: The masks, one per tap.
        statistics: What it was built from and how it transfers.
        frequencies: How often the instance pathways keep each neuron, one per tap; empty unless asked for.
        model: The model that answered.
    """

    class_index: int
    label: str
    granularity: Granularity
    ablation: Ablation
    sparsity: float
    pathway: tuple[TapMask, ...]
    statistics: ClassPathwayStatistics
    frequencies: tuple[TapFrequency, ...] = ()
    model: ServedModel = ServedModel()


@dataclass(frozen=True)
class TapDescription:
    """A tap's name, activation function and shape without the batch dimension."""

    name: str
    activation: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelDescription:
    """What is served under a name.

    Attributes:
        model: Name, version and bundle hash.
        classifier_sha256: Hash of the captured classifier.
        labels: One per class.
        input_shape: (channels, height, width) of the classifier's input.
        taps: In call order.
        sources: Pathway sources that this bundle can answer.
        granularity: Of the stored class pathways and of the generator; the default of requests.
        ablation: What stands in for a removed neuron of stored and generated pathways.
        default_sparsity: The sparsity of contribution sources when a request states none.
        class_pathway_count: Classes with a stored pathway.
        classes_without_pathway: Indices of the others: too few images were predicted as one of them.
    """

    model: ServedModel
    classifier_sha256: str
    labels: tuple[str, ...]
    input_shape: tuple[int, int, int]
    taps: tuple[TapDescription, ...]
    sources: tuple[PathwaySource, ...]
    granularity: Granularity
    ablation: Ablation
    default_sparsity: float
    class_pathway_count: int
    classes_without_pathway: tuple[int, ...] = ()
