import dataclasses
import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fixture_data import cifar, needs_fixtures
from pathlens.bundle.store import Bundle, load_bundle, save_bundle
from pathlens.classifier.capture import capture
from pathlens.classifier.images import ImageSource
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.description import ClassPathwaySelection
from pathlens.errors import FitError
from pathlens.explanation import Ablation, ExplanationOptions, Granularity, PathwaySource
from pathlens.fitting import fit as module
from pathlens.fitting.fit import fit
from pathlens.fitting.progress import Silence
from pathlens.fitting.settings import FitSettings
from pathlens.fitting.subject import FitSubject
from pathlens.generator.class_pathways import ClassPathwayTraining
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway
from pathlens.pathways.reference import Statistic, measure
from real_captures import real
from small_fits import (
    BY_FREQUENCY,
    COUNT,
    TRAINED,
    WAYS,
    Recorder,
    fitted,
    folder,
    inputs,
    npz,
    subject_of,
)
from small_networks import CLASSES, captured, images

HELD_OUT = list(range(0, COUNT, 5))
BUILDING = [position for position in range(COUNT) if position % 5]

both_ways = pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    return npz(tmp_path / "images.npz")


def instance_pathways(bundle: Bundle, x: torch.Tensor) -> tuple[torch.Tensor, Pathway]:
    """The predictions of images, and their pathways from where the bundle takes them."""
    classifier, granularity = captured("decisive"), bundle.bank.granularity
    whole = classifier.observe(x)
    logits, activations = whole.logits, whole.activations
    predicted = logits.argmax(1)
    if bundle.generator is not None:
        return predicted, bundle.generator.pathways(activations, bundle.bank.replacement_of(predicted))
    return predicted, neuron_mct(classifier, x, predicted, granularity).select(bundle.instance_sparsity)


