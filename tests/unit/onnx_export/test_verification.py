"""Verification finds equal what is equal, and every kind of damage."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from exported_tiny import constant, explainer_bytes, images, metadata, replace, subject
from pathlens.errors import ExplainerFileError
from pathlens.explanation import Ablation, Granularity, PathwaySource
from pathlens.onnx_export.kinks import NUDGES, MapBeyond
from pathlens.onnx_export.measures import Measure
from pathlens.onnx_export.session import ExplainerSession
from pathlens.onnx_export.speed import measure_speed, torch_threads
from pathlens.onnx_export.torch_explanation import explain_with_torch
from pathlens.onnx_export.verification import (
    LARGEST_LIST,
    OutputComparison,
    Verdict,
    Verification,
    check_belongs,
    verify,
)
from tiny_bundle import WITHOUT_PATHWAY

SUBJECT = subject(ablation=Ablation.OPTIMAL)
CLASSES = SUBJECT.classifier.classes


@pytest.fixture
def model() -> onnx.ModelProto:
    return onnx.load_model_from_string(explainer_bytes(Ablation.OPTIMAL))


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[onnx.ModelProto], ExplainerSession]:
    def save_and_open(model: onnx.ModelProto) -> ExplainerSession:
        onnx.save(model, tmp_path / "explainer.onnx")
        return ExplainerSession(tmp_path / "explainer.onnx", threads=1)

    return save_and_open


Opened = Callable[[onnx.ModelProto], ExplainerSession]


def batches(*sizes: int) -> Iterator[tuple[Sequence[str], Tensor]]:
    for number, size in enumerate(sizes):
        yield [f"{number}-{row}.png" for row in range(size)], images(size, seed=number)


def verified(session: ExplainerSession, *sizes: int) -> Verification:
    return verify(session, SUBJECT, metadata(SUBJECT), batches(*(sizes or (1, 8))))


def stored_pathways() -> NDArray[np.bool_]:
    """The masks of all classes, as the graph holds them."""
    classes = list(SUBJECT.bank.counts)
    stored = SUBJECT.bank.transfer(classes).flat().numpy()
    table = np.zeros((CLASSES, stored.shape[1]), dtype=bool)
    table[classes] = stored
    return table


def differing(found: Verification) -> set[str]:
    return {output.output for output in found.outputs if not output.equal}


def test_an_exported_explainer_equals_pytorch_in_every_output(model: onnx.ModelProto, opened: Opened) -> None:
    session = opened(model)
    check_belongs(session, SUBJECT, metadata(SUBJECT))
    found = verified(session, 1, 8, 8, 3)
    assert found.verdict is Verdict.EQUAL
    assert (found.images, found.batch_sizes, found.maps_beyond) == (20, (1, 3, 8), ())
    assert {output.output for output in found.outputs} == set(session.outputs)
    assert max(output.largest for output in found.outputs) < 1e-4


def test_a_changed_weight_is_found(model: onnx.ModelProto, opened: Opened) -> None:
    weights = SUBJECT.classifier.weights["last.bias"].numpy()
    moved = weights.copy()
    moved[0] += 0.01
    replace(constant(model, weights), moved)
    assert "logits" in differing(verified(opened(model)))


def test_a_changed_stored_pathway_is_found(model: onnx.ModelProto, opened: Opened) -> None:
    table = stored_pathways()
    damaged = table.copy()
    damaged[:, 3] ^= True
    replace(constant(model, table), damaged)
    found = differing(verified(opened(model)))
    assert "transferred_mask" in found
    assert not found & {"logits", "top_class", "generated_mask", "generated_logits", "generated_map"}


def test_changed_replacements_are_found(model: onnx.ModelProto, opened: Opened) -> None:
    values = SUBJECT.bank.replacement.values[0].numpy()
    replace(constant(model, values), values + np.float32(0.1))
    found = differing(verified(opened(model)))
    assert found
    assert not found & {"logits", "top_class", "transferred_mask", "generated_mask", "transferred_available"}


def test_a_value_that_is_not_finite_is_beyond_every_tolerance(model: onnx.ModelProto, opened: Opened) -> None:
    weights = SUBJECT.classifier.weights["last.bias"].numpy()
    replace(constant(model, weights), np.full_like(weights, np.nan))
    found = verified(opened(model))
    logits = next(output for output in found.outputs if output.output == "logits")
    assert (logits.largest, logits.images_beyond) == (np.inf, found.images)


def transferred_map(image: Tensor) -> Tensor:
    return explain_with_torch(SUBJECT, image, (PathwaySource.TRANSFERRED,)).outputs["transferred_map"]


@pytest.fixture(scope="module")
def image_at_a_kink() -> Tensor:
    """Walk from an image towards a neighbour until the map jumps."""
    here, there = images(1), images(1) + 0.05 * images(1, seed=1)
    map_here = transferred_map(here)
    assert not torch.allclose(transferred_map(there), map_here, rtol=1e-2)
    for _ in range(40):
        middle = (here + there) / 2
        if torch.allclose(transferred_map(middle), map_here, rtol=1e-4, atol=1e-6):
            here = middle
        else:
            there = middle
    return here


def rounded_otherwise(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """Move what activation functions get, as another order of a sum would, and no logit beyond what it may."""
    bias = SUBJECT.classifier.weights["first.bias"].numpy()
    tensor = constant(model, bias)
    for shift in (1e-6, -1e-6):
        replace(tensor, bias + np.float32(shift))
        yield model


def scale_maps(model: onnx.ModelProto, factor: float) -> None:
    """Make all maps longer, as a wrong gradient of one layer would."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(factor, dtype=np.float32), "factor"))
    multiply_maps(model, "factor")


