"""What holds for contributions and pathways of any network, tried on a family of random ones."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pathlens.explanation import Granularity
from pathlens.pathways.contributions import Contributions
from pathlens.pathways.neuron_intgrad import QuadratureRule, neuron_intgrad
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway, mask_shape
from random_networks import (
    FAMILY,
    RELUS,
    SIDE,
    SMOOTH,
    Architecture,
    architectures,
    batches,
    drawn_pathway,
    random_network,
)
from small_networks import images

UNIT, CHANNEL = Granularity.UNIT, Granularity.CHANNEL
Batch = tuple[Tensor, Tensor]

# The same examples in every run: a rounding difference at a kink must not fail one run in thousands.
few = settings(max_examples=10, derandomize=True)
granularities = st.sampled_from(Granularity)
sparsities = st.floats(0, 1, exclude_max=True)
METHODS = {
    "MCT": neuron_mct,
    "IntGrad": lambda classifier, images, target, granularity: neuron_intgrad(
        classifier, images, target, 2, granularity
    ),
}
each_method = pytest.mark.parametrize("method", METHODS)


def contributions(
    method: str, architecture: Architecture, batch: Batch, granularity: Granularity = UNIT
) -> Contributions:
    return METHODS[method](random_network(architecture), *batch, granularity)


def close(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(ours, expected, strict=True))


def alive(architecture: Architecture, images: Tensor, granularity: Granularity) -> Pathway:
    """The neurons that are not silent for the images."""
    classifier = random_network(architecture)
    masks = [activation.detach() != 0 for activation in classifier.trace(images).activations]
    if granularity is CHANNEL:
        masks = [
            mask.movedim(1 + tap.channel_dimension, 1).flatten(2).any(2)
            for tap, mask in zip(classifier.taps, masks, strict=True)
        ]
    return Pathway(classifier.taps, tuple(masks), granularity)


class TestThePathwayNetwork:
    @few
    @given(architectures(), batches(), granularities)
    def test_of_all_neurons_is_the_classifier(
        self, architecture: Architecture, batch: Batch, granularity: Granularity
    ) -> None:
        classifier = random_network(architecture)
        shapes = [(len(batch[0]), *mask_shape(tap, granularity)) for tap in classifier.taps]
        whole = Pathway(classifier.taps, tuple(torch.ones(shape) > 0 for shape in shapes), granularity)
        assert torch.equal(classifier(batch[0], whole), classifier(batch[0]))

    @few
    @given(architectures(*RELUS), batches(), granularities)
    def test_misses_no_silent_neuron(self, architecture: Architecture, batch: Batch, granularity: Granularity) -> None:
        classifier, pathway = random_network(architecture), alive(architecture, batch[0], granularity)
        if granularity is UNIT:
            assert bool((pathway.sparsity > 0).all())
        assert torch.equal(classifier(batch[0], pathway), classifier(batch[0]))

    @few
    @given(architectures(), batches(), granularities, st.integers(0, 10_000))
    def test_of_a_batch_is_that_of_each_image(
        self, architecture: Architecture, batch: Batch, granularity: Granularity, seed: int
    ) -> None:
        classifier, images = random_network(architecture), batch[0]
        pathway = drawn_pathway(classifier, granularity, len(images), seed)
        together = classifier(images, pathway)
        for row in range(len(images)):
            one = slice(row, row + 1)
            assert torch.allclose(together[one], classifier(images[one], pathway[one]), rtol=1e-5, atol=1e-5)


class TestContributions:
    @each_method
    @few
    @given(architecture=architectures(), batch=batches(3), granularity=granularities)
    def test_of_a_batch_are_those_of_its_images(
        self, method: str, architecture: Architecture, batch: Batch, granularity: Granularity
    ) -> None:
        together = contributions(method, architecture, batch, granularity)
        for row in range(len(batch[0])):
            one = slice(row, row + 1)
            alone = contributions(method, architecture, (batch[0][one], batch[1][one]), granularity)
            assert close(together[one].signed, alone.signed)

    @each_method
    @few
    @given(architecture=architectures(), batch=batches(2))
    def test_of_a_channel_are_those_of_its_units_together(
        self, method: str, architecture: Architecture, batch: Batch
    ) -> None:
        units = contributions(method, architecture, batch, UNIT).signed
        channels = contributions(method, architecture, batch, CHANNEL).signed
        assert close(channels, tuple(unit.sum((2, 3)) for unit in units))

    @few
    @given(architectures(*SMOOTH), batches(2))
    def test_integrated_add_up_to_what_their_tap_is_worth(self, architecture: Architecture, batch: Batch) -> None:
        images, target = batch
        classifier = random_network(architecture)
        scores = neuron_intgrad(classifier, images, target, 16, rule=QuadratureRule.GAUSS_LEGENDRE)
        logits = classifier(images)
        for index, signed in enumerate(scores.signed):
            left = classifier.run(images, partial(silence, index))
            worth = (logits - left).gather(1, target[:, None])[:, 0]
            assert torch.allclose(signed.flatten(1).sum(1), worth, rtol=1e-4, atol=1e-5)

    @few
    @given(architectures(*RELUS), batches(2))
    def test_marginal_are_integrated_behind_the_last_kink(self, architecture: Architecture, batch: Batch) -> None:
        # What follows the last tap is linear in it: all points of the path have the slope of its end.
        marginal, integrated = (contributions(method, architecture, batch).signed[-1] for method in METHODS)
        assert close((marginal,), (integrated,))


def silence(index: int, tap: int, activation: Tensor) -> Tensor:
    return activation * 0 if tap == index else activation


class TestSelection:
    @each_method
    @few
    @given(architecture=architectures(), batch=batches(), granularity=granularities, sparsity=sparsities)
    def test_keeps_the_exact_count_or_all_that_contribute(
        self, method: str, architecture: Architecture, batch: Batch, granularity: Granularity, sparsity: float
    ) -> None:
        scores = contributions(method, architecture, batch, granularity)
        pathway = scores.select(sparsity)
        count = round((1 - sparsity) * pathway.neurons)
        contributing = (scores.flat_scores() > 0).sum(1)
        assert pathway.kept.tolist() == contributing.clamp(max=count).tolist()
        for row in range(len(pathway)):
            one = slice(row, row + 1)
            assert torch.equal(scores[one].select(sparsity).flat(), pathway.flat()[one])

    @each_method
    @few
    @given(architecture=architectures(*RELUS), batch=batches(), granularity=granularities, sparsity=sparsities)
    def test_keeps_no_silent_neuron(
        self, method: str, architecture: Architecture, batch: Batch, granularity: Granularity, sparsity: float
    ) -> None:
        kept = contributions(method, architecture, batch, granularity).select(sparsity)
        assert not bool((kept.flat() & ~alive(architecture, batch[0], granularity).flat()).any())

    @each_method
    @few
    @given(
        architecture=architectures(),
        batch=batches(),
        granularity=granularities,
        both=st.tuples(sparsities, sparsities).map(sorted),
    )
    def test_keeps_fewer_of_the_same_neurons_at_a_higher_sparsity(
        self, method: str, architecture: Architecture, batch: Batch, granularity: Granularity, both: list[float]
    ) -> None:
        scores = contributions(method, architecture, batch, granularity)
        dense, sparse = (scores.select(sparsity).flat() for sparsity in both)
        assert not bool((sparse & ~dense).any())

    @few
    @given(architectures(), batches(), granularities, st.data())
    def test_by_tap_keeps_the_exact_counts_or_all_that_contribute(
        self, architecture: Architecture, batch: Batch, granularity: Granularity, data: st.DataObject
    ) -> None:
        scores = contributions("MCT", architecture, batch, granularity)
        counts = [data.draw(st.integers(0, score[0].numel())) for score in scores.scores]
        pathway = scores.select_per_tap(counts)
        for count, score, mask in zip(counts, scores.scores, pathway.masks, strict=True):
            flat, kept = score.flatten(1), mask.flatten(1)
            assert kept.sum(1).tolist() == (flat > 0).sum(1).clamp(max=count).tolist()
            for row in range(len(flat)):
                # No neuron that is left out contributes more than one that is kept.
                left_out = flat[row][~kept[row]]
                assert not kept[row].any() or not len(left_out) or flat[row][kept[row]].min() >= left_out.max()

    @few
    @given(architectures(), batches(), granularities, sparsities)
    def test_by_tap_with_the_counts_of_a_pathway_gives_that_pathway(
        self, architecture: Architecture, batch: Batch, granularity: Granularity, sparsity: float
    ) -> None:
        scores = contributions("MCT", architecture, batch, granularity)[:1]
        pathway = scores.select(sparsity)
        again = scores.select_per_tap([int(mask.sum()) for mask in pathway.masks])
        assert torch.equal(again.flat(), pathway.flat())

    @pytest.mark.parametrize("counts", [[], [1, 1], [1, 1, 1, 1]])
    def test_by_tap_refuses_counts_for_another_number_of_taps(self, counts: list[int]) -> None:
        with pytest.raises(ValueError, match=f"{len(counts)} counts for 3 taps; expected one count for each tap"):
            contributions("MCT", FAMILY[0], (images(1, side=SIDE), torch.tensor([0]))).select_per_tap(counts)

    @pytest.mark.parametrize("count", [-1, 73])
    def test_by_tap_refuses_a_count_that_the_tap_cannot_have(self, count: int) -> None:
        scores = contributions("MCT", FAMILY[0], (images(1, side=SIDE), torch.tensor([0])))
        with pytest.raises(ValueError, match=f"the count of {scores.taps[1].name} is {count}; expected 0 to 72"):
            scores.select_per_tap([72, count, 0])
