"""The graph of the whole explanation says what PyTorch says, for networks of all kinds."""

from functools import cache

import onnx
import pytest
import torch

from exported_graphs import BOTH, WITHOUT_PATHWAY, drawn_subject, logits_differ, maps_differ, run_graph
from pathlens.attribution.pathway_gradient import run_pathway
from pathlens.explanation import Ablation, Granularity, PathwaySource
from pathlens.onnx_export.graphs import explanation_graph
from pathlens.onnx_export.subject import ExplainedClassifier
from small_networks import captured, clear_images, images

# Exporting takes seconds: together these have every granularity, ablation and source, and attention.
CASES = {
    "decisive": (Granularity.UNIT, Ablation.OPTIMAL, BOTH),
    "concatenating": (Granularity.UNIT, Ablation.ZERO, (PathwaySource.GENERATED,)),
    "transformer": (Granularity.UNIT, Ablation.MEAN, (PathwaySource.TRANSFERRED,)),
    "depthwise": (Granularity.CHANNEL, Ablation.ZERO, BOTH),
}


@cache
def exported(name: str) -> tuple[ExplainedClassifier, onnx.ModelProto]:
    granularity, ablation, sources = CASES[name]
    subject = drawn_subject(captured(name), granularity, ablation, PathwaySource.GENERATED in sources)
    return subject, explanation_graph(subject, sources)


@pytest.mark.parametrize("name", CASES)
def test_the_graph_computes_what_the_explainer_computes_for_any_batch(name: str) -> None:
    subject, model = exported(name)
    for count in (1, 3, 8):
        batch = images(count, seed=count)
        actual = run_graph(model, image=batch)
        trace = subject.classifier.observe(batch)
        top = trace.logits.argmax(1)
        assert logits_differ(actual["logits"], trace.logits) <= 1e-4
        assert actual["top_class"].equal(top)
        if subject.generator is not None:
            pathway = subject.generator.pathways(trace.activations, subject.bank.replacement_of(top))
            assert actual["generated_mask"].equal(pathway.flat())
            run = run_pathway(subject.classifier, batch, top, pathway)
            assert logits_differ(actual["generated_logits"], run.logits) <= 1e-4
            assert maps_differ(actual["generated_map"], run.gradient) <= 1e-3
        if PathwaySource.TRANSFERRED not in CASES[name][2]:
            continue
        stored = torch.tensor([label in subject.bank for label in top.tolist()])
        assert actual["transferred_available"].equal(stored)
        if stored.any():
            kept = subject.bank.transfer(top[stored].tolist())
            run = run_pathway(subject.classifier, batch[stored], top[stored], kept)
            assert actual["transferred_mask"][stored].equal(kept.flat())
            assert logits_differ(actual["transferred_logits"][stored], run.logits) <= 1e-4
            assert maps_differ(actual["transferred_map"][stored], run.gradient) <= 1e-3


def test_a_class_without_a_stored_pathway_is_told_apart_and_has_an_empty_mask() -> None:
    _, model = exported("decisive")
    actual = run_graph(model, image=clear_images(8))
    lacking = actual["top_class"] == WITHOUT_PATHWAY
    assert lacking.any()
    assert actual["transferred_available"].equal(~lacking)
    assert not actual["transferred_mask"][lacking].any()
    assert actual["transferred_mask"][~lacking].any()


def test_maps_depend_on_the_image() -> None:
    _, model = exported("decisive")
    # Images so different that a network of kinks is another linear map at each of them.
    actual = run_graph(model, image=images(2, seed=3) * 5)
    assert maps_differ(actual["generated_map"][:1], actual["generated_map"][1:]) > 0.01


def test_every_input_and_output_has_a_free_batch() -> None:
    _, model = exported("depthwise")
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_weights_are_turned_and_named_beforehand() -> None:
    _, model = exported("depthwise")
    names = {constant.name for constant in model.graph.initializer}
    made = {output for node in model.graph.node if node.op_type == "Constant" for output in node.output}
    moved = [node for node in model.graph.node if node.op_type in ("Transpose", "Slice", "Reshape")]
    assert not [node for node in moved if node.input[0] in names | made]
    assert {"body.0.weight", "body.2.weight"} <= names


def test_equal_subjects_give_equal_bytes() -> None:
    subject, model = exported("decisive")
    again = explanation_graph(subject, BOTH)
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_the_graph_is_of_the_oldest_versions_that_can_be_written() -> None:
    _, model = exported("decisive")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert model.ir_version == 8


def test_the_graph_tells_nothing_of_the_machine_that_made_it() -> None:
    _, model = exported("transformer")
    text = model.SerializeToString(deterministic=True)
    assert b".py" not in text
    assert b"/home" not in text
    assert not model.producer_version
