"""What is exported: a classifier with everything that its explanations need."""

from dataclasses import dataclass

from pathlens.classifier.captured import CapturedClassifier
from pathlens.generator.generator import PathwayGenerator
from pathlens.pathways.bank import ClassPathwayBank


@dataclass(frozen=True, eq=False)
class ExplainedClassifier:
    """A captured classifier with its stored class pathways.

    Attributes:
        classifier: On the CPU.
        bank: Its class pathways.
        generator: Makes the pathway of an image, of the granularity of the bank; None without one.
    """

    classifier: CapturedClassifier
    bank: ClassPathwayBank
    generator: PathwayGenerator | None = None
