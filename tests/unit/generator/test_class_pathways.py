import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from pathlens.evaluation.transfer import HeldOut, measure_transfer
from pathlens.explanation import Ablation, Granularity
from pathlens.generator.class_pathways import ClassPathwaySettings, ClassPathwayTraining
from pathlens.generator.parallel import ProcessGroup
from pathlens.pathways.bank import ClassPathwayBank, count_pathways
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.replacement import Replacement
from small_networks import CLASSES, captured, clear_images, images

BATCH = 32
CHANNEL = Granularity.CHANNEL
LEARNED = {"loss", "sparsity"}
"""What a step tells once masks are learned; before, nothing, and later, what validation has found."""


def replacement_of(name: str, ablation: Ablation) -> Replacement:
    if ablation is Ablation.ZERO:
        return Replacement()
    means = (activation.mean(0, keepdim=True) for activation in captured(name).observe(images(16)).activations)
    if ablation is Ablation.OPTIMAL:
        means = (mean.mean().expand_as(mean).clone() for mean in means)
    return Replacement(ablation, tuple(means))


def training_of(
    steps: int = 30,
    classes: Sequence[int] = range(CLASSES),
    ablation: Ablation = Ablation.ZERO,
    name: str = "decisive",
    seed: int = 0,
    **changes: Any,
) -> ClassPathwayTraining:
    settings = ClassPathwaySettings(steps=steps, **changes)
    validation = clear_images(64, seed=2_000_000)
    replacement = replacement_of(name, ablation)
    return ClassPathwayTraining(captured(name), classes, replacement, settings, validation, ProcessGroup(), seed)


def train(training: ClassPathwayTraining, steps: int, first: int = 0) -> Mapping[str, float]:
    figures: Mapping[str, float] = {}
    for number in range(first, first + steps):
        figures = training.step(clear_images(BATCH, seed=number))
        assert set(figures) in (set(), LEARNED, LEARNED | {"agreement", "forcing"})
        assert all(torch.tensor(list(figures.values())).isfinite())
    return figures


