"""ONNX Runtime answers as PyTorch does, and it is ONNX Runtime that answers."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from equal_answers import Answer, assert_equal, logits
from pathlens.errors import InternalError, ResourceExhaustedError
from pathlens.explainer import Explainer, onnx_runtime_backend
from pathlens.explainer.agreement import Agreement, compare
from pathlens.explainer.backend import LARGEST_RUN
from pathlens.explainer.onnx_runtime_backend import OnnxRuntimeBackend
from pathlens.explainer.torch_backend import TorchBackend
from pathlens.explanation import (
    Ablation,
    Explanation,
    ExplanationOptions,
    ExplanationRequest,
    ExplanationResult,
    Granularity,
    Output,
    PathwaySource,
    Reduction,
    Targets,
)
from pathlens.onnx_export.measures import Measure
from pathlens.onnx_export.stage_graphs import ServingGraphs
from tiny_bundle import INPUT_SHAPE, LABELS, WITHOUT_PATHWAY, computing_with, pixels, png, tensor, tiny_explainer
from tiny_graphs import GRAPHED, graphed_backend, graphed_bundle

pytestmark = pytest.mark.usefixtures("graphs")

MAP = frozenset({Output.MAP})
FIRST = Targets(class_indices=(0,))

images = st.sampled_from(
    [
        *(tensor(seed) for seed in range(40)),
        png(pixels(1)),
        pixels(2),
        b"not an image",
        np.full(INPUT_SHAPE, 3e38, np.float32),
        np.full(INPUT_SHAPE, -1e30, np.float32),
    ]
)
options = st.builds(
    ExplanationOptions,
    targets=st.sampled_from(
        [Targets(), Targets(top_k=3), Targets(class_indices=(0, WITHOUT_PATHWAY)), Targets(labels=("unicorn",))]
    ),
    source=st.sampled_from(PathwaySource),
    granularity=st.sampled_from([None, None, *Granularity]),
    outputs=st.frozensets(st.sampled_from(Output)),
    reduction=st.sampled_from([Reduction.NONE, Reduction.SIGNED_MAXIMUM]),
    # One item with neurons sends its whole run to PyTorch.
    top_neurons=st.sampled_from([*[0] * 9, 3]),
    linearity_radius=st.sampled_from([None, None, None, 1e-3]),
    integration_steps=st.just(3),
)
requests = st.builds(ExplanationRequest, image=images, options=st.none() | options, predictions=st.integers(1, 5))


def by_onnx_runtime(granularity: Granularity = Granularity.CHANNEL, ablation: Ablation = Ablation.ZERO) -> Explainer:
    with computing_with(graphed_backend):
        return tiny_explainer(granularity, ablation)


@given(batch=st.lists(requests, min_size=1, max_size=8), kind=st.sampled_from(GRAPHED))
@settings(max_examples=30)
def test_onnx_runtime_answers_a_mixed_batch_as_pytorch_does(
    batch: list[ExplanationRequest], kind: tuple[Granularity, Ablation]
) -> None:
    assert_equal(by_onnx_runtime(*kind).answer(batch), tiny_explainer(*kind).answer(batch))


@pytest.mark.parametrize("kind", GRAPHED)
@pytest.mark.parametrize("source", [PathwaySource.TRANSFERRED, PathwaySource.GENERATED, PathwaySource.NEURON_MCT])
def test_more_rows_than_the_largest_run_are_answered_alike(
    source: PathwaySource, kind: tuple[Granularity, Ablation]
) -> None:
    wanted = ExplanationOptions(Targets(class_indices=(0, 1, 2)), source)
    batch = [ExplanationRequest(tensor(seed), wanted) for seed in range(LARGEST_RUN + 3)]
    assert_equal(by_onnx_runtime(*kind).answer(batch), tiny_explainer(*kind).answer(batch))


def test_batches_of_different_size_are_answered_alike_by_several_threads() -> None:
    explainer, wanted = by_onnx_runtime(), ExplanationOptions(source=PathwaySource.GENERATED)
    batches = [[ExplanationRequest(tensor(seed), wanted) for seed in range(size)] for size in (1, 3, 16, 2)]
    expected = [tiny_explainer().answer(batch) for batch in batches]
    answers: dict[int, list[list[Answer]]] = {number: [] for number in range(len(batches))}

    def work(number: int) -> None:
        for _ in range(10):
            answers[number].append(explainer.answer(batches[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, repetitions in answers.items():
        assert len(repetitions) == 10
        for repetition in repetitions:
            assert_equal(repetition, expected[number])


class TestTheSizeOfAPass:
    """What ONNX Runtime has at a time is bounded by what the taps of so many images put out."""

    NEURONS = 4 * 64 + 6 * 9 + 8

    @pytest.fixture(params=[0, 4 * 4 * NEURONS])
    def limit(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
        monkeypatch.setattr(onnx_runtime_backend, "_LARGEST_PASS", request.param)
        return int(request.param)

    def test_no_pass_has_more_images_but_every_pass_has_one(self, limit: int) -> None:
        def edit(model: onnx.ModelProto) -> None:
            # Every logit is the size of the batch.
            nodes = (
                helper.make_node("Shape", ["image"], ["sizes"], start=0, end=1),
                helper.make_node("Cast", ["sizes"], ["images"], to=TensorProto.FLOAT),
                helper.make_node("Shape", ["before"], ["shape"]),
                helper.make_node("Expand", ["images", "shape"], ["logits"]),
            )
            put_behind(model, "logits", *nodes)

        answers = edited("prediction", edit).predict([tensor(seed) for seed in range(10)])
        expected = [4] * 8 + [2] * 2 if limit else [1] * 10
        assert [set(logits(answer)) for answer in answers] == [{size} for size in expected]

    @pytest.mark.parametrize("kind", GRAPHED)
    @pytest.mark.parametrize("source", [PathwaySource.TRANSFERRED, PathwaySource.GENERATED])
    @pytest.mark.usefixtures("limit")
    def test_answers_are_those_of_pytorch(self, source: PathwaySource, kind: tuple[Granularity, Ablation]) -> None:
        batch = [ExplanationRequest(tensor(seed), ExplanationOptions(source=source)) for seed in range(10)]
        assert_equal(by_onnx_runtime(*kind).answer(batch), tiny_explainer(*kind).answer(batch))


class TestItIsOnnxRuntimeThatAnswers:
    """Graphs that are made to give something else are seen in the answers."""

    def test_the_logits_of_a_prediction_are_those_of_the_graph(self) -> None:
        (expected,) = tiny_explainer().predict([tensor(0)])
        (found,) = changed("prediction", "logits", "Neg").predict([tensor(0)])
        assert logits(found) == pytest.approx(-logits(expected), abs=1e-4)

    def test_the_logits_of_an_explanation_are_those_of_the_graph(self) -> None:
        wanted = ExplanationOptions(FIRST)
        (expected,) = tiny_explainer().explain([tensor(0)], wanted)
        (found,) = changed("prediction", "logits", "Neg").explain([tensor(0)], wanted)
        assert logits(found) == pytest.approx(-logits(expected), abs=1e-4)

    def test_a_generated_pathway_is_that_of_the_graph(self) -> None:
        wanted = ExplanationOptions(FIRST, PathwaySource.GENERATED)
        (expected,) = tiny_explainer().explain([tensor(0)], wanted)
        (found,) = changed("generation", "mask", "Not").explain([tensor(0)], wanted)
        for one, other in zip(found.explanations[0].pathway, expected.explanations[0].pathway, strict=True):
            np.testing.assert_array_equal(one.mask, ~other.mask)

    @pytest.mark.parametrize("source", [PathwaySource.TRANSFERRED, PathwaySource.NEURON_MCT])
    def test_a_map_is_that_of_the_graph(self, source: PathwaySource) -> None:
        assert map_by_changed_graph(source=source) == -1

    def test_what_the_graph_cannot_do_is_computed_by_pytorch(self) -> None:
        assert map_by_changed_graph(source=PathwaySource.NEURON_MCT, granularity=Granularity.UNIT) == 1
        assert map_by_changed_graph(top_neurons=3) == 1
        # Contribution pathways leave zeros, those of this bank do not.
        kind = Granularity.UNIT, Ablation.OPTIMAL
        assert map_by_changed_graph(*kind, source=PathwaySource.NEURON_MCT) == 1
        assert map_by_changed_graph(*kind) == -1

    def test_each_group_of_a_batch_is_computed_where_it_can_be(self) -> None:
        units = ExplanationOptions(FIRST, PathwaySource.NEURON_MCT, granularity=Granularity.UNIT, outputs=MAP)
        batch = [ExplanationRequest(tensor(0), wanted) for wanted in (ExplanationOptions(FIRST, outputs=MAP), units)]
        answers = zip(changed("pathway", "map", "Neg").answer(batch), tiny_explainer().answer(batch), strict=True)
        assert [sign(*(only(answer) for answer in pair)) for pair in answers] == [-1, 1]


class TestTheComparisonOfTwoBackends:
    """It sees whatever differs, and what is not a number most of all."""

    def test_backends_that_compute_the_same_agree(self) -> None:
        right = compared(by_onnx_runtime())
        assert right.logits <= Measure.LOGITS.tolerance
        assert max(right.maps) <= Measure.MAP.tolerance
        assert (right.neurons, right.score) == (0, 0.0)

    @pytest.mark.parametrize("stage", ["prediction", "generation", "pathway"])
    def test_a_difference_of_logits_is_found_in_every_stage(self, stage: str) -> None:
        assert compared(changed(stage, "logits", "Neg")).logits > 0.1

    @pytest.mark.parametrize("stage", ["prediction", "generation", "pathway"])
    def test_logits_that_are_no_numbers_differ_in_every_stage(self, stage: str) -> None:
        # It exists for numbers from 1 on alone.
        assert compared(changed(stage, "logits", "Acosh")).logits == np.inf

    def test_a_difference_of_maps_is_found(self) -> None:
        assert min(compared(changed("pathway", "map", "Neg")).maps) == pytest.approx(2, abs=1e-3)

    def test_maps_that_are_no_numbers_differ(self) -> None:
        assert compared(changed("pathway", "map", "Acosh")).maps == (np.inf,) * 3

    def test_neurons_that_differ_are_counted_with_the_score_farthest_from_zero(self) -> None:
        other = changed("generation", "mask", "Not")
        scores = torch.full((3, 4 + 6 + 8), 1e-6)
        scores[1, 2] = -4
        assert compared(other, scores).neurons == scores.numel()
        assert compared(other, scores).score == 1

    def test_the_score_of_a_neuron_that_is_the_same_does_not_count(self) -> None:
        def edit(model: onnx.ModelProto) -> None:
            flipped = numpy_helper.from_array(np.arange(4 + 6 + 8) == 2, "flipped")
            put_behind(model, "mask", helper.make_node("Xor", ["before", "flipped"], ["mask"]))
            model.graph.initializer.append(flipped)

        scores = torch.full((3, 4 + 6 + 8), -4.0)
        scores[:, 2] = 1e-5
        found = compared(edited("generation", edit), scores)
        assert found.neurons == 3
        assert found.score == pytest.approx(1e-5 / 4)


def compared(explainer: Explainer, scores: Tensor | None = None) -> Agreement:
    """Compare what computes for an explainer with PyTorch on three images."""
    bundle = graphed_bundle()
    torch_backend = TorchBackend(bundle.classifier, bundle.bank, bundle.generator)
    batch = torch.from_numpy(np.stack([tensor(seed) for seed in range(3)]))
    target = torch_backend.logits(batch).argmax(1) % WITHOUT_PATHWAY
    scores = torch.ones(3, 4 + 6 + 8) if scores is None else scores
    return compare(explainer.backend, torch_backend, batch, target, bundle.bank.transfer(target.tolist()), scores)


class TestAGraphThatFails:
    def test_a_graph_that_finds_no_memory_is_a_resource_that_may_come_back(self) -> None:
        (error,) = failing(huge=2**44).answer([ExplanationRequest(tensor(0))])
        assert isinstance(error, ResourceExhaustedError)
        assert error.reason == "OUT_OF_MEMORY"
        assert error.retry_after

    def test_a_graph_that_fails_is_a_defect_whose_text_is_logged_and_not_told(
        self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (error,) = failing(huge=-5).answer([ExplanationRequest(tensor(0))])
        assert isinstance(error, InternalError)
        assert "ONNX" not in error.message
        assert "ONNXRuntimeError" in caplog.text
        # ONNX Runtime itself writes nothing: what it says would stand in the log twice, and without its request.
        assert capfd.readouterr() == ("", "")


def changed(
    stage: str,
    output: str,
    operator: str,
    granularity: Granularity = Granularity.CHANNEL,
    ablation: Ablation = Ablation.ZERO,
) -> Explainer:
    """Make an explainer of which one graph has an operator behind one of its outputs."""

    def edit(model: onnx.ModelProto) -> None:
        put_behind(model, output, helper.make_node(operator, ["before"], [output]))

    return edited(stage, edit, granularity, ablation)


def put_behind(model: onnx.ModelProto, output: str, *nodes: onnx.NodeProto) -> None:
    """Put nodes behind an output, which is called "before" for them."""
    for node in model.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
        node.input[:] = ["before" if name == output else name for name in node.input]
    model.graph.node.extend(nodes)


def failing(huge: int) -> Explainer:
    """Make an explainer of which the prediction first makes a tensor of a size that cannot be."""

    def edit(model: onnx.ModelProto) -> None:
        constants = {
            "huge": np.array([huge]),
            "one": np.array([1.0], np.float32),
            "none": np.array([0]),
            "many": np.array([1, len(LABELS)]),
        }
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
        model.graph.node.extend(
            [
                helper.make_node("Cast", ["image"], ["bytes"], to=TensorProto.INT64),
                helper.make_node("ReduceMin", ["bytes"], ["least"], keepdims=0),
                helper.make_node("Mul", ["least", "none"], ["nothing"]),
                helper.make_node("Add", ["nothing", "huge"], ["size"]),
                helper.make_node("Expand", ["one", "size"], ["large"]),
                helper.make_node("ReduceSum", ["large", "none"], ["sum"], keepdims=1),
                helper.make_node("Expand", ["sum", "many"], ["logits"]),
            ]
        )

    return edited("prediction", edit)


def edited(
    stage: str,
    edit: Callable[[onnx.ModelProto], None],
    granularity: Granularity = Granularity.CHANNEL,
    ablation: Ablation = Ablation.ZERO,
) -> Explainer:
    bundle = graphed_bundle(granularity, ablation)
    assert isinstance(bundle.graphs, ServingGraphs)
    model = onnx.load_model_from_string(getattr(bundle.graphs, stage))
    edit(model)
    graphs = replace(bundle.graphs, **{stage: model.SerializeToString()})
    with computing_with(lambda *_: OnnxRuntimeBackend(graphs, bundle.classifier, bundle.bank)):
        return tiny_explainer(granularity, ablation)


def map_by_changed_graph(
    granularity_of_bank: Granularity = Granularity.CHANNEL, ablation: Ablation = Ablation.ZERO, **wanted: Any
) -> int:
    """Tell the sign with which a map comes from an explainer whose graph turns it round."""
    kind, request = (granularity_of_bank, ablation), ExplanationOptions(FIRST, outputs=MAP, **wanted)
    results = [
        each.explain([tensor(0)], request)[0]
        for each in (changed("pathway", "map", "Neg", *kind), tiny_explainer(*kind))
    ]
    return sign(*(only(result) for result in results))


def sign(found: Explanation, expected: Explanation) -> int:
    assert found.map is not None
    assert expected.map is not None
    for factor in (1, -1):
        if np.allclose(found.map, factor * expected.map, rtol=1e-4, atol=1e-6):
            return factor
    raise AssertionError("one map is not the other, nor is it the other turned round")


def only(answer: Answer) -> Explanation:
    assert isinstance(answer, ExplanationResult)
    return answer.explanations[0]
