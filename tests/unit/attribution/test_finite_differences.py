"""The pathway gradient against differences of the pathway network's outputs, which know nothing of autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fixture_data import cifar, needs_fixtures, networks
from pathlens.attribution.pathway_gradient import pathway_gradient
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway
from random_networks import Architecture, architectures, batches, drawn_pathway, random_network
from real_captures import real
from small_networks import NETWORKS, captured, images

# The kinks of a piecewise linear network are farther from the images of these tests than this.
STEP = 1e-7


def differences(classifier: CapturedClassifier, image: Tensor, target: int, pathway: Pathway) -> Tensor:
    """Central differences of f_t(x; m) along every input value of one image [1, C, H, W]."""
    moves = STEP * torch.eye(image.numel(), dtype=torch.float64).view(-1, *image.shape[1:])
    ahead, behind = classifier(torch.cat([image + moves, image - moves]), pathway)[:, target].chunk(2)
    return ((ahead - behind) / (2 * STEP)).view_as(image)


def assert_confirmed(classifier: CapturedClassifier, batch: Tensor, target: Tensor, pathway: Pathway) -> None:
    exact, batch = classifier.to(dtype=torch.float64), batch.double()
    gradient = pathway_gradient(exact, batch, target, pathway)
    assert gradient.dtype is torch.float64
    for row, label in enumerate(target.tolist()):
        one = slice(row, row + 1)
        expected = differences(exact, batch[one], label, pathway[one])
        assert torch.allclose(gradient[one], expected, rtol=0, atol=1e-7 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_value_is_confirmed_for_a_pathway_of_random_neurons(name: str, granularity: Granularity) -> None:
    pathway = drawn_pathway(captured(name), granularity, 2)
    assert_confirmed(captured(name), images(2), torch.tensor([1, 3]), pathway)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_value_is_confirmed_for_a_pathway_of_contributors(name: str) -> None:
    target = torch.tensor([1, 3])
    pathway = neuron_mct(captured(name), images(2), target).select(0.6)
    assert_confirmed(captured(name), images(2), target, pathway)


# The same examples in every run: one image in a thousand lies on a kink.
@settings(max_examples=20, derandomize=True)
@given(architectures(), batches(2), st.sampled_from(Granularity), st.integers(0, 10_000))
def test_every_value_is_confirmed_for_networks_of_every_make(
    architecture: Architecture, batch: tuple[Tensor, Tensor], granularity: Granularity, seed: int
) -> None:
    classifier = random_network(architecture)
    assert_confirmed(classifier, *batch, drawn_pathway(classifier, granularity, len(batch[0]), seed))


@needs_fixtures
@pytest.mark.parametrize("granularity", Granularity)
def test_the_slope_in_random_directions_is_confirmed_for_a_real_network(granularity: Granularity) -> None:
    classifier = real("cifar_resnet20").to(dtype=torch.float64)
    batch = networks().preprocess("cifar_resnet20", torch.from_numpy(cifar()[0][:2]).permute(0, 3, 1, 2)).double()
    target = classifier(batch).argmax(1)
    pathway = neuron_mct(classifier, batch, target, granularity).select(0.7)
    gradient = pathway_gradient(classifier, batch, target, pathway)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        direction = torch.randn(batch.shape, generator=generator, dtype=torch.float64)
        ahead, behind = (classifier(batch + step * direction, pathway) for step in (STEP, -STEP))
        slope = (ahead - behind).gather(1, target[:, None])[:, 0] / (2 * STEP)
        assert torch.allclose(slope, (gradient * direction).flatten(1).sum(1), rtol=1e-6)