def stored(training: ClassPathwayTraining) -> dict[str, Any]:
    """The state as a checkpoint holds it."""
    file = io.BytesIO()
    torch.save(training.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


@cache
def trained(ablation: Ablation) -> ClassPathwayTraining:
    """Long enough to settle; not to be trained on."""
    training = training_of(400, ablation=ablation)
    train(training, 400)
    return training


def bank_of(training: ClassPathwayTraining, sparsity: float = 0.75) -> ClassPathwayBank:
    classifier, x = captured("decisive"), clear_images(128, seed=7)
    predicted = classifier(x).argmax(1)
    counts = count_pathways([(predicted, neuron_mct(classifier, x, predicted, CHANNEL).select(sparsity))])
    return ClassPathwayBank(
        classifier.taps, CHANNEL, 0.7, counts, masks=training.masks(), replacement=training.replacement()
    )


class TestTwoSidedMasks:
    def test_force_fewer_images_than_masks_by_frequency_where_classes_are_clear_and_removed_neurons_are_zero(
        self,
    ) -> None:
        # Masks by frequency hold the neurons of their class alone, whose logit then is the greatest whatever comes in.
        bank, x = bank_of(trained(Ablation.ZERO)), clear_images(128, seed=1_000_000)
        held_out = HeldOut(x, captured("decisive")(x).softmax(1))
        for label in range(CLASSES):
            stored_mask, by_frequency = (
                measure_transfer(captured("decisive"), mask, label, [held_out])
                for mask in (bank.transfer([label]), bank.by_frequency(label))
            )
            assert stored_mask.forcing is not None
            assert by_frequency.forcing is not None
            assert by_frequency.forcing > 0.5
            assert stored_mask.forcing < 0.5 * by_frequency.forcing
            assert stored_mask.agreement is not None
            assert stored_mask.agreement >= 0.9
            assert float(bank.transfer([label]).sparsity[0]) > 0.1

    def test_keep_what_speaks_for_the_class_and_what_speaks_for_others(self) -> None:
        # Four neurons belong to each class.
        for label, mask in trained(Ablation.ZERO).masks().items():
            kept = mask.view(CLASSES, 4).any(1)
            assert bool(kept[label])
            assert int(kept.sum()) > 1


class TestTraining:
    def test_begins_with_every_neuron_kept(self) -> None:
        training = training_of()
        assert training.step(clear_images(BATCH)) == {}
        assert all(bool(mask.all()) for mask in training.masks().values())

    def test_gives_the_masks_of_averaged_scores(self) -> None:
        training = training_of(60)
        train(training, 59)
        before = [averaged.clone() for averaged in training.state_dict()["averaged"]]
        train(training, 1, 59)
        state = training.state_dict()
        for old, new, scores in zip(before, state["averaged"], state["scores"], strict=True):
            assert torch.allclose(new, 0.97 * old + 0.03 * scores, atol=1e-6)
            assert not torch.allclose(new, scores, atol=1e-3)
        (averaged,) = state["averaged"]
        assert torch.equal(torch.stack(list(training.masks().values())), averaged > 0)

    def test_tells_what_it_has_measured_and_nothing_before(self) -> None:
        # 6 steps of survey, then a look at the validation images at every second step.
        training = training_of(120)
        told = [set(training.step(clear_images(BATCH, seed=number))) for number in range(8)]
        assert told == [*[set()] * 6, LEARNED, LEARNED | {"agreement", "forcing"}]

    def test_learns_where_no_image_validates(self) -> None:
        classifier, x = captured("decisive"), clear_images(64)
        others = x[classifier(x).argmax(1) > 1]
        settings = ClassPathwaySettings(steps=60)
        training = ClassPathwayTraining(classifier, [0, 1], Replacement(), settings, others, ProcessGroup(), 0)
        train(training, 60)
        assert all(bool(mask.any()) for mask in training.masks().values())

    def test_gives_one_mask_for_each_class_that_was_asked_for(self) -> None:
        training = training_of(classes=[1, 3])
        train(training, 3)
        masks = training.masks()
        assert list(masks) == [1, 3]
        assert {(mask.dtype, tuple(mask.shape)) for mask in masks.values()} == {(torch.bool, (16,))}

    @pytest.mark.parametrize("first", [0, 10])
    def test_survives_batches_without_an_image_of_its_classes(self, first: int) -> None:
        training = training_of(classes=[0, 1])
        train(training, first)
        predicted = torch.arange(BATCH) % CLASSES
        before = [importance.clone() for importance in training.state_dict()["importance"]]
        figures = training.step(clear_images(BATCH)[predicted > 1])
        assert all(torch.tensor(list(figures.values())).isfinite())
        after = training.state_dict()["importance"]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        train(training, 3, 20)
        assert all(bool(torch.isfinite(scores).all()) for scores in training.state_dict()["scores"])

    @pytest.mark.parametrize("name", ["plain", "transformer", "gated", "channels last"])
    @pytest.mark.parametrize("ablation", Ablation)
    @pytest.mark.parametrize("granularity", Granularity)
    def test_works_for_every_kind_of_tap_neuron_and_ablation(
        self, name: str, ablation: Ablation, granularity: Granularity
    ) -> None:
        training = training_of(6, ablation=ablation, name=name, granularity=granularity)
        for number in range(6):
            training.step(images(BATCH, number))
        neurons = {
            Granularity.CHANNEL: sum(tap.channels for tap in captured(name).taps),
            Granularity.UNIT: sum(tap.units for tap in captured(name).taps),
        }
        assert {len(mask) for mask in training.masks().values()} == {neurons[granularity]}

    def test_works_in_bfloat16(self) -> None:
        training = training_of(6, ablation=Ablation.OPTIMAL)
        training._classifier = captured("decisive").to(dtype=torch.bfloat16)
        train(training, 6)

    def test_leaves_the_global_random_numbers_alone(self) -> None:
        before = torch.get_rng_state()
        train(training_of(6), 6)
        assert torch.equal(torch.get_rng_state(), before)


class TestReplacements:
    def test_that_are_learned_differ_between_classes(self) -> None:
        replacement = trained(Ablation.OPTIMAL).replacement()
        assert replacement.rows == CLASSES
        (values,) = replacement.values
        for one in range(CLASSES):
            for other in range(one):
                assert not torch.allclose(values[one], values[other], atol=1e-3)

    def test_have_one_row_for_each_of_all_classes_and_their_beginning_for_those_without_a_pathway(self) -> None:
        training = training_of(100, classes=[1, 3], ablation=Ablation.OPTIMAL)
        (beginning,) = training.replacement().values
        train(training, 100)
        (values,) = training.replacement().values
        assert len(values) == CLASSES
        assert (values != beginning).any(1).tolist() == [False, True, False, True]
        assert not values.requires_grad

    @pytest.mark.parametrize("ablation", [Ablation.ZERO, Ablation.MEAN])
    def test_that_are_not_learned_stay_what_they_were(self, ablation: Ablation) -> None:
        training = training_of(6, ablation=ablation)
        before = training.replacement()
        train(training, 6)
        assert training.replacement() is before


class TestResuming:
    @pytest.mark.parametrize("ablation", [Ablation.ZERO, Ablation.OPTIMAL])
    # In the survey, at its end, between two looks at the validation images and before the last step.
    @pytest.mark.parametrize("stop", [1, 6, 70, 119])
    def test_gives_bitwise_what_an_uninterrupted_training_gives(self, stop: int, ablation: Ablation) -> None:
        whole, interrupted, resumed = (
            training_of(120, ablation=ablation, agreement=0.99, forcing=0.01) for _ in range(3)
        )
        train(whole, 120)
        train(interrupted, stop)
        resumed.load_state_dict(stored(interrupted))
        train(resumed, 120 - stop, stop)
        one, other = stored(whole), stored(resumed)
        # The search has had something to say, so that there is something to go on with.
        assert float(one["search"]["slack"].max()) < 1
        for name in ("scores", "constants", "averaged", "importance"):
            assert all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True)), name
        for name, value in one["search"].items():
            assert torch.equal(value, other["search"][name]), name

    def test_draws_other_images_for_another_seed(self) -> None:
        one, same, other = (training_of(seed=seed) for seed in (1, 1, 2))
        for training in (one, same, other):
            train(training, 30)
        assert torch.equal(stored(one)["scores"][0], stored(same)["scores"][0])
        assert not torch.equal(stored(one)["scores"][0], stored(other)["scores"][0])
