"""What an evaluation measures, and how."""

from dataclasses import asdict, dataclass

from pathlens.errors import EvaluationError
from pathlens.evaluation.pathway_methods import CLASSIFIER_METHODS, GENERATED, PATHWAY_METHODS
from pathlens.explanation import Ablation, Granularity
from pathlens.generator.generator import PathwayGenerator
from pathlens.pathways.selection import check_sparsity


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured and how; the figures depend on nothing else but bundle and images.

    Attributes:
        granularity: What counts as one neuron.
        sparsities: At which pathways are measured, each in [0, 1).
        map_sparsity: Of the pathways whose maps are drawn; one of `sparsities`.
        ablation: What stands in for the neurons that pathways remove, whatever their method; zero, or that of the
            bundle. Stored class pathways keep that of the bundle.
        methods: Names of the pathway methods, without repeats.
        steps: Of NeuronIntGrad's integral, at least 1.
        sample: Images on which the expensive measures are made: the cascade of randomised layers, and linearity.
        layers: At how many layers the cascade is looked at, evenly spread with the first and the last among them; None
            for all.
        radii: Of the balls in which linearity is measured, in units of the preprocessed input.
        points: Random points of each ball.
        minimum_images: A class with fewer building images gets no class pathway.
        others: Most images of other classes on which a class pathway is measured.
        batch_size: Images in one pass.
        seed: Of every random choice.
    """

    granularity: Granularity = Granularity.CHANNEL
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.99)
    map_sparsity: float = 0.9
    ablation: Ablation = Ablation.ZERO
    methods: tuple[str, ...] = CLASSIFIER_METHODS
    steps: int = 20
    sample: int = 32
    layers: int | None = None
    radii: tuple[float, ...] = (0.1, 1.0)
    points: int = 8
    minimum_images: int = 5
    others: int = 64
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for sparsity in self.sparsities:
            check_sparsity(sparsity)
        if self.map_sparsity not in self.sparsities:
            raise ValueError(f"map_sparsity is {self.map_sparsity}; expected one of {list(self.sparsities)}")
        if unknown := set(self.methods) - set(PATHWAY_METHODS):
            raise ValueError(f"unknown methods {sorted(unknown)}; known are {', '.join(PATHWAY_METHODS)}")
        if "neuron_mct" not in self.methods:
            raise ValueError("methods lack neuron_mct, which every evaluation measures")

    def check_available(self, ablation: Ablation, generator: PathwayGenerator | None) -> None:
        """Check that a bundle has what is asked for.

        Args:
            ablation: What stands in for removed neurons in the bundle.
            generator: The bundle's.

        Raises:
            EvaluationError: If it does not; the message names the remedy.
        """
        if self.ablation not in (Ablation.ZERO, ablation):
            wanted, own = self.ablation.value, ablation.value
            raise EvaluationError(
                f"The bundle holds no values for ablation {wanted}, as it was fitted with {own}; evaluate it with zero "
                f"or its own, or fit it with --ablation {wanted}."
            )
        if GENERATED not in self.methods:
            return
        if generator is None:
            raise EvaluationError(
                f"The bundle has no generator, which the method {GENERATED} needs; fit it with --source generated."
            )
        if generator.granularity is not self.granularity:
            made = generator.granularity.value
            raise EvaluationError(
                f"The bundle's generator makes {made} pathways; evaluate at granularity {made}, or without the method "
                f"{GENERATED}."
            )

    def to_json(self) -> dict[str, object]:
        """Return the settings as JSON values."""
        return {**asdict(self), "granularity": self.granularity.value, "ablation": self.ablation.value}
