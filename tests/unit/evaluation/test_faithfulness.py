"""Faithfulness on networks so small that every figure can be computed by hand."""

import pytest
import torch

from pathlens.classifier.captured import CapturedClassifier
from pathlens.evaluation.batch import Batch, Subject
from pathlens.evaluation.faithfulness import (
    InstancePathways,
    dead_neurons,
    observe_faithfulness,
    observe_overlap,
    observe_spread,
)
from pathlens.evaluation.observation import Observation
from pathlens.explanation import Ablation, Granularity
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway, mask_shape
from pathlens.pathways.random_control import random_pathway
from pathlens.pathways.replacement import Replacement
from small_networks import CLASSES, captured, images

SUBJECTS = tuple(Subject(10 + row, 8, 8) for row in range(6))


def batch(name: str = "decisive") -> Batch:
    return Batch(captured(name), SUBJECTS, images(6))


def everything(classifier: CapturedClassifier, count: int, kept: bool) -> Pathway:
    taps = classifier.taps
    masks = tuple(torch.full((count, *mask_shape(tap, Granularity.UNIT)), kept) for tap in taps)
    return Pathway(taps, masks, Granularity.UNIT)


def observed(found: list[Observation], measure: str, control: bool = False) -> dict[int | str, float]:
    return {each.subject: each.value for each in found if (each.measure, each.control) == (measure, control)}


def measure(of: Batch, pathway: Pathway) -> list[Observation]:
    dead = dead_neurons(of, pathway.granularity)
    return observe_faithfulness(of, InstancePathways("method", 0.5, pathway), dead, seed=0)


def test_the_whole_network_agrees_and_loses_no_confidence() -> None:
    found = measure(batch(), everything(captured("decisive"), 6, kept=True))
    assert set(observed(found, "agreement").values()) == {1.0}
    assert set(observed(found, "confidence drop").values()) == {0.0}
    assert set(observed(found, "confidence increase").values()) == {0.0}
    assert set(observed(found, "realised sparsity").values()) == {0.0}


def test_a_pathway_without_neurons_gives_every_image_the_same_answer() -> None:
    # The network has no bias behind its activations: all classes are equally probable, and argmax takes the first.
    of = batch()
    found = measure(of, everything(captured("decisive"), 6, kept=False))
    for row, position in enumerate(of.positions):
        p = float(of.probabilities[row, of.target[row]])
        assert observed(found, "confidence drop")[position] == pytest.approx((p - 1 / CLASSES) / p, abs=1e-5)
        assert observed(found, "agreement")[position] == float(of.target[row] == 0)
        assert observed(found, "instance leak")[position] == pytest.approx(1 / CLASSES, abs=1e-6)


def test_the_whole_network_forces_nothing_on_an_image_of_another_class() -> None:
    found = measure(batch(), everything(captured("decisive"), 6, kept=True))
    assert set(observed(found, "instance forcing").values()) == {0.0}
    assert observed(found, "instance leak") == pytest.approx(observed(found, "instance leak reference"), abs=1e-5)


def test_a_pathway_of_one_class_alone_forces_that_class_on_every_other() -> None:
    of = batch()
    mask = torch.zeros(6, 4 * CLASSES, dtype=torch.bool)
    for row, label in enumerate(of.target.tolist()):
        mask[row, 4 * label : 4 * label + 4] = True
    found = measure(of, Pathway(of.classifier.taps, (mask,), Granularity.UNIT))
    forcing = observed(found, "instance forcing")
    assert sum(forcing.values()) == len(forcing) > 0


def test_images_of_one_class_alone_have_no_partner_to_force() -> None:
    of = Batch(captured("decisive"), SUBJECTS, images(1).repeat(6, 1, 1, 1))
    found = measure(of, everything(captured("decisive"), 6, kept=True))
    assert observed(found, "instance forcing") == {}
    assert len(observed(found, "agreement")) == 6


