"""Class pathways of an evaluation, on a network whose classes have neurons of their own."""

import pytest
import torch

from pathlens.evaluation.class_pathways import (
    ClassPathwaySettings,
    observe_class_pathways,
    observe_ious,
    observe_stored_class_pathways,
)
from pathlens.evaluation.observation import Observation
from pathlens.evaluation.transfer import HeldOut
from pathlens.explanation import Ablation, Granularity
from pathlens.pathways.bank import ClassPathwayBank, count_pathways
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway
from pathlens.pathways.replacement import Replacement
from small_networks import CLASSES, captured, images

LABELS = tuple("abcd")
SETTINGS = ClassPathwaySettings(threshold=0.5, minimum_images=1, others=100, batch_size=8, seed=0)
COUNT = 40


def held_out() -> HeldOut:
    batch = images(COUNT)
    return HeldOut(batch, captured("decisive")(batch).softmax(1).detach())


def own_neurons(label: torch.Tensor) -> Pathway:
    """Give every image the neurons of its class alone."""
    mask = torch.nn.functional.one_hot(label, CLASSES).bool().repeat_interleave(4, 1)
    return Pathway(captured("decisive").taps, (mask,), Granularity.UNIT)


def observe(pathway: Pathway, settings: ClassPathwaySettings = SETTINGS) -> list[Observation]:
    return observe_class_pathways(captured("decisive"), held_out(), pathway, LABELS, "method", 0.75, settings)


def values(found: list[Observation], measure: str, control: bool = False) -> list[float]:
    return [each.value for each in found if (each.measure, each.control) == (measure, control)]


def test_a_class_pathway_of_the_classes_own_neurons_keeps_its_class_and_forces_others() -> None:
    found = observe(own_neurons(held_out().predicted))
    classes = len(set(held_out().predicted.tolist()))
    assert values(found, "class agreement") == [1.0] * classes
    # Where an image leaves the neurons of the class silent, there is nothing to force it with.
    assert min(values(found, "forcing")) > 0.7
    assert values(found, "class sparsity") == [0.75] * classes


def test_the_leak_of_the_whole_network_is_its_reference() -> None:
    everything = Pathway(captured("decisive").taps, (torch.ones(COUNT, 16, dtype=torch.bool),), Granularity.UNIT)
    found = observe(everything)
    assert values(found, "leak") == pytest.approx(values(found, "leak reference"), abs=1e-6)
    assert set(values(found, "forcing")) == {0.0}


def test_every_class_stands_beside_its_random_control() -> None:
    found = observe(own_neurons(held_out().predicted))
    assert len(values(found, "forcing", control=True)) == len(values(found, "forcing"))
    assert values(found, "forcing", control=True) != values(found, "forcing")


def test_the_images_that_build_a_class_pathway_do_not_measure_its_agreement() -> None:
    predicted = held_out().predicted
    pathway = own_neurons(predicted)
    # The building half of every class gets the neurons of another class: the measured half must pay for it.
    building = torch.tensor([int((predicted[:row] == predicted[row]).sum()) % 2 == 0 for row in range(COUNT)])
    wrong = own_neurons((predicted + building) % CLASSES)
    assert set(values(observe(pathway), "class agreement")) == {1.0}
    assert set(values(observe(wrong), "class agreement")) == {0.0}


def test_a_class_with_too_few_building_images_is_left_out() -> None:
    predicted = held_out().predicted
    building = {label: (int((predicted == label).sum()) + 1) // 2 for label in set(predicted.tolist())}
    settings = ClassPathwaySettings(0.5, max(building.values()), 100, 8, 0)
    found = observe(own_neurons(predicted), settings)
    enough = [f"{label} {LABELS[label]}" for label, count in building.items() if count == max(building.values())]
    assert {each.subject for each in found} == set(enough)


def test_all_images_of_a_class_measure_its_stored_pathway() -> None:
    predicted = held_out().predicted
    counts = count_pathways([(predicted, own_neurons(predicted))])
    missing = counts.pop(int(predicted[0]))
    bank = ClassPathwayBank(captured("decisive").taps, Granularity.UNIT, 0.5, counts)
    found = observe_stored_class_pathways(captured("decisive"), held_out(), bank, LABELS, "transferred", SETTINGS)
    assert missing.images > 0
    assert values(found, "class agreement") == [1.0] * len(counts)
    assert {each.subject for each in found} == {f"{label} {LABELS[label]}" for label in counts}
    assert {(each.method, each.sparsity) for each in found} == {("transferred", None)}


def test_class_pathways_use_and_state_what_stands_in_for_their_class() -> None:
    # Of the neurons of class c, the row of class c holds large values: a mask without neurons forces every image.
    own = 100 * torch.nn.functional.one_hot(torch.arange(CLASSES), CLASSES).float().repeat_interleave(4, 1)
    nothing = Pathway(captured("decisive").taps, (torch.zeros(COUNT, 16, dtype=torch.bool),), Granularity.UNIT)
    found = observe_class_pathways(
        captured("decisive"),
        held_out(),
        nothing,
        LABELS,
        "method",
        None,
        SETTINGS,
        Replacement(Ablation.OPTIMAL, (own,)),
    )
    assert set(values(found, "class agreement")) == set(values(found, "forcing")) == {1.0}
    assert {each.ablation for each in found} == {"optimal"}


def test_pathways_are_compared_pair_by_pair_within_and_across_classes() -> None:
    scores = neuron_mct(captured("plain"), images(8), torch.zeros(8, dtype=torch.int64))
    pathway = scores.select(0.7)
    predicted = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])
    found = observe_ious(predicted, pathway, "method", 0.7)
    for measure, same in (("acIOU", True), ("cross IoU", False)):
        for label in range(4):
            pairs = [
                float(pathway[[one]].iou(pathway[[other]])[0])
                for one in range(8)
                for other in range(8)
                if predicted[one] == label and one != other and bool(predicted[other] == label) is same
            ]
            measured = [each.value for each in found if (each.measure, each.subject) == (measure, label)]
            assert measured == pytest.approx([sum(pairs) / len(pairs)] if pairs else [], abs=1e-6)


def test_a_class_of_one_image_has_no_overlap_within() -> None:
    pathway = own_neurons(torch.tensor([0, 1, 1]))
    found = observe_ious(torch.tensor([0, 1, 1]), pathway, "method", 0.75)
    assert {(each.measure, each.subject, each.value) for each in found} == {
        ("cross IoU", 0, 0.0),
        ("cross IoU", 1, 0.0),
        ("acIOU", 1, 1.0),
    }
