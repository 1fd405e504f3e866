"""Subjects of an export, and what ONNX Runtime makes of the graph, for all tests of graphs."""

import math
from functools import cache

import onnx
import onnxruntime
import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Ablation, Granularity, PathwaySource
from pathlens.generator.generator import PathwayGenerator
from pathlens.onnx_export.subject import ExplainedClassifier
from pathlens.pathways.bank import ClassCounts, ClassPathwayBank
from pathlens.pathways.pathway import ZERO, mask_shape
from pathlens.pathways.replacement import Replacement

BOTH = (PathwaySource.TRANSFERRED, PathwaySource.GENERATED)
WITHOUT_PATHWAY = 1
"""The class that the banks lack."""


def drawn_subject(
    classifier: CapturedClassifier,
    granularity: Granularity = Granularity.CHANNEL,
    ablation: Ablation = Ablation.ZERO,
    with_generator: bool = True,
) -> ExplainedClassifier:
    """Give a classifier class pathways and a generator that are drawn at random."""
    draw = torch.Generator().manual_seed(5)
    taps = classifier.taps
    neurons = sum(math.prod(mask_shape(tap, granularity)) for tap in taps)
    counts = {
        label: ClassCounts((torch.rand(neurons, generator=draw) < 0.7).int(), 1, 0.3)
        for label in range(classifier.classes)
        if label != WITHOUT_PATHWAY
    }
    rows = classifier.classes if ablation is Ablation.OPTIMAL else 1
    values = tuple(tap.spread(torch.rand(rows, tap.channels, generator=draw)) for tap in taps)
    replacement = ZERO if ablation is Ablation.ZERO else Replacement(ablation, values)
    bank = ClassPathwayBank(taps, granularity, 0.5, counts, replacement=replacement)
    return ExplainedClassifier(classifier, bank, _generator(classifier, granularity) if with_generator else None)


def _generator(classifier: CapturedClassifier, granularity: Granularity) -> PathwayGenerator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        scales = [torch.ones(tap.channels) for tap in classifier.taps]
        generator = PathwayGenerator(classifier.taps, scales, classifier.classes, granularity, width=8)
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.add_(torch.randn_like(parameter))
    return generator.frozen()


@cache
def session(model: bytes) -> onnxruntime.InferenceSession:
    """Load a graph into ONNX Runtime, with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_graph(model: onnx.ModelProto | bytes, **inputs: Tensor) -> dict[str, Tensor]:
    """Run a graph; the outputs by name."""
    runtime = session(model if isinstance(model, bytes) else model.SerializeToString(deterministic=True))
    names = [output.name for output in runtime.get_outputs()]
    values = runtime.run(names, {name: value.numpy() for name, value in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


def logits_differ(actual: Tensor, expected: Tensor) -> float:
    """The largest difference of logits, relative to those above 1."""
    return float(((actual - expected).abs() / expected.abs().clamp(min=1)).max())


def maps_differ(actual: Tensor, expected: Tensor) -> float:
    """The largest relative distance of the maps of an image."""
    distance = (actual - expected).flatten(1).norm(dim=1)
    return float((distance / expected.flatten(1).norm(dim=1).clamp(min=1e-30)).max())
