import io
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from pathlens.explanation import Ablation, Granularity
from pathlens.generator.channel_means import channel_means
from pathlens.generator.parallel import ProcessGroup
from pathlens.generator.training import TEMPERATURE, GeneratorSettings, GeneratorTraining
from pathlens.pathways.replacement import Replacement
from small_networks import CLASSES, captured, clear_images, images

BATCH = 32


def training_of(
    steps: int = 20, seed: int = 0, name: str = "decisive", ablation: Ablation = Ablation.ZERO, **changes: Any
) -> GeneratorTraining:
    classifier = captured(name)
    activations = classifier.observe(images(16)).activations
    pairs = list(zip(activations, classifier.taps, strict=True))
    values = tuple(activation.mean(0, keepdim=True) for activation in activations)
    if ablation is Ablation.OPTIMAL:
        values = tuple(value.repeat(CLASSES, *[1] * (value.ndim - 1)) for value in values)
    return GeneratorTraining(
        classifier,
        [channel_means(activation.abs(), tap).mean(0) for activation, tap in pairs],
        Replacement(ablation, values if ablation is not Ablation.ZERO else ()),
        GeneratorSettings(steps=steps, **changes),
        clear_images(64, seed=2_000_000),
        ProcessGroup(),
        seed,
    )


def train(training: GeneratorTraining, steps: int, first: int = 0) -> Mapping[str, float]:
    figures: Mapping[str, float] = {}
    for number in range(first, first + steps):
        figures = training.step(clear_images(BATCH, seed=number))
        assert set(figures) == {"loss", "agreement", "sparsity"}
        assert all(torch.tensor(list(figures.values())).isfinite())
        assert 0 <= figures["agreement"] <= 1
        assert 0 <= figures["sparsity"] <= 1
    return figures


def stored(training: GeneratorTraining) -> dict[str, Any]:
    """The state as a checkpoint holds it."""
    file = io.BytesIO()
    torch.save(training.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


class TestTraining:
    def test_removes_neurons_that_the_decision_does_not_need(self) -> None:
        training = training_of(150)
        first = training.step(clear_images(BATCH))
        assert first["sparsity"] == 0
        train(training, 149, 1)
        held_out = clear_images(64, seed=999)
        whole = captured("decisive").observe(held_out)
        logits, activations = whole.logits, whole.activations
        pathway = training.generator.frozen().pathways(activations)
        assert float(pathway.sparsity.mean()) > 0.7
        kept = captured("decisive")(held_out, pathway).argmax(1) == logits.argmax(1)
        assert float(kept.float().mean()) > 0.95

    def test_at_a_lower_price_removes_fewer(self) -> None:
        low, high = (train(training_of(80, price=price), 80)["sparsity"] for price in (0.01, 1.0))
        assert low + 0.3 < high

    def test_with_an_agreement_to_reach_searches_the_price(self) -> None:
        # A price at which hardly a class survives falls, and one that removes nothing rises.
        strict, wasteful = training_of(100, price=100.0, agreement=0.95), training_of(100, price=0.01, agreement=0.5)
        train(strict, 100)
        train(wasteful, 100)
        assert strict.state_dict()["price"] < 100
        assert wasteful.state_dict()["price"] > 0.01

    def test_teaches_the_classifier_at_the_temperature(self) -> None:
        # In the first step every neuron is kept and costs nothing yet.
        x = clear_images(BATCH)
        logits = captured("decisive")(x)
        taught = (logits / TEMPERATURE).log_softmax(1)
        divergence = (taught.exp() * (taught - logits.log_softmax(1))).sum(1).mean()
        assert training_of(code_weight=0.0).step(x)["loss"] == pytest.approx(float(divergence), rel=0.01)
        assert float(divergence) > 0.0001

    def test_without_one_leaves_the_price_alone(self) -> None:
        training = training_of(20, price=0.3)
        train(training, 20)
        assert training.state_dict()["price"] == 0.3

    @pytest.mark.parametrize("name", ["plain", "transformer", "gated", "channels last"])
    @pytest.mark.parametrize("ablation", Ablation)
    @pytest.mark.parametrize("granularity", Granularity)
    def test_works_for_every_kind_of_tap_neuron_and_ablation(
        self, name: str, ablation: Ablation, granularity: Granularity
    ) -> None:
        train(training_of(3, name=name, ablation=ablation, granularity=granularity), 3)

    def test_works_in_bfloat16(self) -> None:
        training = training_of(4)
        training._classifier = captured("decisive").to(dtype=torch.bfloat16)
        train(training, 4)

    def test_leaves_the_global_random_numbers_alone(self) -> None:
        before = torch.get_rng_state()
        train(training_of(2), 2)
        assert torch.equal(torch.get_rng_state(), before)

    def test_changes_no_weight_of_the_classifier(self) -> None:
        fingerprint = captured("decisive").weights_bytes()
        train(training_of(2), 2)
        assert captured("decisive").weights_bytes() == fingerprint


class TestResuming:
    @pytest.mark.parametrize("agreement", [None, 0.9])
    # At the beginning, before and after the first look at the validation images, and before the last step.
    @pytest.mark.parametrize("stop", [0, 1, 24, 27, 59])
    def test_gives_bitwise_what_an_uninterrupted_training_gives(self, stop: int, agreement: float | None) -> None:
        whole, interrupted = training_of(60, agreement=agreement), training_of(60, agreement=agreement)
        train(whole, 60)
        train(interrupted, stop)
        # Begun as in another process, with other first parameters.
        resumed = training_of(60, seed=5, agreement=agreement)
        resumed.load_state_dict(stored(interrupted))
        train(resumed, 60 - stop, stop)
        for name, value in whole.generator.state_dict().items():
            assert torch.equal(value, resumed.generator.state_dict()[name]), name
        assert whole.state_dict()["price"] == resumed.state_dict()["price"]

    def test_is_the_same_for_the_same_seed_and_another_for_another(self) -> None:
        one, same, other = (training_of(seed=seed).generator.state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(value, same[name]) for name, value in one.items())
        assert not all(torch.equal(value, other[name]) for name, value in one.items())
