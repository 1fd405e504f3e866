"""What is known of a served model and of the class pathways stored with it, in plain Python and numpy."""

from dataclasses import dataclass

from pathlens.explanation import Ablation, Granularity, PathwaySource, ServedModel, TapMask


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
class ClassPathwayStatistics:
    """What a stored class pathway was built from and how it transfers.

    Attributes:
        image_count: Images predicted as the class whose pathways were counted.
        threshold: τ, the share of those pathways that must keep a neuron.
        source: Where the instance pathways came from.
        mean_instance_sparsity: Mean sparsity of the instance pathways.
        mean_instance_iou: Mean intersection over union of the class pathway and the instance pathways of held-out
            images of the class; None without such images.
        figures: Measured on held-out images with the class pathway.
        random_control: The same with a random mask that keeps as many neurons at each tap.
    """

    image_count: int
    threshold: float
    source: PathwaySource
    mean_instance_sparsity: float
    mean_instance_iou: float | None
    figures: TransferFigures
    random_control: TransferFigures


@dataclass(frozen=True, eq=False)
class ClassPathway:
    """The stored pathway of a class."""

    class_index: int
    label: str
    granularity: Granularity
    ablation: Ablation
    sparsity: float
    pathway: tuple[TapMask, ...]
    statistics: ClassPathwayStatistics
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
        granularity: Of the stored class pathways; the default of requests.
        default_sparsity: The sparsity of contribution sources when a request states none.
        class_pathway_count: Classes with a stored pathway.
    """

    model: ServedModel
    classifier_sha256: str
    labels: tuple[str, ...]
    input_shape: tuple[int, int, int]
    taps: tuple[TapDescription, ...]
    sources: tuple[PathwaySource, ...]
    granularity: Granularity
    default_sparsity: float
    class_pathway_count: int
