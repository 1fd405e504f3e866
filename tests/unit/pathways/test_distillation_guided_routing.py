from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fixture_data import cifar, needs_fixtures, networks
from pathlens.classifier.capture import capture
from pathlens.explanation import Granularity
from pathlens.pathways.distillation_guided_routing import distillation_guided_routing
from pathlens.pathways.pathway import mask_shape
from pathlens.pathways.random_contributions import random_contributions
from real_captures import real
from small_networks import CLASSES, NETWORKS, Dense, Plain, captured, images, original

UNIT, CHANNEL = Granularity.UNIT, Granularity.CHANNEL
TARGET = torch.tensor([0, 1, 2])


class Constant(nn.Module):
    """Its logits do not depend on its neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        with torch.no_grad():
            self.linear.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(functional.relu(x).mean((2, 3)))
        return logits


class OneOfThree(nn.Module):
    """Its predicted class hangs on the first of three neurons, which all are 1 for an image of ones."""

    def forward(self, x: Tensor) -> Tensor:
        first = functional.relu(x.flatten(1))[:, :1]
        return 9 * torch.cat([first, 0.5 + 0 * first], 1)


def gated_plain(x: Tensor, gates: Sequence[Tensor]) -> Tensor:
    network = original("plain")
    for convolution, gate in zip(("conv1", "conv2"), gates, strict=True):
        maps = functional.relu(network.get_submodule(convolution)(x))
        x = maps * (gate if gate.ndim == 4 else gate[:, :, None, None])
    logits: Tensor = network.get_submodule("linear")(x.mean((2, 3)))
    return logits


def descend_by_hand(x: Tensor, gates: list[Tensor], iterations: int, rate: float, price: float) -> list[Tensor]:
    """The gates of one image of `plain`: the method once more, without optimizer, batch and capture."""
    velocities = [torch.zeros_like(gate) for gate in gates]
    wanted = gated_plain(x, gates).softmax(1).detach()
    tried = []
    for _ in range(iterations):
        gates = [gate.detach().requires_grad_() for gate in gates]
        logits = gated_plain(x, gates)
        loss = price * sum(gate.sum() for gate in gates) - (wanted * logits.softmax(1).log()).sum()
        if logits.argmax() == wanted.argmax():
            tried.append((loss.item(), [gate.detach() for gate in gates]))
        gradients = torch.autograd.grad(loss, gates)
        velocities = [0.9 * old + gradient for old, gradient in zip(velocities, gradients, strict=True)]
        gates = [
            (gate - rate * velocity).clamp(min=0).detach() for gate, velocity in zip(gates, velocities, strict=True)
        ]
    return min(tried, key=lambda pair: pair[0])[1]


class TestByHand:
    @pytest.mark.parametrize("granularity", Granularity)
    @pytest.mark.parametrize("iterations", [1, 2, 12, 30])
    def test_gates_are_those_of_the_method_written_out(self, granularity: Granularity, iterations: int) -> None:
        # So bright that the last gates which keep the class are not the best ones.
        x = 40 * images(3)
        gates = distillation_guided_routing(
            captured("plain"), x, TARGET, granularity, iterations, learning_rate=0.3, price=0.05
        )
        for row in range(3):
            ones = [torch.ones(1, *mask_shape(tap, granularity)) for tap in captured("plain").taps]
            expected = descend_by_hand(x[row : row + 1], ones, iterations, 0.3, 0.05)
            for actual, by_hand in zip(gates.signed, expected, strict=True):
                assert torch.allclose(actual[row], by_hand[0], atol=1e-4)

    @pytest.mark.parametrize("iterations", [1, 2, 3, 10, 20])
    def test_a_gate_that_changes_nothing_falls_by_its_price_and_the_momentum(self, iterations: int) -> None:
        classifier = capture(Constant().eval(), images(2))
        gates = distillation_guided_routing(
            classifier, images(1), TARGET[:1], UNIT, iterations, learning_rate=0.1, price=0.05
        )
        steps = iterations - 1
        fallen = 0.1 * 0.05 * sum((1 - 0.9**step) / (1 - 0.9) for step in range(1, steps + 1))
        assert torch.allclose(gates.flat_scores(), torch.tensor(1 - fallen), atol=1e-5)

    @pytest.mark.parametrize("granularity", Granularity)
    def test_by_default_a_gate_that_changes_nothing_ends_at_zero(self, granularity: Granularity) -> None:
        classifier = capture(Constant().eval(), images(2))
        assert not distillation_guided_routing(classifier, images(1), TARGET[:1], granularity).flat_scores().any()

    @pytest.mark.parametrize("granularity", Granularity)
    def test_by_default_only_the_neuron_that_the_prediction_hangs_on_is_left(self, granularity: Granularity) -> None:
        classifier = capture(OneOfThree().eval(), torch.ones(2, 3, 1, 1))
        gates = distillation_guided_routing(classifier, torch.ones(1, 3, 1, 1), TARGET[:1], granularity).flat_scores()[
            0
        ]
        assert gates[0] > 0.3
        assert not gates[1:].any()


class TestIdentities:
    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("granularity", Granularity)
    def test_the_gated_network_predicts_the_class_of_the_whole_one_at_no_greater_loss(
        self, name: str, granularity: Granularity
    ) -> None:
        classifier, price = captured(name), 0.02
        gates = distillation_guided_routing(classifier, images(3), TARGET, granularity, 10, 1.0, price).signed

        def gated(index: int, activation: Tensor) -> Tensor:
            if granularity is UNIT:
                return activation * gates[index]
            last = activation.movedim(1 + classifier.taps[index].channel_dimension, -1)
            one_each = (3, *[1] * (activation.ndim - 2), -1)
            return (last * gates[index].reshape(one_each)).movedim(-1, 1 + classifier.taps[index].channel_dimension)

        before, after = classifier(images(3)), classifier.run(images(3), gated)
        assert torch.equal(after.argmax(1), before.argmax(1))
        entropy, cross = (-(before.softmax(1) * logits.log_softmax(1)).sum(1) for logits in (before, after))
        gained = sum((1 - gate).flatten(1).sum(1) for gate in gates)
        assert (cross <= entropy + price * gained + 1e-4).all()
        assert all(float(gate.min()) >= 0 for gate in gates)

    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("granularity", Granularity)
    def test_a_batch_gets_what_its_images_get_alone(self, name: str, granularity: Granularity) -> None:
        together = distillation_guided_routing(captured(name), images(3), TARGET, granularity, 6).flat_scores()
        for row in range(3):
            alone = distillation_guided_routing(
                captured(name), images(3)[row : row + 1], TARGET[row : row + 1], granularity, 6
            )
            assert torch.allclose(together[row], alone.flat_scores()[0], atol=1e-4)

    def test_the_start_is_kept_where_no_other_gates_keep_the_prediction(self) -> None:
        classifier = capture(OneOfThree().eval(), torch.ones(2, 3, 1, 1))
        # The first step takes all gates to zero, where they stay.
        gates = distillation_guided_routing(
            classifier, torch.ones(1, 3, 1, 1), TARGET[:1], UNIT, learning_rate=1e4, price=10
        )
        assert torch.equal(gates.flat_scores(), torch.ones(1, 3))

    def test_without_a_price_the_gates_stay_where_they_are(self) -> None:
        gates = distillation_guided_routing(captured("residual"), images(3), TARGET, CHANNEL, price=0)
        assert torch.allclose(gates.flat_scores(), torch.ones(3, 24), atol=1e-5)

    def test_for_a_perceptron_channels_and_units_are_the_same(self) -> None:
        units, channels = (
            distillation_guided_routing(captured("dense"), images(3), TARGET, granularity).flat_scores()
            for granularity in (UNIT, CHANNEL)
        )
        assert torch.equal(units, channels)

    @pytest.mark.parametrize("make", [Plain, Dense])
    @pytest.mark.parametrize("granularity", Granularity)
    def test_a_classifier_of_half_precision_has_gates_too(
        self, make: type[Plain] | type[Dense], granularity: Granularity
    ) -> None:
        classifier = captured(make.__name__.lower()).to(dtype=torch.bfloat16)
        scores = distillation_guided_routing(classifier, images(3), TARGET, granularity, 3)
        assert {signed.dtype for signed in scores.signed} == {torch.float32}

    def test_gradients_switched_off_outside_change_nothing(self) -> None:
        expected = distillation_guided_routing(captured("plain"), images(3), TARGET).flat_scores()
        with torch.no_grad():
            actual = distillation_guided_routing(captured("plain"), images(3), TARGET).flat_scores()
        assert torch.equal(actual, expected)

    def test_images_that_require_gradients_receive_none(self) -> None:
        x = images(3).requires_grad_()
        assert not distillation_guided_routing(captured("plain"), x, TARGET).flat_scores().requires_grad
        assert x.grad is None


@needs_fixtures
class TestRealNetwork:
    @pytest.mark.parametrize("granularity", Granularity)
    def test_gates_become_sparse_and_their_pathways_keep_more_predictions_than_random_ones(
        self, granularity: Granularity
    ) -> None:
        classifier = real("cifar_resnet20")
        x = networks().preprocess("cifar_resnet20", torch.from_numpy(cifar()[0][::125]).permute(0, 3, 1, 2))
        predicted = classifier(x).argmax(1)
        gates = distillation_guided_routing(classifier, x, predicted, granularity)
        assert float((gates.flat_scores() == 0).float().mean()) > 0.2
        kept, control = (
            int((classifier(x, scores.select(0.8)).argmax(1) == predicted).sum())
            for scores in (gates, random_contributions(classifier, x, granularity))
        )
        assert kept >= control + 2


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"iterations": 0}, "iterations is 0; expected at least 1"),
            ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a number above 0"),
            ({"learning_rate": float("nan")}, "learning_rate is nan"),
            ({"price": -0.1}, "price is -0.1; expected a number of at least 0"),
            ({"price": float("nan")}, "price is nan"),
        ],
    )
    def test_a_setting_out_of_range(self, options: dict[str, float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            distillation_guided_routing(captured("plain"), images(3), TARGET, **options)  # type: ignore[arg-type]

    def test_a_class_out_of_range(self) -> None:
        with pytest.raises(ValueError, match="has a class outside 0 to 3"):
            distillation_guided_routing(captured("plain"), images(3), TARGET + CLASSES)