class TestTheBank:
    @pytest.mark.parametrize("granularity", Granularity)
    @both_ways
    def test_counts_the_pathways_of_all_images_that_are_not_held_out(
        self, source: ImageSource, tmp_path: Path, settings: FitSettings, granularity: Granularity
    ) -> None:
        bundle = fitted(source, tmp_path / "u", settings, granularity=granularity)
        predicted, pathway = instance_pathways(bundle, inputs(source, BUILDING))
        assert len(bundle.bank) > 1
        for label, counts in bundle.bank.counts.items():
            assert counts.images == int((predicted == label).sum())
            assert counts.kept.tolist() == pathway.flat()[predicted == label].sum(0).tolist()

    @both_ways
    def test_is_built_without_held_out_images(self, tmp_path: Path, source: ImageSource, settings: FitSettings) -> None:
        pixels = np.stack([image for _, image in source])
        pixels[::5] = 255 - pixels[::5]
        np.savez(tmp_path / "changed.npz", images=pixels)
        one, other = (
            fitted(images, tmp_path / name, settings)
            for name, images in (("one", source), ("other", ImageSource(tmp_path / "changed.npz")))
        )
        classes = list(one.bank.counts)
        assert classes == list(other.bank.counts)
        for label, counts in one.bank.counts.items():
            assert torch.equal(counts.kept, other.bank.counts[label].kept)
        assert torch.equal(one.bank.transfer(classes).flat(), other.bank.transfer(classes).flat())
        assert one.bank.statistics != other.bank.statistics

    def test_has_images_beyond_the_limit_of_held_out_ones(self, source: ImageSource, tmp_path: Path) -> None:
        limited = fitted(source, tmp_path / "u", largest_held_out=2)
        assert (limited.fit.held_out_images, limited.fit.images) == (2, COUNT - 2)

    @both_ways
    def test_has_no_pathway_of_a_class_with_too_few_images_and_says_how_many_there_were(
        self, source: ImageSource, tmp_path: Path, settings: FitSettings
    ) -> None:
        predicted = captured("decisive")(inputs(source, BUILDING)).argmax(1)
        counts = torch.bincount(predicted, minlength=CLASSES).tolist()
        second = sorted(counts)[-2]
        bank = fitted(source, tmp_path / "u", settings, minimum_images=second).bank
        few = {label: count for label, count in enumerate(counts) if count < second}
        assert few
        assert set(bank.counts) == set(range(CLASSES)) - set(few)
        assert bank.too_few == few
        assert set(bank.masks) <= set(bank.counts)

    @both_ways
    def test_does_not_depend_on_the_size_of_batches_that_train_nothing(
        self, source: ImageSource, tmp_path: Path, settings: FitSettings
    ) -> None:
        one, other = (fitted(source, tmp_path / str(size), settings, batch_size=size) for size in (7, 64))
        for label, counts in one.bank.counts.items():
            # Sums over other batches round scales and means otherwise, by which a score at the boundary may move.
            difference = (counts.kept - other.bank.counts[label].kept).abs().sum()
            assert int(difference) <= (0 if settings is BY_FREQUENCY else 2)

    @both_ways
    def test_says_how_it_was_fitted(self, source: ImageSource, tmp_path: Path, settings: FitSettings) -> None:
        bundle = fitted(source, tmp_path / "u", settings, seed=7)
        assert (bundle.name, bundle.fit.seed, bundle.source) == ("tiny", 7, settings.source)
        assert (bundle.fit.images, bundle.fit.held_out_images, bundle.fit.skipped_images) == (48, 12, 0)
        assert bundle.fit.settings == dict(dataclasses.replace(settings, seed=7).to_json())

    @pytest.mark.parametrize(
        ("settings", "ablation"),
        [*((TRAINED, ablation) for ablation in Ablation), (BY_FREQUENCY, Ablation.ZERO), (BY_FREQUENCY, Ablation.MEAN)],
    )
    def test_holds_what_stands_in_for_removed_neurons(
        self, source: ImageSource, tmp_path: Path, settings: FitSettings, ablation: Ablation
    ) -> None:
        bundle = fitted(source, tmp_path / "u", settings, ablation=ablation)
        assert bundle.bank.replacement.ablation is ablation
        activation = captured("decisive").observe(inputs(source, BUILDING)).activations[0]
        if ablation is Ablation.MEAN:
            assert torch.allclose(bundle.bank.replacement.values[0], activation.mean(0, keepdim=True), atol=1e-5)
        if ablation is Ablation.OPTIMAL:
            assert bundle.bank.replacement.rows == CLASSES


class TestATrainedBundle:
    def test_has_a_generator_and_one_trained_mask_for_each_class(self, source: ImageSource, tmp_path: Path) -> None:
        bundle = fitted(source, tmp_path / "u", TRAINED)
        assert bundle.generator is not None
        assert not any(parameter.requires_grad for parameter in bundle.generator.parameters())
        assert set(bundle.bank.masks) == set(bundle.bank.counts)
        for statistics in bundle.bank.statistics.values():
            assert statistics.selection is ClassPathwaySelection.TWO_SIDED
            assert statistics.source is PathwaySource.GENERATED

    def test_by_frequency_has_neither(self, source: ImageSource, tmp_path: Path) -> None:
        bundle = fitted(source, tmp_path / "u", BY_FREQUENCY)
        assert bundle.generator is None
        assert bundle.bank.masks == {}
        for statistics in bundle.bank.statistics.values():
            assert statistics.selection is ClassPathwaySelection.FREQUENCY
            assert statistics.stored == statistics.by_frequency

    def test_may_have_either_alone(self, source: ImageSource, tmp_path: Path) -> None:
        by_frequency = dataclasses.replace(TRAINED, selection=ClassPathwaySelection.FREQUENCY)
        by_contribution = dataclasses.replace(TRAINED, source=PathwaySource.NEURON_MCT)
        generator_alone = fitted(source, tmp_path / "one", by_frequency)
        masks_alone = fitted(source, tmp_path / "other", by_contribution)
        assert (generator_alone.generator is None, bool(generator_alone.bank.masks)) == (False, False)
        assert (masks_alone.generator is None, bool(masks_alone.bank.masks)) == (True, True)

    @both_ways
    def test_is_the_same_once_it_is_stored_and_loaded(
        self, source: ImageSource, tmp_path: Path, settings: FitSettings
    ) -> None:
        bundle = fitted(source, tmp_path / "u", settings, ablation=Ablation.MEAN)
        save_bundle(bundle, tmp_path / "tiny")
        loaded = load_bundle(tmp_path / "tiny")
        classes = list(bundle.bank.counts)
        assert torch.equal(loaded.bank.transfer(classes).flat(), bundle.bank.transfer(classes).flat())
        assert loaded.bank.statistics == bundle.bank.statistics
        x = inputs(source, HELD_OUT)
        assert torch.equal(instance_pathways(loaded, x)[1].flat(), instance_pathways(bundle, x)[1].flat())

    def test_may_be_trained_in_bfloat16(self, source: ImageSource, tmp_path: Path) -> None:
        assert len(fitted(source, tmp_path / "u", TRAINED, precision="bfloat16").bank) > 1


