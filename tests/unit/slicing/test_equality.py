"""A slice computes what the masked network computes, whatever the network, the mask and the replacement."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.slicing.cutting import cut
from production_networks import NETWORKS as PRODUCTION
from production_networks import coloured_images, production_network
from random_networks import Architecture, architectures, batches, random_network
from sliced import REPLACEMENTS, TOLERANCE, assert_equals_mask, drawn, largest_differences
from small_networks import NETWORKS, captured, images


@cache
def captured_production(name: str) -> CapturedClassifier:
    return capture(production_network(name), coloured_images(2, 99))


@given(
    architectures(),
    batches(3),
    st.sampled_from(Granularity),
    st.sampled_from(REPLACEMENTS),
    st.sampled_from([0.0, 0.2, 0.5, 0.8, 0.95, 1.0]),
    st.integers(0, 10_000),
)
@settings(max_examples=25)
def test_a_slice_equals_the_mask(
    architecture: Architecture,
    batch: tuple[Tensor, Tensor],
    granularity: Granularity,
    replacement: str,
    keep: float,
    seed: int,
) -> None:
    classifier = random_network(architecture)
    assert_equals_mask(classifier, drawn(classifier, granularity, keep, replacement, seed), batch[0])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("granularity", Granularity)
def test_a_slice_of_a_small_network_equals_the_mask(name: str, granularity: Granularity) -> None:
    for number, (replacement, keep) in enumerate(zip(REPLACEMENTS, (0.4, 0.8, 0.6, 0.2), strict=True)):
        pathway = drawn(captured(name), granularity, keep, replacement, number)
        assert_equals_mask(captured(name), pathway, images(3))


@pytest.mark.parametrize("name", PRODUCTION)
def test_a_slice_of_a_production_network_equals_the_mask(name: str) -> None:
    classifier = captured_production(name)
    for number, granularity in enumerate(Granularity):
        pathway = drawn(classifier, granularity, 0.5, REPLACEMENTS[2 * number], number)
        assert_equals_mask(classifier, pathway, coloured_images(2, 5))


@pytest.mark.parametrize("name", [*NETWORKS, "ResNet", "ConvNeXt"])
def test_a_slice_in_single_precision_equals_the_mask(name: str) -> None:
    small = name in NETWORKS
    classifier = captured(name) if small else captured_production(name)
    batch = images(3) if small else coloured_images(3)
    pathway = drawn(classifier, Granularity.CHANNEL, 0.6, "mean")
    part = cut(classifier, pathway)
    assert max(largest_differences(part, classifier, pathway, batch, torch.tensor([0, 1, 2]))) <= TOLERANCE
