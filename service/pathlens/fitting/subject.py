"""What a fit is given."""

from collections.abc import Sequence
from dataclasses import dataclass

from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.images import ImageSource
from pathlens.classifier.preprocessing import Preprocessing


@dataclass(frozen=True, eq=False)
class FitSubject:
    """What is fitted, on what.

    Attributes:
        classifier: The captured classifier, on the device to compute on.
        preprocessing: From pixels to the classifier's input.
        labels: One per class; labels of the images are not needed, the classifier's predictions are.
        images: What to fit on.
        workers: Processes that read images.
        held_out_images: Images that build nothing but test the bank and tell what explanations look like; None holds
            out some of `images` instead.
    """

    classifier: CapturedClassifier
    preprocessing: Preprocessing
    labels: Sequence[str]
    images: ImageSource
    workers: int = 0
    held_out_images: ImageSource | None = None

    @property
    def skipped(self) -> list[str]:
        """Names of the images that could not be read so far, held-out ones included, each with the reason."""
        return self.images.skipped + (self.held_out_images.skipped if self.held_out_images is not None else [])
