"""Slices of the fixture classifiers: exact, and as small as their pathways."""

import pytest
import torch

from fixture_data import CLASSIFIERS, needs_fixtures
from pathlens.explanation import Granularity
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway
from pathlens.slicing.cutting import cut
from real_captures import real
from sliced import TOLERANCE, drawn, kernels, largest_differences, operators
from small_networks import images

pytestmark = needs_fixtures

CHANNEL = Granularity.CHANNEL
LARGEST_WORK = 0.08
"""Of the classifier's, for random pathways of a fifth of the channels."""


def balanced(name: str, keep: float, seed: int) -> Pathway:
    """A pathway that keeps the same random fraction of the channels of every tap."""
    pathway = drawn(real(name), CHANNEL, keep, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for mask in pathway.masks:
        scores = torch.rand(mask.shape, generator=generator)
        mask[:] = scores >= torch.quantile(scores, 1 - keep)
    return pathway


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_slice_equals_the_mask(name: str) -> None:
    classifier, batch, target = real(name).in_float64, images(1, 1, CLASSIFIERS[name][1]).double(), torch.tensor([3])
    pathway = balanced(name, 0.5, 0)
    part = cut(classifier, pathway)
    assert max(largest_differences(part, classifier, pathway, batch, target)) <= TOLERANCE
    assert part.run(batch, target).gradient.any()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_slice_of_a_sparse_pathway_does_little_work(name: str) -> None:
    assert 0 < cut(real(name), balanced(name, 0.2, 0)).work <= LARGEST_WORK


@pytest.mark.parametrize("label", range(10))
def test_every_class_of_resnet_20_can_be_cut(label: int) -> None:
    classifier = real("cifar_resnet20").in_float64
    batch, target = images(3, label, 32).double(), torch.full((3,), label)
    pathway = neuron_mct(classifier, batch[:1], target[:1], CHANNEL).select(sparsity=0.7)
    differences = largest_differences(cut(classifier, pathway), classifier, pathway, batch, target)
    assert max(differences) <= TOLERANCE


@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("replacement", ["mean map", "optimal"])
def test_replacements_are_part_of_the_biases(granularity: Granularity, replacement: str) -> None:
    classifier = real("cifar_resnet20").in_float64
    pathway = drawn(classifier, granularity, 0.4, replacement)
    batch, target = images(2, 0, 32).double(), torch.tensor([0, 9])
    differences = largest_differences(cut(classifier, pathway), classifier, pathway, batch, target)
    assert max(differences) <= TOLERANCE


def test_no_convolution_has_a_channel_that_is_removed() -> None:
    """SqueezeNet's convolutions stand between taps, of which the expansions are two side by side."""
    pathway = balanced("squeezenet1_1", 0.3, 1)
    kept = [int(mask.sum()) for mask in pathway.masks]
    expected, inputs = [(kept[0], 3, 3, 3)], kept[0]
    for squeeze, small, large in zip(kept[1:25:3], kept[2:25:3], kept[3:25:3], strict=True):
        expected += [(squeeze, inputs, 1, 1), (small, squeeze, 1, 1), (large, squeeze, 3, 3)]
        inputs = small + large
    expected.append((kept[25], inputs, 1, 1))
    assert kernels(cut(real("squeezenet1_1"), pathway)) == expected


def test_the_shortcut_of_resnet_20_costs_no_margin_of_channels() -> None:
    part = cut(real("cifar_resnet20"), balanced("cifar_resnet20", 0.2, 0))
    assert "pad" not in operators(part)


def test_a_slice_is_as_large_as_its_weights_and_its_calls() -> None:
    part = cut(real("cifar_resnet20"), balanced("cifar_resnet20", 0.2, 0))
    weights = sum(weight.nbytes for weight in part.network.weights.values())
    assert 1000 < (part.bytes - weights) / len(part.network.program.calls) < 3000
    assert weights < 0.1 * sum(weight.nbytes for weight in real("cifar_resnet20").weights.values())
