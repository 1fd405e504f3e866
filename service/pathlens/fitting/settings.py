"""How a bundle is fitted."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum

from pathlens.description import ClassPathwaySelection
from pathlens.explanation import Ablation, Granularity, PathwaySource

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class FitSettings:
    """Everything that a bundle depends on but classifier, preprocessing and images.

    Attributes:
        name: Name under which it will be served.
        source: Where instance pathways come from: `GENERATED`, for which a generator is trained, or `NEURON_MCT`.
        selection: How class pathways are chosen.
        granularity: What counts as one neuron.
        ablation: What stands in for removed neurons; contributions know zero alone.
        sparsity: Of pathways by contribution, in [0, 1); the default of requests for them.
        threshold: τ, the share of a class's pathways that must keep a neuron, in (0, 1].
        price: λ, what keeping all neurons costs the generator, in nats.
        agreement: Share of images that are to keep their class under their generated pathway, in (0, 1), for which the
            price is searched; None leaves the price as it is.
        class_agreement: The least share of a class's images that are to keep it under a two-sided class pathway.
        class_forcing: The greatest share of other images that may get the class under it.
        generator_steps: Length of the generator's training.
        class_steps: Length of the training of two-sided class pathways.
        training_batch: Images in one step of a training, over all processes.
        minimum_images: A class with fewer images gets no pathway rather than a made-up one.
        held_out: Fraction of the images that build nothing but test the bank, in (0, 0.5], unless there are others to
            do that.
        largest_held_out: Most held-out images; fewer are held out of many, evenly spread.
        largest_tested: Most of them that test the bank, evenly spread; they are kept in memory. All of them tell what
            explanations look like, which takes some 120 images of a class to tell well.
        others: Most held-out images of other classes that test one class.
        validation: Fraction of the other images that validate the masks of a training instead of training them, in
            (0, 0.5].
        largest_validation: Most validation images; they are kept in memory, and fewer are taken of many.
        batch_size: Images in one pass that trains nothing.
        precision: What trainings compute the classifier in, "float32" or "bfloat16"; everything else is float32.
        seed: Of every random choice.
    """

    name: str
    source: PathwaySource = PathwaySource.GENERATED
    selection: ClassPathwaySelection = ClassPathwaySelection.TWO_SIDED
    granularity: Granularity = Granularity.CHANNEL
    ablation: Ablation = Ablation.ZERO
    sparsity: float = 0.8
    threshold: float = 0.7
    price: float = 2.0
    agreement: float | None = None
    class_agreement: float = 0.95
    class_forcing: float = 0.2
    generator_steps: int = 1000
    class_steps: int = 3000
    training_batch: int = 64
    minimum_images: int = 5
    held_out: float = 0.2
    largest_held_out: int = 2048
    largest_tested: int = 512
    others: int = 64
    validation: float = 0.1
    largest_validation: int = 1024
    batch_size: int = 16
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.source not in (PathwaySource.GENERATED, PathwaySource.NEURON_MCT):
            raise ValueError(f"source is {self.source.name}; expected GENERATED or NEURON_MCT")
        if self.ablation is Ablation.OPTIMAL and self.selection is not ClassPathwaySelection.TWO_SIDED:
            raise ValueError("ablation is optimal, whose constants are learned with two-sided class pathways alone")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision}; expected {' or '.join(PRECISIONS)}")
        for name in ("held_out", "validation"):
            share = getattr(self, name)
            if not 0 < share <= 0.5:
                raise ValueError(f"{name} is {share}; expected a number in (0, 0.5]")
        for name in ("agreement", "class_agreement", "class_forcing"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise ValueError(f"{name} is {share}; expected a number in (0, 1)")

    def to_json(self) -> Mapping[str, object]:
        """Return the settings as JSON values."""
        return {key: value.value if isinstance(value, Enum) else value for key, value in asdict(self).items()}