class TestStatistics:
    @both_ways
    def test_come_from_the_held_out_images(self, source: ImageSource, tmp_path: Path, settings: FitSettings) -> None:
        bundle = fitted(source, tmp_path / "u", settings, others=COUNT)
        predicted = captured("decisive")(inputs(source, HELD_OUT)).argmax(1)
        for label, statistics in bundle.bank.statistics.items():
            members = int((predicted == label).sum())
            for mask in (statistics.stored, statistics.by_frequency):
                for figures in (mask.figures, mask.random_control):
                    assert (figures.member_images, figures.other_images) == (members, len(predicted) - members)

    def test_use_at_most_so_many_images_of_other_classes(self, source: ImageSource, tmp_path: Path) -> None:
        for statistics in fitted(source, tmp_path / "u", others=3).bank.statistics.values():
            assert statistics.stored.figures.other_images <= 3

    @both_ways
    def test_hold_the_mean_overlaps_of_the_pathways_of_held_out_images(
        self, source: ImageSource, tmp_path: Path, settings: FitSettings
    ) -> None:
        bundle = fitted(source, tmp_path / "u", settings)
        predicted, pathway = instance_pathways(bundle, inputs(source, HELD_OUT))
        for label, statistics in bundle.bank.statistics.items():
            own = (predicted == label).nonzero()[:, 0].tolist()
            overlap = pathway[own].iou(bundle.bank.transfer([label])).mean() if own else None
            assert statistics.mean_instance_iou == (None if overlap is None else pytest.approx(float(overlap)))
            pairs = [float(pathway[[a]].iou(pathway[[b]])) for a in own for b in own if a != b]
            assert statistics.within_class_iou == (pytest.approx(np.mean(pairs)) if pairs else None)

    @both_ways
    def test_hold_the_mean_sparsity_of_the_instance_pathways(
        self, source: ImageSource, tmp_path: Path, settings: FitSettings
    ) -> None:
        bundle = fitted(source, tmp_path / "u", settings)
        predicted, pathway = instance_pathways(bundle, inputs(source, BUILDING))
        for label, statistics in bundle.bank.statistics.items():
            expected = float(pathway.sparsity[predicted == label].mean())
            assert statistics.mean_instance_sparsity == pytest.approx(expected)


