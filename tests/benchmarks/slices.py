"""Compare the slice of every class of the fixture classifiers with the masked network that it stands for.

The pathway of a class is that which NeuronMCT finds for it in one image at a sparsity of 0.8. Prints a row for each
classifier and precision; the status is 1 if a pathway cannot be cut or a difference in double precision is too large.
In single precision, rounding decides at the kinks of activations, in slice and masked network alike: differences there
are counted and no failure.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixture_data import CLASSIFIERS
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.slicing.cutting import cut
from pathlens.slicing.not_sliceable import NotSliceable
from real_captures import real
from sliced import TOLERANCE, largest_differences
from small_networks import images

SPARSITY = 0.8


class Comparison:
    """What the classes of one classifier have shown so far."""

    def __init__(self) -> None:
        self.logits, self.maps, self.work, self.milliseconds = (
            list[float](),
            list[float](),
            list[float](),
            list[float](),
        )
        self.refused = 0

    def add(self, classifier: CapturedClassifier, label: int) -> None:
        """Cut the pathway of a class out of a classifier and compare."""
        # Noise that is its own for every class; a second image is none of the pathway's.
        batch = images(2, label, classifier.input_shape[1]).to(classifier.dtype)
        target = torch.full((2,), label)
        pathway = neuron_mct(classifier, batch[:1], target[:1], Granularity.CHANNEL).select(sparsity=SPARSITY)
        start = time.perf_counter()
        try:
            part = cut(classifier, pathway)
        except NotSliceable as refusal:
            print(f"class {label}: {refusal}", file=sys.stderr)
            self.refused += 1
            return
        self.milliseconds.append(1000 * (time.perf_counter() - start))
        logits, maps = largest_differences(part, classifier, pathway, batch, target)
        self.logits.append(logits)
        self.maps.append(maps)
        self.work.append(part.work)

    @property
    def beyond(self) -> int:
        """Number of classes whose logits or maps differ by more than the tolerance."""
        pairs = zip(self.logits, self.maps, strict=True)
        return sum(not max(pair) <= TOLERANCE for pair in pairs)

    def row(self) -> list[str]:
        """Return the figures as text."""
        figures = [f"{max(values, default=0):.1e}" for values in (self.logits, self.maps)]
        middle = [torch.tensor(values or [0.0]).median().item() for values in (self.work, self.milliseconds)]
        counts = [str(len(self.logits)), str(self.refused), str(self.beyond)]
        return [*counts, *figures, f"{middle[0]:.3f}", f"{middle[1]:.0f}"]


def main() -> int:
    """Print the table and return the status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=1000, help="largest number of classes of each classifier")
    parser.add_argument("--networks", nargs="*", default=list(CLASSIFIERS), choices=list(CLASSIFIERS))
    arguments = parser.parse_args()
    columns = ("cut", "refused", f"beyond {TOLERANCE:g}", "logits", "maps", "work", "ms to cut")
    table = Table("network", "precision", *columns)
    failed = 0
    for name in arguments.networks:
        for classifier in (real(name).in_float64, real(name)):
            comparison = Comparison()
            for label in range(min(arguments.classes, classifier.classes)):
                comparison.add(classifier, label)
            precision = str(classifier.dtype).removeprefix("torch.")
            table.add_row(name, precision, *comparison.row())
            failed += comparison.refused + (comparison.beyond if classifier.dtype is torch.float64 else 0)
    Console(width=120).print(table)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