def multiply_maps(model: onnx.ModelProto, factor: str) -> None:
    for node in list(model.graph.node):
        for place, name in enumerate(node.output):
            if name.endswith("_map"):
                node.output[place] = f"{name}_before"
                model.graph.node.append(onnx.helper.make_node("Mul", [f"{name}_before", factor], [name]))


def jump_at(model: onnx.ModelProto, image: Tensor) -> None:
    """Double the maps of one image, to the last bit of it."""
    make = onnx.helper.make_node
    for name, values in (("spot", image.numpy()), ("scale", np.float32(1)), ("axes", np.array([1, 2, 3]))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    nodes = [
        make("Equal", ["image", "spot"], ["is_spot"]),
        make("Cast", ["is_spot"], ["one_at_spot"], to=onnx.TensorProto.FLOAT),
        make("ReduceMin", ["one_at_spot", "axes"], ["one_if_all"]),
        make("Add", ["one_if_all", "scale"], ["factor"]),
    ]
    model.graph.node.extend(nodes)
    multiply_maps(model, "factor")


class TestMapsAtKinks:
    def test_a_map_that_differs_by_rounding_is_equal_but_for_the_kink(
        self, model: onnx.ModelProto, opened: Opened, image_at_a_kink: Tensor
    ) -> None:
        beyond: list[MapBeyond] = []
        for rounded in rounded_otherwise(model):
            found = verify(opened(rounded), SUBJECT, metadata(SUBJECT), [(["edge.png"], image_at_a_kink)])
            assert differing(found) <= {"transferred_map", "generated_map"}
            assert found.verdict is (Verdict.AT_KINKS if found.maps_beyond else Verdict.EQUAL)
            beyond += found.maps_beyond
        # One of the two shifts crosses the kink.
        assert beyond
        for each in beyond:
            assert each.same_pathway
            assert each.nudge in NUDGES
            assert each.distance > Measure.MAP.tolerance

    @pytest.mark.parametrize("factor", [1.01, 1.0015, 0.9985, -1.0])
    def test_a_wrong_gradient_is_not_taken_for_a_kink_at_one(
        self, factor: float, model: onnx.ModelProto, opened: Opened, image_at_a_kink: Tensor
    ) -> None:
        scale_maps(model, factor)
        found = verify(opened(model), SUBJECT, metadata(SUBJECT), [(["edge.png"], image_at_a_kink)])
        assert found.verdict is Verdict.DIFFERS
        assert found.maps_beyond
        assert not any(each.at_kink for each in found.maps_beyond)

    def test_a_graph_that_jumps_where_pytorch_does_not_differs(self, model: onnx.ModelProto, opened: Opened) -> None:
        image = images(1)
        jump_at(model, image)
        found = verify(opened(model), SUBJECT, metadata(SUBJECT), [(["spot.png"], image)])
        assert found.verdict is Verdict.DIFFERS
        assert [each.nudge for each in found.maps_beyond] == [None, None]
        # Next to the image nothing is wrong.
        moved = image * (1 + 1e-4)
        assert verify(opened(model), SUBJECT, metadata(SUBJECT), [(["a.png"], moved)]).verdict is Verdict.EQUAL

    def test_kinks_do_not_hide_other_metadata(
        self, model: onnx.ModelProto, opened: Opened, image_at_a_kink: Tensor
    ) -> None:
        beyond: list[MapBeyond] = []
        expected = metadata(SUBJECT).model_copy(update={"labels": tuple("abcde")})
        for rounded in rounded_otherwise(model):
            found = verify(opened(rounded), SUBJECT, expected, [(["edge.png"], image_at_a_kink)])
            assert found.verdict is Verdict.DIFFERS
            beyond += found.maps_beyond
        assert any(each.at_kink for each in beyond)

    def test_maps_that_differ_are_compared_with_double_precision_until_it_is_clear_that_the_graph_differs(
        self, model: onnx.ModelProto, opened: Opened
    ) -> None:
        scale_maps(model, 1.01)
        found = verified(opened(model))
        assert found.verdict is Verdict.DIFFERS
        assert differing(found) == {"transferred_map", "generated_map"}
        assert len(found.maps_beyond) == LARGEST_LIST
        for each in found.maps_beyond:
            assert each.same_pathway
            assert each.distance == pytest.approx(0.01, rel=1e-2)
            # PyTorch is right to rounding, so the distance to it is the distance to double precision.
            assert each.torch_from_float64 < 1e-5
            assert each.onnx_from_float64 == pytest.approx(each.distance, rel=1e-2)

    def test_a_map_of_another_pathway_is_said_to_be_one(self, model: onnx.ModelProto, opened: Opened) -> None:
        table = stored_pathways()
        replace(constant(model, table), ~table)
        found = verified(opened(model))
        assert found.maps_beyond
        assert not any(each.same_pathway or each.at_kink for each in found.maps_beyond)
        assert found.verdict is Verdict.DIFFERS

    def test_a_map_that_was_not_looked_at_is_not_at_a_kink(self) -> None:
        at_kink = MapBeyond("a.png", PathwaySource.TRANSFERRED, 0.1, 0.1, 0.0, True, NUDGES[0])
        for images_beyond, verdict in ((1, Verdict.AT_KINKS), (2, Verdict.DIFFERS)):
            output = OutputComparison("transferred_map", Measure.MAP, 0.1, images_beyond)
            assert Verification(8, (8,), (), (output,), (at_kink,)).verdict is verdict

    def test_maps_of_one_source_do_not_stand_in_for_those_of_another(self) -> None:
        at_kink = MapBeyond("a.png", PathwaySource.GENERATED, 0.1, 0.1, 0.0, True, NUDGES[0])
        output = OutputComparison("transferred_map", Measure.MAP, 0.1, 1)
        assert Verification(8, (8,), (), (output,), (at_kink,)).verdict is Verdict.DIFFERS


def damage_weight(model: onnx.ModelProto) -> None:
    weights = SUBJECT.classifier.weights["second.weight"].numpy()
    moved = weights.copy()
    moved[0, 0, 0, 0] += 1e-3
    replace(constant(model, weights), moved)


def damage_mask_bit(model: onnx.ModelProto) -> None:
    table = stored_pathways()
    damaged = table.copy()
    # A neuron that the class of the images has.
    row = int(verification_classes()[0])
    damaged[row, int(table[row].nonzero()[0][0])] = False
    replace(constant(model, table), damaged)


def damage_replacement(model: onnx.ModelProto) -> None:
    values = SUBJECT.bank.replacement.values[-1].numpy()
    replace(constant(model, values), values * np.float32(1.01))


def damage_rows(model: onnx.ModelProto) -> None:
    table = stored_pathways()
    replace(constant(model, table), np.roll(table, 1, axis=0))


def verification_classes() -> Tensor:
    """The classes of the images that are compared."""
    inputs = torch.cat([inputs for _, inputs in batches(1, 8)])
    return SUBJECT.classifier(inputs).argmax(1)


@pytest.mark.parametrize("damage", [damage_weight, damage_mask_bit, damage_replacement, damage_rows])
def test_no_damage_passes_for_kinks(
    damage: Callable[[onnx.ModelProto], None], model: onnx.ModelProto, opened: Opened
) -> None:
    damage(model)
    assert verified(opened(model)).verdict is Verdict.DIFFERS


def test_a_class_that_is_wrongly_said_to_have_a_pathway_is_found(model: onnx.ModelProto, opened: Opened) -> None:
    available = np.arange(CLASSES) != WITHOUT_PATHWAY
    replace(constant(model, available), ~available)
    assert differing(verified(opened(model))) == {"transferred_available"}


@pytest.mark.parametrize(
    ("key", "value"), [("labels", '["a", "b", "c", "d", "e"]'), ("ablation", '"mean"'), ("preprocessing", None)]
)
def test_metadata_that_is_not_the_bundles_is_found(
    key: str, value: str | None, model: onnx.ModelProto, opened: Opened
) -> None:
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = value or entry.value.replace('"bilinear"', '"nearest"')
    found = verified(opened(model), 2)
    assert found.differing_metadata == (key,)
    assert found.verdict is Verdict.DIFFERS


class TestRefuses:
    def test_the_explainer_of_another_classifier_with_both_hashes(self, model: onnx.ModelProto, opened: Opened) -> None:
        other = subject(seed=1)
        with pytest.raises(ExplainerFileError) as raised:
            check_belongs(opened(model), other, metadata(other))
        for of in (SUBJECT, other):
            assert of.classifier.fingerprint in raised.value.message

    def test_pathways_of_another_granularity(self, model: onnx.ModelProto, opened: Opened) -> None:
        other = subject(Granularity.UNIT)
        with pytest.raises(
            ExplainerFileError, match=r"pathways of channels, and the bundle tiny has pathways of units"
        ):
            check_belongs(opened(model), other, metadata(other))

    def test_a_source_that_the_bundle_lacks(self, model: onnx.ModelProto, opened: Opened) -> None:
        other = changed(SUBJECT, generator=None)
        with pytest.raises(ExplainerFileError, match=r"has generated pathways, and the bundle tiny has none"):
            check_belongs(opened(model), other, metadata(other))

    def test_a_graph_that_lacks_an_output(self, model: onnx.ModelProto, opened: Opened) -> None:
        kept = [output for output in model.graph.output if output.name != "generated_map"]
        del model.graph.output[:]
        model.graph.output.extend(kept)
        with pytest.raises(ExplainerFileError, match=r"expected .*generated_map"):
            check_belongs(opened(model), SUBJECT, metadata(SUBJECT))

    @pytest.mark.parametrize("what", ["IR version 99", "opset 99"])
    def test_a_file_that_is_newer_than_this_onnx_runtime(
        self, what: str, model: onnx.ModelProto, opened: Opened
    ) -> None:
        if what.startswith("IR"):
            model.ir_version = 99
        else:
            next(entry for entry in model.opset_import if not entry.domain).version = 99
        with pytest.raises(ExplainerFileError, match=rf"ONNX Runtime .* cannot run .*{what}.*lower --opset"):
            opened(model)

    def test_images_that_the_graph_does_not_take(self, model: onnx.ModelProto, opened: Opened) -> None:
        with pytest.raises(ExplainerFileError, match=r"fails on images of shape \[2, 3, 9, 9\]"):
            opened(model).run(torch.zeros(2, 3, 9, 9))


class TestSpeed:
    def test_both_are_timed_on_batches_larger_than_the_images_at_hand(
        self, model: onnx.ModelProto, opened: Opened
    ) -> None:
        speed = measure_speed(opened(model), SUBJECT, images(2), 4)
        assert speed.batch_size == 4
        assert speed.rounds >= 1
        assert speed.ratio == pytest.approx(speed.torch / speed.onnx_runtime)

    def test_pytorch_has_its_threads_back_afterwards(self) -> None:
        before = torch.get_num_threads()
        with torch_threads(before + 1):
            assert torch.get_num_threads() == before + 1
        assert torch.get_num_threads() == before


def test_pytorch_explains_with_the_sources_of_the_file_alone() -> None:
    outputs = explain_with_torch(SUBJECT, images(2), (PathwaySource.GENERATED,)).outputs
    assert not any(name.startswith("transferred") for name in outputs)