class TestReference:
    """What explanations of held-out images look like."""

    @both_ways
    def test_holds_what_the_served_explainer_says_of_the_held_out_images(
        self, tmp_path: Path, settings: FitSettings
    ) -> None:
        source = npz(tmp_path / "images.npz", 200)
        bundle = fitted(source, tmp_path / "u", settings)
        assert set(bundle.reference) == {PathwaySource.TRANSFERRED, settings.source}
        save_bundle(bundle, tmp_path / "bundle")
        explainer = load_bundle(tmp_path / "bundle").explainer()
        held_out = [image.numpy() for image in inputs(source, list(range(0, 200, 5)))]
        for source_of_pathways, distribution in bundle.reference.items():
            results = explainer.explain(held_out, ExplanationOptions(source=source_of_pathways))
            explanations = [result.explanations[0] for result in results]
            assert distribution.classes.tolist() == [one.target.class_index for one in explanations]
            for statistic, values in distribution.values.items():
                expected = [measure(one).get(statistic, np.nan) for one in explanations]
                np.testing.assert_allclose(values, expected, atol=2e-4)

    def test_holds_all_held_out_images_also_where_fewer_test_the_bank(self, tmp_path: Path) -> None:
        bundle = fitted(npz(tmp_path / "images.npz", 200), tmp_path / "u", largest_tested=8)
        assert bundle.fit.held_out_images == 40
        assert [len(distribution.classes) for distribution in bundle.reference.values()] == [40, 40]
        for statistics in bundle.bank.statistics.values():
            figures = statistics.stored.figures
            assert figures.member_images + figures.other_images == 8

    def test_leaves_out_images_of_classes_without_a_pathway(self, tmp_path: Path) -> None:
        source = npz(tmp_path / "images.npz", 400)
        bundle = fitted(source, tmp_path / "u", minimum_images=70)
        missing = set(bundle.bank.too_few)
        assert missing
        transferred, selected = (bundle.reference[one] for one in (PathwaySource.TRANSFERRED, bundle.source))
        assert not missing & set(transferred.classes.tolist())
        without = np.isin(selected.classes, list(missing))
        assert without.any()
        np.testing.assert_array_equal(np.isnan(selected.values[Statistic.CLASS_PATHWAY_IOU]), without)

    def test_is_empty_of_too_few_held_out_images(self, source: ImageSource, tmp_path: Path) -> None:
        assert fitted(source, tmp_path / "u").reference == {}


class TestRepeating:
    @both_ways
    def test_with_the_same_seed_gives_the_same_bundle(
        self, source: ImageSource, tmp_path: Path, settings: FitSettings
    ) -> None:
        one, other = (
            save_bundle(fitted(source, tmp_path / f"{name}.unfinished", settings), tmp_path / name)
            for name in ("one", "other")
        )
        assert one == other

    def test_with_another_seed_gives_the_same_pathways_by_frequency_and_another_control(
        self, source: ImageSource, tmp_path: Path
    ) -> None:
        one, other = (fitted(source, tmp_path / str(seed), seed=seed) for seed in (0, 1))
        classes = list(one.bank.counts)
        assert torch.equal(one.bank.transfer(classes).flat(), other.bank.transfer(classes).flat())
        controls = [[known.stored.random_control for known in b.bank.statistics.values()] for b in (one, other)]
        assert controls[0] != controls[1]


class TestUnreadableImages:
    @both_ways
    def test_are_skipped_counted_and_named(self, tmp_path: Path, settings: FitSettings) -> None:
        source = folder(tmp_path / "images", bad=[0, 7, 8])
        bundle = fitted(source, tmp_path / "u", settings)
        assert bundle.fit.skipped_images == 3
        assert (bundle.fit.images, bundle.fit.held_out_images) == (46, 11)
        assert [Path(line.split(":")[0]).name for line in sorted(source.skipped)] == ["000.png", "007.png", "008.png"]

    def test_that_are_all_held_out_ones_end_the_fit(self, tmp_path: Path) -> None:
        source = folder(tmp_path / "images", bad=HELD_OUT)
        with pytest.raises(FitError, match=r"None of the 12 held-out images could be read: .*000\.png"):
            fitted(source, tmp_path / "u")

    @both_ways
    def test_that_are_all_images_end_the_fit(self, tmp_path: Path, settings: FitSettings) -> None:
        source = folder(tmp_path / "images", bad=list(range(6)), count=6)
        with pytest.raises(FitError, match="of 6 given, 2 are held out for the test, 4 could not be read"):
            fitted(source, tmp_path / "u", settings)


