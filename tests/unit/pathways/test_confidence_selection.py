"""Selection by confidence.

The probability may rise and fall with the number of neurons. What holds all the same: the share is kept; one neuron
fewer would not keep it; and a smaller share never takes more neurons, because two bisections of one interval part at a
number that suffices for the smaller share alone.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fixture_data import cifar, needs_fixtures, networks
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.confidence_selection import select_by_confidence
from pathlens.pathways.contributions import Contributions
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway, from_flat
from pathlens.pathways.selection import rank
from random_networks import Architecture, architectures, batches, random_network
from real_captures import real
from small_networks import NETWORKS, captured, images

TARGET = torch.tensor([0, 1, 2, 3])
Batch = tuple[Tensor, Tensor]

few = settings(max_examples=12, derandomize=True)
granularities = st.sampled_from(Granularity)
shares = st.floats(0.01, 1)


class Counting(nn.Module):
    """Eight neurons that add 1 each, by their sign to the first class or to the second."""

    def __init__(self, signs: list[float]) -> None:
        super().__init__()
        self.signs = nn.Parameter(torch.tensor(signs))

    def forward(self, x: Tensor) -> Tensor:
        logit = (x.flatten(1)[:, : len(self.signs)].relu() * self.signs).sum(1)
        return torch.stack([logit, 0 * logit], 1)


def counting(signs: list[float]) -> CapturedClassifier:
    return capture(Counting(signs).eval(), torch.ones(2, 3, 2, 2))


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def ratio(classifier: CapturedClassifier, batch: Batch, pathway: Pathway) -> Tensor:
    """Which share of the targets' probability the pathway keeps."""
    kept, whole = (
        logits.softmax(1).gather(1, batch[1][:, None])[:, 0]
        for logits in (classifier(batch[0], pathway), classifier(batch[0]))
    )
    return kept / whole


def first(scores: Contributions, counts: Tensor) -> Pathway:
    """The pathway of the most contributing neurons, as many as stated for each image."""
    return from_flat(rank(scores.flat_scores()) < counts[:, None], scores.taps, scores.granularity)


class TestByHand:
    @pytest.mark.parametrize("needed", range(1, 9))
    def test_as_many_neurons_are_kept_as_the_share_needs(self, needed: int) -> None:
        classifier, batch, target = counting([1.0] * 8), torch.ones(1, 3, 2, 2), torch.tensor([0])
        # A share between what one neuron fewer keeps and what they keep.
        share = (sigmoid(needed) + sigmoid(needed - 1)) / 2 / sigmoid(8)
        scores = neuron_mct(classifier, batch, target)
        assert select_by_confidence(classifier, batch, target, scores, share).kept.tolist() == [needed]

    def test_no_neuron_is_kept_where_the_bias_alone_is_as_sure(self) -> None:
        classifier, batch, target = counting([1.0] * 8), torch.ones(1, 3, 2, 2), torch.tensor([0])
        scores = neuron_mct(classifier, batch, target)
        assert select_by_confidence(classifier, batch, target, scores, 0.5).kept.tolist() == [0]

    def test_a_still_smaller_number_may_do_where_neurons_speak_against_the_target(self) -> None:
        # The most contributing neuron keeps the share, the next speaks against it: the bisection starts behind both.
        classifier, batch = counting([4.0, -3.5, 1.0, 1.0, 1.0, 0.5]), (torch.ones(1, 3, 2, 2), torch.tensor([0]))
        scores, share = neuron_mct(classifier, *batch), sigmoid(3.2) / sigmoid(4)
        pathway = select_by_confidence(classifier, *batch, scores, share)
        assert pathway.kept.tolist() == [5]
        assert float(ratio(classifier, batch, pathway)) >= share
        assert float(ratio(classifier, batch, first(scores, torch.tensor([1])))) >= share

    def test_the_whole_network_is_kept_where_the_contributors_are_not_enough(self) -> None:
        class Saturated(nn.Module):
            """The first neuron has no slope where it is, but is missed at zero; the third is never read."""

            def forward(self, x: Tensor) -> Tensor:
                hidden = (x.flatten(1)[:, :3] * 5).relu()
                logit = hidden[:, 0].clamp(max=4) + hidden[:, 1] / 5
                return torch.stack([logit, 0 * logit], 1)

        classifier = capture(Saturated(), torch.ones(2, 3, 2, 2))
        batch = torch.ones(1, 3, 2, 2), torch.tensor([0])
        scores = neuron_mct(classifier, *batch)
        assert (scores.flat_scores() > 0).tolist() == [[False, True, False]]
        assert select_by_confidence(classifier, *batch, scores, 0.99).sparsity.tolist() == [0]
        # What one contributor keeps is enough for a smaller share.
        assert select_by_confidence(classifier, *batch, scores, 0.7).kept.tolist() == [1]


