"""The graphs of the single stages, and what cannot be exported."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pathlens.onnx_export.graph_file
from exported_graphs import drawn_subject, logits_differ, maps_differ, run_graph
from pathlens.attribution.pathway_gradient import run_pathway
from pathlens.classifier.capture import capture
from pathlens.errors import ExportError
from pathlens.explanation import Ablation, Granularity, PathwaySource
from pathlens.onnx_export.explanation_network import ExplanationNetwork
from pathlens.onnx_export.graphs import explanation_graph, serving_graphs
from pathlens.onnx_export.stage_graphs import ServingGraphs
from pathlens.onnx_export.subject import ExplainedClassifier
from pathlens.pathways.pathway import from_flat
from small_networks import CLASSES, images, seeded
from tiny_bundle import INPUT_SHAPE, tiny_bundle


@cache
def exported() -> tuple[ExplainedClassifier, ServingGraphs]:
    bundle = tiny_bundle(Granularity.UNIT, ablation=Ablation.OPTIMAL)
    subject = ExplainedClassifier(bundle.classifier, bundle.bank, bundle.generator)
    return subject, serving_graphs(subject)


@pytest.mark.parametrize("count", [1, 8])
def test_the_stages_one_after_the_other_are_the_explanation(count: int) -> None:
    subject, graphs = exported()
    batch = torch.randn(count, *INPUT_SHAPE, generator=torch.Generator().manual_seed(count))
    target = (torch.arange(count) + 1) % subject.classifier.classes
    trace = subject.classifier.observe(batch)
    assert graphs.generation is not None
    assert subject.generator is not None
    generated = run_graph(graphs.generation, image=batch)
    assert logits_differ(run_graph(graphs.prediction, image=batch)["logits"], trace.logits) <= 1e-4
    assert logits_differ(generated["logits"], trace.logits) <= 1e-4
    replacement = subject.bank.replacement_of(target)
    pathway = subject.generator.pathways(trace.activations, replacement)
    assert generated["mask"].equal(pathway.flat())
    values = torch.cat([value.flatten(1) for value in replacement.values], 1)
    actual = run_graph(graphs.pathway, image=batch, target=target, mask=generated["mask"], replacement=values)
    run = run_pathway(subject.classifier, batch, target, pathway)
    assert logits_differ(actual["logits"], run.logits) <= 1e-4
    assert maps_differ(actual["map"], run.gradient) <= 1e-3


class Headed(nn.Module):
    """A convolution, an activation, an operator, a linear layer."""

    def __init__(self, operator: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.stem, self.linear, self.operator = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(width, CLASSES), operator
        with torch.no_grad():
            # Whole numbers are computed without rounding: many values of a window are equal, in every runtime.
            self.stem.weight.mul_(4).round_()
            self.stem.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.operator(F.relu(self.stem(x))).flatten(1))
        return logits


def headed(operator: Callable[[Tensor], Tensor], width: int, ablation: Ablation) -> ExplainedClassifier:
    classifier = capture(seeded(lambda: Headed(operator, width)), images(2))
    return drawn_subject(classifier, ablation=ablation, with_generator=False)


OPERATORS: dict[str, tuple[Callable[[Tensor], Tensor], int, Ablation]] = {
    "max pooling with ties": (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), 100, Ablation.ZERO),
    "average pooling with a divisor, adaptive pooling and resizing": (
        lambda x: F.interpolate(F.adaptive_avg_pool2d(F.avg_pool2d(x, 2, divisor_override=3), 3), 5, mode="bilinear"),
        100,
        Ablation.MEAN,
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_has_the_gradient_of_torch(name: str) -> None:
    subject = headed(*OPERATORS[name])
    graphs = serving_graphs(subject)
    batch, target = images(5, seed=2).round(), torch.arange(5) % CLASSES
    mask = torch.rand(5, ExplanationNetwork(subject).neurons, generator=torch.Generator().manual_seed(1)) < 0.7
    replacement = subject.bank.replacement_of(target)
    values = [value.flatten(1).expand(5, -1) for value in replacement.values]
    given = {"replacement": torch.cat(values, 1)} if values else {}
    actual = run_graph(graphs.pathway, image=batch, target=target, mask=mask, **given)
    run = run_pathway(
        subject.classifier,
        batch,
        target,
        from_flat(mask, subject.classifier.taps, subject.bank.granularity, replacement),
    )
    assert logits_differ(actual["logits"], run.logits) <= 1e-4
    assert maps_differ(actual["map"], run.gradient) <= 1e-3


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "an operator without a form in ONNX": (
        lambda x: F.local_response_norm(x, 2),
        r"aten\.avg_pool3d_backward.*'stem'",
    ),
    "a kernel that is made of the images": (
        lambda x: F.conv2d(x, x.mean((0, 2, 3)).view(1, 4, 1, 1).expand(4, 4, 1, 1)),
        r"aten\.convolution_backward has no form in ONNX",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_gradient_that_cannot_be_exported_is_refused_by_name(name: str) -> None:
    operator, message = REFUSED[name]
    subject = headed(operator, 256, Ablation.ZERO)
    with pytest.raises(ExportError, match=message):
        explanation_graph(subject, [PathwaySource.TRANSFERRED])


def test_a_failure_that_names_no_operator_is_refused_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Constraints violated (batch)!\nmore of it")

    subject = headed(F.relu, 256, Ablation.ZERO)
    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(ExportError, match=r"as an ONNX graph: Constraints violated \(batch\)!\. Replace"):
        explanation_graph(subject, [])


def test_a_graph_that_fits_into_no_file_is_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = headed(F.relu, 256, Ablation.ZERO)
    monkeypatch.setattr(pathlens.onnx_export.graph_file, "LARGEST_WEIGHTS", 1000)
    with pytest.raises(ExportError, match="2 GiB"):
        explanation_graph(subject, [])
