import pytest
import torch
from torch import Tensor

from fixture_data import cifar, needs_fixtures, networks
from pathlens.classifier.capture import capture
from pathlens.explanation import Granularity
from pathlens.pathways.contributions import Contributions, first_order
from pathlens.pathways.neuron_mct import neuron_mct, tap_gradients
from pathlens.pathways.random_control import random_pathway
from real_captures import real
from small_networks import CLASSES, NETWORKS, Dense, Plain, captured, images, original, seeded

UNIT, CHANNEL = Granularity.UNIT, Granularity.CHANNEL
TARGET = torch.tensor([0, 1, 2, 3])


class TestByHand:
    def test_the_last_tap_of_a_perceptron_contributes_weight_times_activation(self) -> None:
        signed = neuron_mct(captured("dense"), images(4), TARGET).signed[1]
        hidden = original("dense").get_submodule("body")[:5](images(4))  # type: ignore[index]
        weight = original("dense").get_parameter("body.5.weight")
        assert torch.allclose(signed, hidden * weight[TARGET], atol=1e-6)

    def test_an_earlier_tap_contributes_through_the_neurons_that_are_active_after_it(self) -> None:
        signed = neuron_mct(captured("dense"), images(4), TARGET).signed[0]
        body = original("dense").get_submodule("body")
        first = body[:3](images(4))  # type: ignore[index]
        active = (body[:4](images(4)) > 0).float()  # type: ignore[index]
        weights = [original("dense").get_parameter(f"body.{layer}.weight") for layer in (3, 5)]
        assert torch.allclose(signed, first * ((weights[1][TARGET] * active) @ weights[0]), atol=1e-6)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_scores_are_the_magnitudes_of_the_signed_contributions(self, name: str) -> None:
        scores = neuron_mct(captured(name), images(4), TARGET)
        assert all(torch.equal(a, b.abs()) for a, b in zip(scores.scores, scores.signed, strict=True))

    @pytest.mark.parametrize("name", ["plain", "dense", "channels last", "transformer", "gated"])
    def test_channels_sum_over_their_map_before_the_magnitude(self, name: str) -> None:
        classifier = captured(name)
        units = neuron_mct(classifier, images(4), TARGET, UNIT).signed
        channels = neuron_mct(classifier, images(4), TARGET, CHANNEL).scores
        for tap, unit, channel in zip(classifier.taps, units, channels, strict=True):
            by_channel = unit.movedim(1 + tap.channel_dimension, 1).flatten(2) if unit.ndim > 2 else unit[..., None]
            assert torch.allclose(channel, by_channel.sum(2).abs(), atol=1e-6)

    def test_granularity_may_be_given_by_name(self) -> None:
        named = neuron_mct(captured("plain"), images(4), TARGET, "channel")
        assert named.granularity is CHANNEL
        assert named.signed[0].shape == (4, 6)


