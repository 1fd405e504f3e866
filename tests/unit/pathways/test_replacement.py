import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathlens.explanation import Ablation, Granularity
from pathlens.pathways.pathway import Pathway, mask_shape
from pathlens.pathways.random_control import random_pathway
from pathlens.pathways.replacement import Replacement
from small_networks import NETWORKS, captured, images

COUNT = 4
LEARNED = (Ablation.MEAN, Ablation.OPTIMAL)

over_networks = pytest.mark.parametrize("name", NETWORKS)
over_granularities = pytest.mark.parametrize("granularity", Granularity)
over_ablations = pytest.mark.parametrize("ablation", LEARNED)


def values_of(name: str, ablation: Ablation, rows: int = COUNT, seed: int = 0) -> Replacement:
    """Means of every unit, the same for all images; or constants of every channel, a row for each."""
    draw, taps = torch.Generator().manual_seed(seed), captured(name).taps
    if ablation is Ablation.MEAN:
        return Replacement(ablation, tuple(torch.randn(1, *tap.shape, generator=draw) for tap in taps))
    return Replacement(ablation, tuple(tap.spread(torch.randn(rows, tap.channels, generator=draw)) for tap in taps))


def pathway_of(
    name: str, granularity: Granularity, replacement: Replacement, keep: float = 0.6, count: int = COUNT
) -> Pathway:
    draw, taps = torch.Generator().manual_seed(2), captured(name).taps
    shapes = [(count, *mask_shape(tap, granularity)) for tap in taps]
    masks = tuple(torch.rand(shape, generator=draw) < keep for shape in shapes)
    return Pathway(taps, masks, granularity, replacement)


class TestThePathwayNetwork:
    @over_networks
    @over_granularities
    @over_ablations
    def test_that_keeps_all_neurons_is_the_classifier(
        self, name: str, granularity: Granularity, ablation: Ablation
    ) -> None:
        whole = pathway_of(name, granularity, values_of(name, ablation), keep=2.0)
        assert torch.allclose(captured(name)(images(COUNT), whole), captured(name)(images(COUNT)), atol=1e-6)

    # The others reach their logits past the activations as well.
    @pytest.mark.parametrize("name", ["plain", "dense", "decisive", "concatenating", "depthwise"])
    @over_granularities
    def test_that_keeps_none_does_not_depend_on_the_image(self, name: str, granularity: Granularity) -> None:
        nothing = pathway_of(name, granularity, values_of(name, Ablation.MEAN), keep=-1.0)
        logits = captured(name)(images(COUNT), nothing)
        assert torch.allclose(logits, logits[:1].expand(COUNT, -1), atol=1e-6)
        # What stands in tells the rows apart, where it differs between them.
        by_class = captured(name)(images(COUNT), nothing.under(values_of(name, Ablation.OPTIMAL)))
        same = captured(name)(images(COUNT, seed=9), nothing.under(values_of(name, Ablation.OPTIMAL)))
        assert torch.allclose(by_class, same, atol=1e-6)
        assert not torch.allclose(by_class, by_class[:1].expand(COUNT, -1), atol=1e-3)

    @over_networks
    @over_granularities
    @over_ablations
    def test_with_values_of_zero_is_that_of_zero_ablation(
        self, name: str, granularity: Granularity, ablation: Ablation
    ) -> None:
        replacement = values_of(name, ablation)
        zeros = Replacement(ablation, tuple(torch.zeros_like(value) for value in replacement.values))
        expected = captured(name)(images(COUNT), pathway_of(name, granularity, Replacement()))
        found = captured(name)(images(COUNT), pathway_of(name, granularity, zeros))
        assert torch.allclose(found, expected, atol=1e-6)

    def test_puts_the_values_where_neurons_are_removed(self) -> None:
        pathway = pathway_of("plain", Granularity.UNIT, values_of("plain", Ablation.OPTIMAL))
        activation = torch.randn(COUNT, 6, 8, 8, generator=torch.Generator().manual_seed(5))
        edited, mask = pathway.edit(0, activation), pathway.masks[0]
        assert torch.equal(edited[mask], activation[mask])
        values = pathway.replacement.values[0].expand_as(activation)
        assert torch.equal(edited[~mask], values[~mask])

    @over_ablations
    def test_computes_in_the_precision_of_the_classifier(self, ablation: Ablation) -> None:
        pathway = pathway_of("plain", Granularity.CHANNEL, values_of("plain", ablation))
        for dtype in (torch.float64, torch.bfloat16):
            edited = pathway.edit(0, torch.ones(COUNT, 6, 8, 8, dtype=dtype))
            assert edited.dtype == dtype


