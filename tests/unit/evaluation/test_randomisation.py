from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.evaluation.randomisation import Similarity, randomise_from_top, similarity
from small_networks import CLASSES, NETWORKS, captured, images, seeded

LAYERS = {
    "plain": ["linear", "conv2", "conv1"],
    "residual": ["linear", "layer1.1.conv2", "layer1.1.conv1", "layer1.0.conv2", "layer1.0.conv1", "stem"],
    "channels last": ["linear", "narrow", "widen", "stem"],
    "transformer": [
        *("linear", "block.linear2", "block.linear1"),
        *("block.self_attn.out_proj", "block.self_attn.in_proj_weight", "patches"),
    ],
}


@cache
def cascade(classifier: CapturedClassifier, seed: int = 0) -> tuple[tuple[str, CapturedClassifier], ...]:
    return tuple(randomise_from_top(classifier, seed))


def changed(before: CapturedClassifier, after: CapturedClassifier) -> set[str]:
    return {name for name, weight in before.weights.items() if not torch.equal(weight, after.weights[name])}


def varied(classifier: CapturedClassifier) -> set[str]:
    """Weights of which at least three values differ: a permutation that leaves those alone is unlikely."""
    return {name for name, weight in classifier.weights.items() if len(set(weight.flatten().tolist())) > 2}