class TestAnyNetwork:
    @few
    @given(architectures(), batches(), granularities, shares)
    def test_the_share_is_kept(
        self, architecture: Architecture, batch: Batch, granularity: Granularity, share: float
    ) -> None:
        classifier = random_network(architecture)
        scores = neuron_mct(classifier, *batch, granularity)
        pathway = select_by_confidence(classifier, *batch, scores, share)
        assert bool((ratio(classifier, batch, pathway) >= share * (1 - 1e-6)).all())

    @few
    @given(architectures(), batches(), granularities, shares)
    def test_one_neuron_fewer_does_not_keep_it(
        self, architecture: Architecture, batch: Batch, granularity: Granularity, share: float
    ) -> None:
        classifier = random_network(architecture)
        scores = neuron_mct(classifier, *batch, granularity)
        kept = select_by_confidence(classifier, *batch, scores, share).kept
        contributing = (scores.flat_scores() > 0).sum(1)
        fewer = torch.where(kept > contributing, contributing, kept - 1)
        still = ratio(classifier, batch, first(scores, fewer)) >= share * (1 + 1e-6)
        assert not bool((still & (kept > 0)).any())

    @few
    @given(architectures(), batches(), granularities, shares)
    def test_the_most_contributing_neurons_are_kept_and_none_that_contributes_nothing(
        self, architecture: Architecture, batch: Batch, granularity: Granularity, share: float
    ) -> None:
        classifier = random_network(architecture)
        scores = neuron_mct(classifier, *batch, granularity)
        pathway = select_by_confidence(classifier, *batch, scores, share)
        assert torch.equal(pathway.flat(), first(scores, pathway.kept).flat())
        silent = pathway.flat() & (scores.flat_scores() == 0)
        assert not bool(silent[pathway.sparsity > 0].any())

    @few
    @given(architectures(), batches(), granularities, st.tuples(shares, shares).map(sorted))
    def test_a_smaller_share_takes_some_of_the_same_neurons(
        self, architecture: Architecture, batch: Batch, granularity: Granularity, both: list[float]
    ) -> None:
        classifier = random_network(architecture)
        scores = neuron_mct(classifier, *batch, granularity)
        small, large = (select_by_confidence(classifier, *batch, scores, share).flat() for share in both)
        assert not bool((small & ~large).any())

    @few
    @given(architectures(), batches(), granularities, shares)
    def test_a_batch_gets_what_its_images_get_alone(
        self, architecture: Architecture, batch: Batch, granularity: Granularity, share: float
    ) -> None:
        classifier = random_network(architecture)
        scores = neuron_mct(classifier, *batch, granularity)
        together = select_by_confidence(classifier, *batch, scores, share)
        for row in range(len(together)):
            one = slice(row, row + 1)
            alone = select_by_confidence(classifier, batch[0][one], batch[1][one], scores[one], share)
            assert torch.equal(alone.flat(), together[one].flat())

    @pytest.mark.parametrize("name", NETWORKS)
    def test_a_network_of_any_construct_keeps_the_share(self, name: str) -> None:
        classifier, batch = captured(name), (images(4), TARGET)
        pathway = select_by_confidence(classifier, *batch, neuron_mct(classifier, *batch), 0.9)
        assert bool((ratio(classifier, batch, pathway) >= 0.9 * (1 - 1e-6)).all())

    @needs_fixtures
    def test_a_real_network_is_as_sure_with_a_small_part_of_its_neurons(self) -> None:
        classifier = real("cifar_resnet20")
        pixels = torch.from_numpy(cifar()[0][:8]).permute(0, 3, 1, 2)
        images = networks().preprocess("cifar_resnet20", pixels)
        batch = images, classifier(images).argmax(1)
        pathway = select_by_confidence(classifier, *batch, neuron_mct(classifier, *batch), 0.9)
        assert bool((ratio(classifier, batch, pathway) >= 0.9 * (1 - 1e-6)).all())
        assert float(pathway.sparsity.mean()) > 0.3


class TestRefusals:
    @pytest.mark.parametrize("share", [0.0, -0.5, 1.01, math.nan, math.inf])
    def test_a_share_that_is_none(self, share: float) -> None:
        scores = neuron_mct(captured("plain"), images(4), TARGET)
        with pytest.raises(ValueError, match=rf"share is {share}; expected a number in \(0, 1\]"):
            select_by_confidence(captured("plain"), images(4), TARGET, scores, share)

    def test_a_class_out_of_range(self) -> None:
        scores = neuron_mct(captured("plain"), images(4), TARGET)
        with pytest.raises(ValueError, match="outside 0 to 3"):
            select_by_confidence(captured("plain"), images(4), TARGET + 1, scores, 0.9)

    def test_contributions_that_are_not_finite(self) -> None:
        scores = neuron_mct(captured("plain"), images(4), TARGET)
        scores.signed[0][1, 0, 0, 0] = math.nan
        with pytest.raises(ValueError, match="not finite"):
            select_by_confidence(captured("plain"), images(4), TARGET, scores, 0.9)