class TestRows:
    @given(st.lists(st.integers(0, COUNT - 1), max_size=6))
    def test_are_selected_with_the_images(self, rows: list[int]) -> None:
        pathway = pathway_of("plain", Granularity.CHANNEL, values_of("plain", Ablation.OPTIMAL))
        chosen = pathway[rows]
        assert (len(chosen), chosen.replacement.rows) == (len(rows), len(rows))
        for found, whole in zip(chosen.replacement.values, pathway.replacement.values, strict=True):
            assert torch.equal(found, whole[rows])

    def test_give_each_image_what_it_gets_alone(self) -> None:
        pathway = pathway_of("residual", Granularity.CHANNEL, values_of("residual", Ablation.OPTIMAL))
        together = captured("residual")(images(COUNT), pathway)
        for row in range(COUNT):
            alone = captured("residual")(images(COUNT)[[row]], pathway[[row]])
            assert torch.allclose(alone[0], together[row], atol=1e-5)

    def test_that_are_the_same_for_all_stay_as_they_are(self) -> None:
        means = values_of("plain", Ablation.MEAN)
        assert means.select(torch.tensor([0, 2, 1])) is means
        assert means.select(slice(0, 0)) is means
        pathway = pathway_of("plain", Granularity.UNIT, means)
        assert pathway[[1, 2, 3]].replacement is means

    @given(st.integers(0, COUNT), st.integers(0, COUNT), st.sampled_from(Ablation))
    def test_of_parts_join_to_the_whole(self, one: int, other: int, ablation: Ablation) -> None:
        replacement = Replacement() if ablation is Ablation.ZERO else values_of("plain", ablation)
        pathway = pathway_of("plain", Granularity.UNIT, replacement)
        first, second = sorted((one, other))
        joined = Pathway.concatenate([pathway[:first], pathway[first:second], pathway[second:]])
        assert torch.equal(joined.flat(), pathway.flat())
        assert joined.ablation is ablation
        expected = captured("plain")(images(COUNT), pathway)
        assert torch.equal(captured("plain")(images(COUNT), joined), expected)

    def test_of_pathways_with_different_constants_are_joined_one_for_each_image(self) -> None:
        name, kind = "plain", Granularity.CHANNEL
        shared = [pathway_of(name, kind, values_of(name, Ablation.MEAN, seed=seed), count=2) for seed in (0, 1)]
        joined = Pathway.concatenate(shared)
        assert joined.replacement.rows == COUNT
        expected = torch.cat([captured(name)(images(COUNT)[2 * place :][:2], shared[place]) for place in (0, 1)])
        assert torch.allclose(captured(name)(images(COUNT), joined), expected, atol=1e-6)

    def test_of_different_ablations_cannot_be_joined(self) -> None:
        parts = [
            pathway_of("plain", Granularity.CHANNEL, replacement)
            for replacement in (Replacement(), values_of("plain", Ablation.MEAN))
        ]
        with pytest.raises(ValueError, match="different granularity or ablation"):
            Pathway.concatenate(parts)

    def test_of_another_number_than_the_images_are_refused(self) -> None:
        with pytest.raises(ValueError, match="3 rows of replacements for 4 images"):
            pathway_of("plain", Granularity.CHANNEL, values_of("plain", Ablation.OPTIMAL, rows=3))


class TestReplacement:
    def test_without_values_is_zero_ablation_and_nothing_else(self) -> None:
        assert (Replacement().ablation, Replacement().rows) == (Ablation.ZERO, 1)
        with pytest.raises(ValueError, match="0 taps have values for ablation mean"):
            Replacement(Ablation.MEAN)
        with pytest.raises(ValueError, match="1 taps have values for ablation zero"):
            Replacement(Ablation.ZERO, (torch.zeros(1, 3),))

    @pytest.mark.parametrize("ablation", LEARNED)
    def test_stays_with_a_random_control(self, ablation: Ablation) -> None:
        pathway = pathway_of("plain", Granularity.CHANNEL, values_of("plain", ablation))
        assert random_pathway(pathway, 0).replacement is pathway.replacement

    def test_may_be_exchanged_under_the_same_masks(self) -> None:
        pathway = pathway_of("plain", Granularity.UNIT, values_of("plain", Ablation.MEAN))
        other = pathway.under(Replacement())
        assert other.ablation is Ablation.ZERO
        assert torch.equal(other.flat(), pathway.flat())
        assert pathway.ablation is Ablation.MEAN
