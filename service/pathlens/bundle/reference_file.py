"""What the fit saw of explanations as a file of tensors and a part of the manifest.

For each source the file holds `{source}.class`, the predicted class of each held-out image, int32 [M], and for each
tracked statistic `{source}.{statistic}`, its value for the same images, float32 [M]; NaN where an image lacks it. These
are a few bytes for each image, so that every value is kept and no quantile has to be interpolated.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pathlens.bundle.manifest import ReferencePart
from pathlens.bundle.stamped import fitting_the_classifier, read_stamped, stamped_bytes
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import PathwaySource
from pathlens.pathways.reference import TRACKED, ReferenceDistribution


def reference_part(reference: Mapping[PathwaySource, ReferenceDistribution]) -> ReferencePart:
    """Write what the manifest says of the reference."""
    return ReferencePart(images={source: len(distribution.classes) for source, distribution in reference.items()})


def reference_bytes(reference: Mapping[PathwaySource, ReferenceDistribution], classifier: CapturedClassifier) -> bytes:
    """Return the figures of the reference as the content of their file."""
    tensors: dict[str, Tensor] = {}
    for source, distribution in reference.items():
        tensors[f"{source.value}.class"] = torch.from_numpy(distribution.classes)
        for statistic, values in distribution.values.items():
            tensors[f"{source.value}.{statistic.value}"] = torch.from_numpy(values)
    return stamped_bytes(tensors, classifier.fingerprint)


def read_reference(
    path: Path, part: ReferencePart, classifier: CapturedClassifier
) -> dict[PathwaySource, ReferenceDistribution]:
    """Read a reference.

    Args:
        path: Its file.
        part: What the manifest says of it.
        classifier: The classifier that it must belong to.

    Raises:
        BundleError: If it is damaged or belongs to another classifier.
    """
    tensors = read_stamped(path, classifier.fingerprint)
    with fitting_the_classifier(path):
        return _reference(tensors, part, classifier.classes)


def _reference(
    tensors: Mapping[str, Tensor], part: ReferencePart, classes: int
) -> dict[PathwaySource, ReferenceDistribution]:
    expected = {
        f"{source.value}.{name}"
        for source in part.images
        for name in ("class", *(statistic.value for statistic in TRACKED.get(source, ())))
    }
    if set(tensors) != expected:
        raise ValueError(f"it holds {sorted(tensors)}; expected {sorted(expected)}")
    for name, tensor in tensors.items():
        images = part.images[PathwaySource(name.split(".")[0])]
        dtype = torch.int32 if name.endswith(".class") else torch.float32
        if tensor.dtype != dtype or tensor.shape != (images,):
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}; expected {dtype} [{images}]")
        if bool(tensor.isinf().any()):
            raise ValueError(f"{name} holds values that are not finite")
        if dtype is torch.int32 and not bool(((tensor >= 0) & (tensor < classes)).all()):
            raise ValueError(f"{name} names a class beyond the {classes} of the classifier")
    return {source: _distribution(tensors, source) for source in part.images}


def _distribution(tensors: Mapping[str, Tensor], source: PathwaySource) -> ReferenceDistribution:
    arrays = {statistic: tensors[f"{source.value}.{statistic.value}"].numpy() for statistic in TRACKED.get(source, ())}
    return ReferenceDistribution(source, tensors[f"{source.value}.class"].numpy().astype(np.int32), arrays)