def test_the_control_is_a_random_pathway_of_the_same_size() -> None:
    of = batch("plain")
    pathway = neuron_mct(of.classifier, of.images, of.target).select(0.8)
    found = measure(of, pathway)
    assert observed(found, "realised sparsity", control=True) == observed(found, "realised sparsity")
    control = random_pathway(pathway, 0)
    q = of.classifier(of.images, control).softmax(1)
    for row, position in enumerate(of.positions):
        agrees = q[row].argmax() == of.target[row]
        assert observed(found, "agreement", control=True)[position] == float(agrees)


def test_what_stands_in_for_removed_neurons_is_used_and_stated_and_the_control_shares_it() -> None:
    of = batch("plain")
    # With every neuron replaced by its own value, the pathway without neurons is the whole network.
    values = tuple(activation.detach() for activation in of.classifier.trace(of.images).activations)
    pathway = everything(of.classifier, 6, kept=False).under(Replacement(Ablation.MEAN, values))
    found = measure(of, pathway)
    assert set(observed(found, "agreement").values()) == {1.0}
    assert set(observed(found, "agreement", control=True).values()) == {1.0}
    assert {each.ablation for each in found} == {"mean"}


def test_the_spread_is_that_of_the_sparsities_of_all_images() -> None:
    classifier = captured("plain")
    pathway = Pathway.concatenate([everything(classifier, 2, kept=True), everything(classifier, 4, kept=False)])
    found = {each.measure: each.value for each in observe_spread(InstancePathways("method", None, pathway))}
    assert (found["lowest sparsity"], found["highest sparsity"]) == (0, 1)
    assert found["sparsity spread"] == pytest.approx((2 * 4) ** 0.5 / 6)


def test_a_single_image_has_no_spread() -> None:
    of = batch("plain")
    pathway = neuron_mct(of.classifier, of.images, of.target).select(0.5)[[0]]
    (spread, *_) = observe_spread(InstancePathways("method", None, pathway))
    assert spread.value == 0


@pytest.mark.parametrize("granularity", Granularity)
def test_pathways_of_contributors_hold_no_dead_neuron(granularity: Granularity) -> None:
    of = batch("plain")
    found = measure(of, neuron_mct(of.classifier, of.images, of.target, granularity).select(0.3))
    assert set(observed(found, "dead share").values()) == {0.0}


def test_the_share_of_dead_neurons_is_counted_among_those_kept() -> None:
    of = batch("plain")
    pathway = everything(of.classifier, 6, kept=True)
    found = measure(of, pathway)
    activations = of.classifier.trace(of.images).activations
    zeros = torch.stack([(activation == 0).flatten(1).sum(1) for activation in activations]).sum(0)
    for row, position in enumerate(of.positions):
        assert observed(found, "dead share")[position] == pytest.approx(float(zeros[row]) / pathway.neurons)


@pytest.mark.parametrize("name", ["plain", "channels last", "dense", "transformer"])
def test_a_channel_is_dead_if_all_its_units_are(name: str) -> None:
    of = batch(name)
    dead = dead_neurons(of, Granularity.CHANNEL)
    start = 0
    for tap, activation in zip(of.classifier.taps, of.classifier.trace(of.images).activations, strict=True):
        channels = activation.movedim(1 + tap.channel_dimension, 1).flatten(2) if activation.ndim > 2 else activation
        silent = (channels == 0).all(2) if channels.ndim == 3 else channels == 0
        assert torch.equal(dead[:, start : start + tap.channels], silent)
        start += tap.channels
    assert start == dead.shape[1]


def test_methods_overlap_with_each_other_at_the_same_sparsity() -> None:
    of = batch("plain")
    scores = neuron_mct(of.classifier, of.images, of.target)
    one, other, sparser = scores.select(0.5), random_pathway(scores.select(0.5), 1), scores.select(0.9)
    found = observe_overlap(
        of,
        [
            InstancePathways("one", 0.5, one),
            InstancePathways("other", 0.5, other),
            InstancePathways("one", 0.9, sparser),
        ],
    )
    assert {(each.method, each.detail, each.sparsity) for each in found} == {
        ("one", "other", 0.5),
        ("other", "one", 0.5),
    }
    values = [each.value for each in found if each.method == "one"]
    assert values == one.iou(other).tolist()
