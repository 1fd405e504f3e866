import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathlens.explanation import Granularity
from pathlens.pathways.pathway import mask_shape
from pathlens.pathways.random_contributions import random_contributions
from small_networks import NETWORKS, captured, images

SEED = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("granularity", Granularity)
def test_every_neuron_of_every_image_has_a_score(name: str, granularity: Granularity) -> None:
    scores = random_contributions(captured(name), images(3), granularity)
    shapes = [(3, *mask_shape(tap, granularity)) for tap in captured(name).taps]
    assert ([tuple(signed.shape) for signed in scores.signed], scores.granularity) == (shapes, granularity)


@given(SEED)
def test_scores_are_above_0_and_at_most_1(seed: int) -> None:
    flat = random_contributions(captured("plain"), images(3), seed=seed).flat_scores()
    assert 0 < float(flat.min()) <= float(flat.max()) <= 1


@given(SEED, st.integers(1, 4), st.sampled_from(Granularity))
def test_the_scores_of_an_image_depend_on_its_row_and_the_seed_alone(
    seed: int, count: int, granularity: Granularity
) -> None:
    few = random_contributions(captured("plain"), images(count, seed=1), granularity, seed)
    many = random_contributions(captured("plain"), images(5), granularity, seed)
    assert torch.equal(few.flat_scores(), many[:count].flat_scores())


@given(SEED, st.floats(0, 1, exclude_max=True))
def test_a_pathway_keeps_exactly_the_count_and_is_part_of_every_denser_one(seed: int, sparsity: float) -> None:
    scores = random_contributions(captured("plain"), images(2), seed=seed)
    sparse, dense = scores.select(sparsity), scores.select(sparsity / 2)
    assert sparse.kept.tolist() == [round((1 - sparsity) * sparse.neurons)] * 2
    assert not (sparse.flat() & ~dense.flat()).any()


def test_seeds_and_images_differ() -> None:
    one, other = (random_contributions(captured("plain"), images(2), seed=seed).flat_scores() for seed in (1, 2))
    assert not torch.allclose(one, other, atol=0.5)
    assert not torch.allclose(one[0], one[1], atol=0.5)


def test_every_neuron_is_selected_equally_often() -> None:
    kept = random_contributions(captured("dense"), images(4000)).select(0.7).flat().float().mean(0)
    assert torch.allclose(kept, torch.full_like(kept, 5 / 17), atol=0.04)


def test_the_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    random_contributions(captured("plain"), images(1), seed=7)
    assert torch.equal(torch.rand(3), expected)
