"""The pathway generator as a file of parameters and a part of the manifest."""

from pathlib import Path

from pathlens.bundle.manifest import GeneratorPart
from pathlens.bundle.stamped import fitting_the_classifier, read_stamped, stamped_bytes
from pathlens.classifier.captured import CapturedClassifier
from pathlens.errors import BundleError
from pathlens.generator.generator import PathwayGenerator


def generator_part(generator: PathwayGenerator) -> GeneratorPart:
    """Write what the manifest says of a generator."""
    return GeneratorPart(granularity=generator.granularity, width=generator.width, parameters=generator.parameter_count)


def generator_bytes(generator: PathwayGenerator, classifier: CapturedClassifier) -> bytes:
    """Return the parameters of a generator as the content of their file."""
    return stamped_bytes(generator.state_dict(), classifier.fingerprint)


def read_generator(path: Path, part: GeneratorPart, classifier: CapturedClassifier) -> PathwayGenerator:
    """Read a generator.

    Args:
        path: Its file.
        part: What the manifest says of it.
        classifier: The classifier that it must belong to.

    Raises:
        BundleError: If it is damaged or belongs to another classifier.
    """
    state = read_stamped(path, classifier.fingerprint)
    with fitting_the_classifier(path):
        generator = PathwayGenerator.from_state(classifier, part.granularity, part.width, state)
    if generator.parameter_count != part.parameters:
        raise BundleError(
            f"{path} has {generator.parameter_count} parameters, the manifest says {part.parameters}; fit it again."
        )
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise BundleError(f"{path} holds parameters that are not finite; fit it again.")
    return generator