class TestIdentities:
    @pytest.mark.parametrize("make", [Plain, Dense])
    @pytest.mark.parametrize("granularity", Granularity)
    def test_the_taps_of_a_network_without_biases_each_add_up_to_the_logit(
        self, make: type[Plain] | type[Dense], granularity: Granularity
    ) -> None:
        classifier = capture(seeded(lambda: make(bias=False)), images(2))
        logits = classifier(images(4)).gather(1, TARGET[:, None])[:, 0]
        for signed in neuron_mct(classifier, images(4), TARGET, granularity).signed:
            assert torch.allclose(signed.flatten(1).sum(1), logits, atol=1e-5)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_a_batch_gives_what_its_images_give_alone(self, name: str) -> None:
        together = neuron_mct(captured(name), images(4), TARGET).signed
        for row in range(4):
            alone = neuron_mct(captured(name), images(4)[row : row + 1], TARGET[row : row + 1]).signed
            assert all(torch.allclose(a[row], b[0], atol=1e-5) for a, b in zip(together, alone, strict=True))

    def test_several_targets_of_one_run_give_what_they_give_alone(self) -> None:
        classifier = captured("residual")
        trace = classifier.trace(images(2))
        for label in range(CLASSES):
            target = torch.full((2,), label)
            gradients = tap_gradients(trace, target, keep_graph=True)
            shared = first_order(classifier.taps, trace.activations, gradients, UNIT).signed
            alone = neuron_mct(classifier, images(2), target).signed
            assert all(torch.equal(a, b) for a, b in zip(shared, alone, strict=True))

    @pytest.mark.parametrize("granularity", Granularity)
    def test_dead_neurons_score_zero_and_are_never_selected(self, granularity: Granularity) -> None:
        classifier = captured("residual")
        activations = classifier.trace(images(4)).activations
        scores = neuron_mct(classifier, images(4), TARGET, granularity)
        pathway = scores.select(0.0)
        assert bool((activations[0] == 0).any())
        for activation, score, mask in zip(activations, scores.scores, pathway.masks, strict=True):
            dead = activation == 0 if granularity is UNIT else (activation == 0).flatten(2).all(2)
            assert not score[dead].any()
            assert not mask[dead].any()

    def test_a_tap_that_the_target_does_not_read_scores_zero(self) -> None:
        class Unread(Plain):
            def forward(self, x: Tensor) -> Tensor:
                logits = super().forward(x)
                return torch.cat([logits, x.mean((2, 3)).tanh()], 1)

        scores = neuron_mct(capture(seeded(Unread), images(2)), images(1), torch.tensor([0]))
        assert [bool(score.any()) for score in scores.scores] == [True, True, False]

    def test_gradients_switched_off_outside_change_nothing(self) -> None:
        expected = neuron_mct(captured("plain"), images(4), TARGET).signed
        with torch.no_grad():
            actual = neuron_mct(captured("plain"), images(4), TARGET).signed
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))

    @needs_fixtures
    def test_half_of_a_real_network_keeps_far_more_predictions_than_a_random_half(self) -> None:
        classifier = real("cifar_resnet20")
        x = networks().preprocess("cifar_resnet20", torch.from_numpy(cifar()[0][:32]).permute(0, 3, 1, 2))
        predicted = classifier(x).argmax(1)
        pathway = neuron_mct(classifier, x, predicted).select(0.5)
        assert torch.allclose(pathway.sparsity, torch.full((32,), 0.5, dtype=torch.float64), atol=1e-4)
        agreement, control = (
            float((classifier(x, half).argmax(1) == predicted).float().mean())
            for half in (pathway, random_pathway(pathway, 0))
        )
        assert agreement > control + 0.4


class TestSelection:
    def test_one_threshold_rules_all_taps_of_an_image(self) -> None:
        scores = neuron_mct(captured("plain"), images(4), TARGET)
        pathway = scores.select(0.8)
        flat, kept = torch.cat([score.flatten(1) for score in scores.scores], 1), pathway.flat()
        for row in range(4):
            assert flat[row][kept[row]].min() >= flat[row][~kept[row]].max()

    def test_the_pathway_is_of_the_images_and_taps_that_were_scored(self) -> None:
        pathway = neuron_mct(captured("plain"), images(4), TARGET, CHANNEL)[1:3].select(0.5)
        assert (len(pathway), pathway.taps, pathway.granularity) == (2, captured("plain").taps, CHANNEL)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_contributions_that_are_not_finite_are_refused(self, value: float) -> None:
        scores = neuron_mct(captured("plain"), images(4), TARGET)
        scores.signed[1][2, 0, 0, 0] = value
        with pytest.raises(ValueError, match="not finite"):
            scores.select(0.5)

    def test_contributions_of_half_precision_are_float32(self) -> None:
        taps = captured("dense").taps
        values = [torch.ones(1, tap.channels, dtype=torch.bfloat16) for tap in taps]
        scores = first_order(taps, values, values, UNIT)
        assert isinstance(scores, Contributions)
        assert {signed.dtype for signed in scores.signed} == {torch.float32}


class TestRefusals:
    @pytest.mark.parametrize("target", [[0, -1], [0, CLASSES], [2**40, 0]])
    def test_a_class_out_of_range(self, target: list[int]) -> None:
        with pytest.raises(ValueError, match="has a class outside 0 to 3"):
            neuron_mct(captured("plain"), images(2), torch.tensor(target))

    @pytest.mark.parametrize(
        "target",
        [
            torch.tensor([0]),
            torch.tensor([[0], [1]]),
            torch.tensor(0),
            torch.tensor([0.0, 1.0]),
            torch.tensor([1, 1]).int(),
        ],
    )
    def test_a_target_of_another_shape_or_type(self, target: Tensor) -> None:
        with pytest.raises(ValueError, match=r"expected int64 \[2\]"):
            neuron_mct(captured("plain"), images(2), target)

    def test_an_unknown_granularity(self) -> None:
        with pytest.raises(ValueError, match="layer"):
            neuron_mct(captured("plain"), images(2), torch.tensor([0, 1]), "layer")