class Sharing(nn.Module):
    """One convolution called twice, behind a batch norm of the image and before an indexed bias."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)
        self.linear, self.table = nn.Linear(3, CLASSES), nn.Parameter(torch.randn(7))
        self.index = nn.Buffer(torch.tensor([4, 0, 6, 2]))
        self.norm.weight.data.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(torch.relu(self.conv(self.norm(x)))))
        logits: Tensor = self.linear(x.mean((2, 3))) + self.table[self.index]
        return logits


@cache
def sharing() -> CapturedClassifier:
    return capture(seeded(Sharing), images(2))


class TestCascade:
    @pytest.mark.parametrize("name", LAYERS)
    def test_walks_the_layers_from_the_logits_to_the_image(self, name: str) -> None:
        assert [layer for layer, _ in cascade(captured(name))] == LAYERS[name]

    @pytest.mark.parametrize("name", NETWORKS)
    def test_leaves_no_weight_at_its_place(self, name: str) -> None:
        classifier = captured(name)
        assert changed(classifier, cascade(classifier)[-1][1]) >= varied(classifier)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_keeps_the_values_of_every_weight(self, name: str) -> None:
        for _, randomised in cascade(captured(name)):
            for weight, other in zip(captured(name).weights.values(), randomised.weights.values(), strict=True):
                assert weight.shape == other.shape
                assert torch.equal(weight.flatten().sort().values, other.flatten().sort().values)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_randomises_one_layer_more_in_each_step(self, name: str) -> None:
        before, randomised = captured(name), set[str]()
        for layer, after in cascade(captured(name)):
            step = changed(before, after)
            assert {layer, layer + ".weight"} & step
            assert not step & randomised
            before, randomised = after, randomised | step

    @pytest.mark.parametrize("name", NETWORKS)
    def test_starts_with_what_no_activation_depends_on(self, name: str) -> None:
        classifier = captured(name)
        first = cascade(classifier)[0][1]
        before, after = classifier.trace(images(2)), first.trace(images(2))
        assert all(torch.equal(one, other) for one, other in zip(before.activations, after.activations, strict=True))
        assert not torch.allclose(before.logits, after.logits)

    def test_takes_a_batch_norm_along_with_the_convolution_before_it(self) -> None:
        classifier = captured("residual")
        (_, head), (_, block) = cascade(classifier)[:2]
        names = changed(head, block)
        assert {"layer1.1.conv2.weight", "layer1.1.bn2.running_mean", "layer1.1.bn2.running_var"} <= names
        assert all(name.startswith(("layer1.1.conv2", "layer1.1.bn2")) for name in names)

    def test_keeps_the_statistics_of_a_channel_together(self) -> None:
        class Normalised(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm, self.linear = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, CLASSES)
                numbers = torch.arange(8.0)
                self.norm.weight.data, self.norm.bias.data = numbers + 1, numbers + 11
                self.norm.running_mean, self.norm.running_var = numbers + 21, numbers + 31

            def forward(self, x: Tensor) -> Tensor:
                logits: Tensor = self.linear(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
                return logits

        weights = cascade(capture(seeded(Normalised), images(2)))[-1][1].weights
        scale = weights["norm.weight"]
        assert not torch.equal(scale, torch.arange(8.0) + 1)
        for number, name in enumerate(["bias", "running_mean", "running_var"], start=1):
            assert torch.equal(weights[f"norm.{name}"], scale + 10 * number)

    def test_permutes_equal_weights_of_two_layers_differently(self) -> None:
        network = seeded(NETWORKS["residual"])
        blocks = network.get_submodule("layer1")
        blocks.get_submodule("1").load_state_dict(blocks.get_submodule("0").state_dict())
        weights = cascade(capture(network, images(2)))[-1][1].weights
        for name in ("conv1.weight", "conv2.weight"):
            assert not torch.equal(weights[f"layer1.0.{name}"], weights[f"layer1.1.{name}"])

    def test_randomises_shared_weights_once(self) -> None:
        layers = [layer for layer, _ in cascade(sharing())]
        assert layers == ["linear", "conv", "norm"]

    def test_leaves_indices_alone_and_ends_with_what_precedes_the_first_layer(self) -> None:
        classifier = sharing()
        steps = [classifier, *(randomised for _, randomised in cascade(classifier))]
        added = [changed(before, after) for before, after in pairwise(steps)]
        assert added == [{"table", "linear.weight", "linear.bias"}, {"conv.weight", "conv.bias"}, {"norm.weight"}]

    def test_leaves_the_classifier_as_it_was(self) -> None:
        before = {name: weight.clone() for name, weight in captured("residual").weights.items()}
        assert len(list(randomise_from_top(captured("residual"), seed=0))) == len(LAYERS["residual"])
        assert all(torch.equal(weight, before[name]) for name, weight in captured("residual").weights.items())

    def test_is_the_same_for_the_same_seed_alone(self) -> None:
        one, same, other = (list(randomise_from_top(captured("plain"), seed))[-1][1] for seed in (1, 1, 2))
        assert not changed(one, same)
        assert changed(one, other)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def values(result: Similarity) -> list[list[float]]:
    return [measure.tolist() for measure in result]


class TestSimilarity:
    @pytest.mark.parametrize("side", [3, 4, 8, 20])
    def test_of_equal_maps_is_one(self, side: int) -> None:
        maps = noise(0, 2, side, side)
        assert values(similarity(maps, maps)) == [[pytest.approx(1)] * 2] * 3

    def test_of_opposite_maps_is_one_in_magnitude_alone(self) -> None:
        maps = noise(0, 2, 8, 8)
        assert values(similarity(maps, -maps)) == [[pytest.approx(sign)] * 2 for sign in (-1, 1, 1)]

    def test_of_maps_that_differ_in_scale_is_one(self) -> None:
        maps = noise(0, 2, 8, 8)
        assert values(similarity(maps, 1000 * maps)) == [[pytest.approx(1)] * 2] * 3

    def test_is_the_correlation_of_ranks(self) -> None:
        one, other = noise(0, 1, 8, 8), noise(1, 1, 8, 8)
        other = other + one
        for maps, measure in (((one, other), 0), ((one.abs(), other.abs()), 1)):
            ranks = torch.stack([part.flatten().argsort().argsort().double() for part in maps])
            expected = float(torch.corrcoef(ranks)[0, 1])
            assert float(similarity(one, other)[measure]) == pytest.approx(expected)

    def test_sees_structure_that_ranks_do_not(self) -> None:
        # One pixel dominates both maps: their ranks are unrelated, and they look the same.
        one, other = noise(0, 1, 16, 16), noise(1, 1, 16, 16)
        one[0, 5, 5] = other[0, 5, 5] = 1e4
        result = similarity(one, other)
        assert abs(float(result.absolute_spearman)) < 0.2
        assert float(result.ssim) > 0.99

    @pytest.mark.parametrize("constant", [0.0, 2.5])
    def test_of_a_constant_map_is_no_correlation(self, constant: float) -> None:
        maps, flat = noise(0, 2, 8, 8), torch.full((2, 8, 8), constant)
        for result in (similarity(maps, flat), similarity(flat, maps), similarity(flat, flat)):
            assert result.spearman.tolist() == result.absolute_spearman.tolist() == [0, 0]
            assert result.ssim.isfinite().all()

    def test_of_a_map_with_one_magnitude_is_no_correlation_of_magnitudes(self) -> None:
        signs = noise(0, 1, 8, 8).sign()
        result = similarity(signs, signs)
        assert float(result.spearman) == pytest.approx(1)
        assert float(result.absolute_spearman) == 0

    def test_of_a_batch_is_that_of_its_maps_alone(self) -> None:
        one, other = noise(0, 3, 8, 8), noise(1, 3, 8, 8)
        together = similarity(one, other)
        for row in range(3):
            alone = similarity(one[row : row + 1], other[row : row + 1])
            assert [float(measure[row]) for measure in together] == [float(measure) for measure in alone]

    @pytest.mark.parametrize(("one", "other"), [((2, 8, 8), (2, 8, 7)), ((8, 8), (8, 8)), ((1, 2, 8), (1, 2, 8))])
    def test_of_maps_that_cannot_be_compared_is_refused(self, one: tuple[int, ...], other: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"expected equal shapes \[B, H, W\]"):
            similarity(torch.zeros(one), torch.zeros(other))
