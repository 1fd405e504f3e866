import torch
from hypothesis import given
from hypothesis import strategies as st

from pathlens.explanation import Granularity
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway
from pathlens.pathways.random_control import random_pathway
from small_networks import captured, images


def some_pathway(granularity: Granularity = Granularity.UNIT, sparsity: float = 0.7) -> Pathway:
    return neuron_mct(captured("plain"), images(3), torch.tensor([0, 1, 2]), granularity).select(sparsity)


class TestRandomControl:
    @given(st.integers(0, 2**31), st.floats(0, 1, exclude_max=True), st.sampled_from(Granularity))
    def test_keeps_as_many_neurons_at_each_tap_of_each_image(
        self, seed: int, sparsity: float, granularity: Granularity
    ) -> None:
        pathway = some_pathway(granularity, sparsity)
        control = random_pathway(pathway, seed)
        for mask, drawn in zip(pathway.masks, control.masks, strict=True):
            assert torch.equal(drawn.flatten(1).sum(1), mask.flatten(1).sum(1))

    @given(st.integers(0, 2**31))
    def test_is_the_same_for_the_same_seed(self, seed: int) -> None:
        one, other = (random_pathway(some_pathway(), seed) for _ in range(2))
        assert torch.equal(one.flat(), other.flat())

    def test_leaves_the_global_random_numbers_alone(self) -> None:
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        random_pathway(some_pathway(), 7)
        assert torch.equal(torch.rand(3), expected)

    def test_differs_from_the_pathway_and_between_seeds_and_images(self) -> None:
        pathway = some_pathway()
        one, other = random_pathway(pathway, 1), random_pathway(pathway, 2)
        assert max(*pathway.iou(one).tolist(), *one.iou(other).tolist()) < 0.6
        assert float(one[:1].iou(one[1:2])[0]) < 0.6

    def test_draws_every_neuron_equally_often(self) -> None:
        mask = torch.zeros(4000, 10, dtype=torch.bool)
        mask[:, :3] = True
        taps = captured("dense").taps[:1]
        drawn = random_pathway(Pathway(taps, (mask,), Granularity.UNIT), 5).masks[0].float().mean(0)
        assert torch.allclose(drawn, torch.full((10,), 0.3), atol=0.04)
