import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fixture_data import cifar, needs_fixtures, networks
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.greedy_pruning import LAST_SHARE, greedy_pruning
from pathlens.pathways.neuron_mct import contributions_of_trace, neuron_mct
from pathlens.pathways.pathway import from_flat
from real_captures import real
from small_networks import NETWORKS, captured, images

UNIT = Granularity.UNIT
TARGET = torch.tensor([0, 1, 2])
# So many that each removes one neuron of a handful at most.
ONE_BY_ONE = 200


class Chains(nn.Module):
    """Three chains input → a → b → logit, in which b is a with a bias: 6 neurons, a0 a1 a2 b0 b1 b2."""

    def __init__(self, biases: tuple[float, float, float]) -> None:
        super().__init__()
        self.step, self.linear = nn.Linear(3, 3), nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.step.weight.copy_(torch.eye(3))
            self.step.bias.copy_(torch.tensor(biases))
            self.linear.weight.copy_(torch.tensor([[1.0], [0.0]]).expand(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(functional.relu(self.step(functional.relu(x.flatten(1)))))
        return logits


def chains(biases: tuple[float, float, float]) -> CapturedClassifier:
    return capture(Chains(biases).eval(), torch.ones(2, 3, 1, 1))


def greedy_places(inputs: list[float], biases: tuple[float, float, float], rounds: int = ONE_BY_ONE) -> list[float]:
    x = torch.tensor([inputs]).reshape(1, 3, 1, 1)
    places: list[float] = greedy_pruning(chains(biases), x, torch.tensor([0]), UNIT, rounds).flat_scores()[0].tolist()
    return places


class TestByHand:
    def test_what_has_lost_its_path_goes_next_however_much_it_contributed(self) -> None:
        # a contributes 5, 3, 4 and b 1, 2, 5: b0 goes first, and with it all that a0 contributed; then b1, and a1.
        assert greedy_places([5, 3, 4], (-4, -1, 1)) == [2, 4, 5, 1, 3, 6]

    def test_one_round_goes_by_the_contributions_to_the_whole_network(self) -> None:
        assert greedy_places([5, 3, 4], (-4, -1, 1), rounds=1) == [6, 3, 4, 1, 2, 5]

    def test_of_equals_the_lowest_index_stays_longest(self) -> None:
        assert greedy_places([2, 2, 2], (0, 0, 0)) == [6, 4, 2, 5, 3, 1]

    def test_what_the_whole_network_does_not_use_scores_zero(self) -> None:
        # a0 is dead, and so is b1 whatever a1 is.
        assert greedy_places([-1, 3, 4], (1, -3, 1)) == [0, 0, 5, 4, 0, 6]

    def test_a_dead_neuron_that_the_pruning_would_bring_to_life_stays_removed(self) -> None:
        class Inhibited(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                inhibitor, driver = torch.split(functional.relu(x.flatten(1)), 1, 1)
                dead = functional.relu(2 * driver - 3 * inhibitor)
                return torch.cat([0.1 * inhibitor + driver + 9 * dead, -inhibitor], 1)

        classifier = capture(Inhibited().eval(), torch.ones(2, 2, 1, 1))
        scores = greedy_pruning(classifier, torch.ones(1, 2, 1, 1), torch.tensor([0]), UNIT, ONE_BY_ONE)
        assert scores.flat_scores().tolist() == [[2, 3, 0]]


class TestIdentities:
    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("granularity", Granularity)
    def test_each_round_removes_what_contributes_least_to_the_network_that_it_found(
        self, name: str, granularity: Granularity
    ) -> None:
        classifier, rounds = captured(name), 4
        scores = greedy_pruning(classifier, images(3), TARGET, granularity, rounds).flat_scores()
        neurons, left = scores.shape[1], scores > 0
        contributing = left.sum(1, keepdim=True)
        for done in range(1, rounds + 1):
            pathway = from_flat(left, classifier.taps, granularity)
            trace = classifier.trace(images(3), pathway if done > 1 else None)
            now = contributions_of_trace(classifier, trace, TARGET, granularity).flat_scores()
            after = scores > neurons - (LAST_SHARE ** (done / rounds) * contributing.double()).ceil()
            assert (after.sum(1) == (LAST_SHARE ** (done / rounds) * contributing[:, 0].double()).ceil()).all()
            assert (now.where(after, torch.inf).amin(1) >= now.where(left & ~after, 0).amax(1)).all()
            left = after

    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("granularity", Granularity)
    def test_the_neurons_that_contribute_have_the_highest_places_once_each_and_the_others_zero(
        self, name: str, granularity: Granularity
    ) -> None:
        scores = greedy_pruning(captured(name), images(3), TARGET, granularity, 5).flat_scores()
        contributes = neuron_mct(captured(name), images(3), TARGET, granularity).flat_scores() > 0
        assert torch.equal(scores > 0, contributes)
        for row, kept in zip(scores, contributes.sum(1).tolist(), strict=True):
            assert row.sort(descending=True).values[:kept].tolist() == list(
                range(scores.shape[1], scores.shape[1] - kept, -1)
            )

    @pytest.mark.parametrize("granularity", Granularity)
    def test_one_round_selects_what_neuron_mct_selects(self, granularity: Granularity) -> None:
        greedy = greedy_pruning(captured("residual"), images(3), TARGET, granularity, rounds=1)
        mct = neuron_mct(captured("residual"), images(3), TARGET, granularity)
        for sparsity in (0, 0.3, 0.5, 0.9):
            assert torch.equal(greedy.select(sparsity).flat(), mct.select(sparsity).flat())

    @pytest.mark.parametrize("granularity", Granularity)
    def test_pathways_have_exact_counts_and_are_nested(self, granularity: Granularity) -> None:
        scores = greedy_pruning(captured("residual"), images(3), TARGET, granularity)
        contributing = (scores.flat_scores() > 0).sum(1)
        denser = torch.ones_like(scores.flat_scores(), dtype=torch.bool)
        for sparsity in (0, 0.5, 0.8, 0.95, 0.99):
            pathway = scores.select(sparsity)
            assert torch.equal(pathway.kept, contributing.clamp(max=round((1 - sparsity) * pathway.neurons)))
            assert not (pathway.flat() & ~denser).any()
            denser = pathway.flat()

    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("granularity", Granularity)
    def test_a_batch_gets_what_its_images_get_alone(self, name: str, granularity: Granularity) -> None:
        classifier = captured(name).to(dtype=torch.float64)
        together = greedy_pruning(classifier, images(3), TARGET, granularity, 5).flat_scores()
        for row in range(3):
            alone = greedy_pruning(
                classifier, images(3)[row : row + 1], TARGET[row : row + 1], granularity, 5
            ).flat_scores()
            assert torch.equal(together[row], alone[0])

    def test_gradients_switched_off_outside_change_nothing(self) -> None:
        expected = greedy_pruning(captured("plain"), images(3), TARGET).flat_scores()
        with torch.no_grad():
            actual = greedy_pruning(captured("plain"), images(3), TARGET).flat_scores()
        assert torch.equal(actual, expected)

    @needs_fixtures
    def test_no_neuron_that_is_dead_for_a_real_image_is_in_its_pathways(self) -> None:
        classifier = real("cifar_resnet20")
        x = networks().preprocess("cifar_resnet20", torch.from_numpy(cifar()[0][::250]).permute(0, 3, 1, 2))
        scores = greedy_pruning(classifier, x, classifier(x).argmax(1), UNIT, 4).scores
        dead = [activation == 0 for activation in classifier.trace(x).activations]
        assert all(bool(mask.any()) for mask in dead)
        assert not any(bool(score[mask].any()) for score, mask in zip(scores, dead, strict=True))


class TestRefusals:
    @pytest.mark.parametrize("rounds", [0, -3])
    def test_fewer_rounds_than_one(self, rounds: int) -> None:
        with pytest.raises(ValueError, match=f"rounds is {rounds}; expected at least 1"):
            greedy_pruning(captured("plain"), images(3), TARGET, rounds=rounds)

    def test_a_class_out_of_range(self) -> None:
        with pytest.raises(ValueError, match="has a class outside 0 to 3"):
            greedy_pruning(captured("plain"), images(3), TARGET + 3)

    def test_an_output_that_is_not_finite(self) -> None:
        with pytest.raises(ValueError, match="not finite"):
            greedy_pruning(captured("plain"), images(3) * math.inf, TARGET)
