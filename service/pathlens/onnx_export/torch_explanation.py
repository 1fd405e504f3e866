"""An explanation by PyTorch in the terms of the graph: what the graph must equal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathlens.attribution.pathway_gradient import run_pathway
from pathlens.explanation import PathwaySource
from pathlens.onnx_export import signature
from pathlens.onnx_export.subject import ExplainedClassifier
from pathlens.pathways.pathway import Pathway, from_flat


@dataclass(frozen=True, eq=False)
class TorchExplanation:
    """The outputs of the graph by name, computed by the classifier, the bank and the generator themselves.

    Attributes:
        outputs: One tensor [B, ...] each.
        pathways: Whose masks are among them, by source.
    """

    outputs: Mapping[str, Tensor]
    pathways: Mapping[PathwaySource, Pathway]


def explain_with_torch(
    subject: ExplainedClassifier, images: Tensor, sources: Sequence[PathwaySource]
) -> TorchExplanation:
    """Explain the top class of every image.

    Args:
        subject: Classifier, class pathways and generator.
        images: Preprocessed, float32 [B, C, H, W].
        sources: Of the pathways.
    """
    whole = subject.classifier.observe(images)
    top_class = whole.logits.argmax(1)
    outputs = {signature.LOGITS: whole.logits, signature.TOP_CLASS: top_class}
    pathways: dict[PathwaySource, Pathway] = {}
    for source in sources:
        if source is PathwaySource.GENERATED and subject.generator is not None:
            replacement = subject.bank.replacement_of(top_class)
            pathways[source] = subject.generator.pathways(whole.activations, replacement)
        else:
            pathways[source], outputs[signature.available_output(source)] = _stored(subject, top_class)
    # All of them in one pass, as the explainer runs the rows of a batch.
    run = run_pathway(
        subject.classifier,
        images.repeat(len(sources), 1, 1, 1),
        top_class.repeat(len(sources)),
        Pathway.concatenate([pathways[source] for source in sources]),
    )
    size = len(images)
    parts = zip(sources, torch.split(run.logits, size), torch.split(run.gradient, size), strict=True)
    for source, logits, gradient in parts:
        outputs[signature.mask_output(source)] = pathways[source].flat()
        outputs[signature.logits_output(source)] = logits
        outputs[signature.map_output(source)] = gradient
    return TorchExplanation(outputs, pathways)


def _stored(subject: ExplainedClassifier, classes: Tensor) -> tuple[Pathway, Tensor]:
    """Return the stored pathways of classes, empty where there is none, and which there are."""
    bank = subject.bank
    available = torch.tensor([label in bank for label in classes.tolist()])
    neurons = bank.transfer([next(iter(bank.counts))]).neurons
    flat = torch.zeros(len(classes), neurons, dtype=torch.bool)
    if stored := classes[available].tolist():
        flat[available] = bank.transfer(stored).flat()
    return from_flat(flat, bank.taps, bank.granularity, bank.replacement_of(classes)), available