class TestRefusals:
    def test_labels_that_do_not_fit_the_classes(self, source: ImageSource, tmp_path: Path) -> None:
        subject = dataclasses.replace(subject_of(source), labels=("a", "b", "c"))
        with pytest.raises(FitError, match="3 labels were given for 4 classes"):
            fit(subject, BY_FREQUENCY, tmp_path / "u")
        assert not (tmp_path / "u").exists()

    @both_ways
    def test_too_few_images_of_every_class(self, source: ImageSource, tmp_path: Path, settings: FitSettings) -> None:
        with pytest.raises(FitError, match=f"No classes of 4 got {COUNT} images.*--minimum-images"):
            fitted(source, tmp_path / "u", settings, minimum_images=COUNT)

    def test_two_sided_pathways_of_a_single_class(self, source: ImageSource, tmp_path: Path) -> None:
        predicted = captured("decisive")(inputs(source, BUILDING)).argmax(1)
        most = int(torch.bincount(predicted).max())
        with pytest.raises(FitError, match=f"1 class of 4 got {most} images, and 2 must"):
            fitted(source, tmp_path / "two-sided", TRAINED, minimum_images=most)
        # By what its own images have in common, a single class has a pathway.
        assert len(fitted(source, tmp_path / "frequency", minimum_images=most).bank) == 1

    def test_a_single_image(self, tmp_path: Path) -> None:
        with pytest.raises(FitError, match="of 1 given, 1 are held out"):
            fitted(npz(tmp_path / "one.npz", count=1), tmp_path / "u", minimum_images=1)

    def test_a_classifier_whose_output_is_not_finite_for_an_image(self, source: ImageSource, tmp_path: Path) -> None:
        class Overflows(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.relu(x).mean((2, 3)) / (x.abs().amax((1, 2, 3)) < 4.8)[:, None]

        classifier = capture(Overflows(), images(2).clamp(-1, 1))
        with pytest.raises(FitError, match="not finite"):
            fit(subject_of(source, classifier), BY_FREQUENCY, tmp_path / "u")

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"held_out": 0.0}, "held_out is 0.0"),
            ({"validation": 0.6}, "validation is 0.6"),
            ({"precision": "half"}, "precision is half"),
            ({"agreement": 1.0}, "agreement is 1.0"),
            ({"class_forcing": 0.0}, "class_forcing is 0.0"),
            (
                {"ablation": Ablation.OPTIMAL, "selection": ClassPathwaySelection.FREQUENCY},
                "learned with two-sided class pathways alone",
            ),
        ],
    )
    def test_settings_that_mean_nothing(self, changes: dict[str, object], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(FitSettings("x"), **changes)  # type: ignore[arg-type]

    def test_a_source_that_no_bundle_is_fitted_with(self) -> None:
        with pytest.raises(ValueError, match="source is TRANSFERRED; expected GENERATED or NEURON_MCT"):
            FitSettings("tiny", source=PathwaySource.TRANSFERRED)


class TestProgress:
    def test_is_shown_for_every_image_and_class(self, source: ImageSource, tmp_path: Path) -> None:
        recorder = Recorder()
        bundle = fitted(source, tmp_path / "u", progress=recorder)
        classes = len(bundle.bank)
        assert recorder.seen == {
            "Survey": (48, 48),
            "Instance pathways": (48, 48),
            "Held-out images": (12, 12),
            "Testing class pathways": (classes, classes),
            "Reference explanations": (12, 12),
        }

    def test_of_trainings_is_shown_for_every_step_with_its_figures(self, source: ImageSource, tmp_path: Path) -> None:
        recorder = Recorder()
        fitted(source, tmp_path / "u", TRAINED, progress=recorder)
        assert recorder.seen["Class pathways"] == recorder.seen["Generator"] == (30, 30)
        assert set(recorder.figures["Class pathways"]) == {"loss", "agreement", "forcing", "sparsity"}
        assert set(recorder.figures["Generator"]) == {"loss", "agreement", "sparsity"}


@needs_fixtures
def test_a_real_network_on_real_images_gives_pathways_that_beat_chance(tmp_path: Path) -> None:
    np.savez(tmp_path / "cifar.npz", images=cifar("train")[0][::40])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    classifier = real("cifar_resnet20")
    subject = FitSubject(
        classifier,
        Preprocessing(32, 32, mean=mean, std=std),
        tuple(map(str, range(10))),
        ImageSource(tmp_path / "cifar.npz"),
    )
    settings = dataclasses.replace(BY_FREQUENCY, sparsity=0.7, threshold=0.6, others=16, minimum_images=5)
    bundle = fit(subject, settings, tmp_path / "u")
    assert bundle is not None
    assert len(bundle.bank) == 10
    agreement, control = (
        np.mean([getattr(known.stored, kind).agreement for known in bundle.bank.statistics.values()])
        for kind in ("figures", "random_control")
    )
    assert agreement > control + 0.3


def test_a_limited_number_of_held_out_images_is_spread_over_all_images(tmp_path: Path) -> None:
    # Sorted by what is seen, as class folders are; every twentieth image is unlike the others.
    pixels = np.random.default_rng(0).integers(0, 100, (120, 8, 8, 3), dtype=np.uint8)
    pixels[60:] += 150
    np.savez(tmp_path / "sorted.npz", images=pixels)
    source = ImageSource(tmp_path / "sorted.npz")
    bundle = fitted(source, tmp_path / "u", largest_held_out=6, minimum_images=1)
    assert bundle.fit.held_out_images == 6
    held_out = [0, 20, 40, 60, 80, 100]
    predicted = captured("decisive")(inputs(source, held_out)).argmax(1)
    for label, statistics in bundle.bank.statistics.items():
        assert statistics.stored.figures.member_images == int((predicted == label).sum())
    building = [position for position in range(120) if position not in held_out]
    counted = torch.bincount(captured("decisive")(inputs(source, building)).argmax(1), minlength=CLASSES)
    assert {label: total.images for label, total in bundle.bank.counts.items()} == {
        label: count for label, count in enumerate(counted.tolist()) if count
    }


def test_masks_are_validated_by_images_that_do_not_train_them(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, validating = set[bytes](), list[bytes]()

    class Spied(ClassPathwayTraining):
        def __init__(self, *given: Any) -> None:
            validating.extend(image.numpy().tobytes() for image in given[4])
            super().__init__(*given)

        def step(self, images: torch.Tensor) -> Mapping[str, float]:
            training.update(image.numpy().tobytes() for image in images)
            return super().step(images)

    monkeypatch.setattr(module, "ClassPathwayTraining", Spied)
    fitted(source, tmp_path / "u", TRAINED)
    assert len(validating) == len(BUILDING) // 10
    assert len(training) == len(BUILDING) - len(validating)
    assert training.isdisjoint(validating)


def test_a_killed_reader_ends_the_fit_wherever_it_is(source: ImageSource, tmp_path: Path) -> None:
    class Killing(Silence):
        def advance(self, _count: int, _figures: Mapping[str, float] | None = None) -> None:
            for reader in multiprocessing.active_children():
                reader.kill()
                # The system reports it here, and not where an image is awaited.
                reader.join()

    subject = dataclasses.replace(subject_of(source), workers=1)
    with pytest.raises(FitError, match=r"was killed; is memory short\? Lower --workers"):
        fit(subject, TRAINED, tmp_path / "u", Killing())
