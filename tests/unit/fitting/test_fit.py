import dataclasses
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fixture_data import cifar, needs_fixtures
from pathlens.bundle.store import Bundle, save_bundle
from pathlens.classifier.capture import capture
from pathlens.classifier.images import ImageSource
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.errors import FitError
from pathlens.explanation import Granularity, PathwaySource
from pathlens.fitting.fit import FitSettings, fit
from pathlens.pathways.neuron_mct import neuron_mct
from real_captures import real
from small_networks import CLASSES, captured, images

PREPROCESSING = Preprocessing(8, 8, mean=(0.5,) * 3, std=(0.1,) * 3)
LABELS = tuple(f"class {label}" for label in range(CLASSES))
SETTINGS = FitSettings("tiny", minimum_images=3, others=8)
COUNT = 60


def npz(path: Path, count: int = COUNT) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    np.savez(path, images=pixels)
    return path


def inputs(source: ImageSource, positions: list[int]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(PREPROCESSING.apply(pixels)) for _, pixels in source.select(positions)])


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    return ImageSource(npz(tmp_path / "images.npz"))


def fitted(source: ImageSource, **changes: object) -> Bundle:
    settings = dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return fit(captured("decisive"), PREPROCESSING, LABELS, source, settings)


class TestTheBank:
    @pytest.mark.parametrize("granularity", Granularity)
    def test_counts_the_pathways_of_all_images_that_are_not_held_out(
        self, source: ImageSource, granularity: Granularity
    ) -> None:
        bundle = fitted(source, granularity=granularity)
        building = [position for position in range(COUNT) if position % 5]
        x = inputs(source, building)
        predicted = captured("decisive")(x).argmax(1)
        kept = neuron_mct(captured("decisive"), x, predicted, granularity).select(SETTINGS.sparsity).flat()
        assert len(bundle.bank) > 1
        for label, counts in bundle.bank.counts.items():
            assert counts.images == int((predicted == label).sum())
            assert counts.kept.tolist() == kept[predicted == label].sum(0).tolist()

    def test_held_out_images_build_nothing(self, tmp_path: Path, source: ImageSource) -> None:
        pixels = np.stack([image for _, image in source])
        pixels[::5] = 255 - pixels[::5]
        np.savez(tmp_path / "changed.npz", images=pixels)
        one, other = fitted(source), fitted(ImageSource(tmp_path / "changed.npz"))
        assert one.bank.counts.keys() == other.bank.counts.keys()
        for label, counts in one.bank.counts.items():
            assert torch.equal(counts.kept, other.bank.counts[label].kept)
        assert one.bank.statistics != other.bank.statistics

    def test_held_out_images_beyond_the_limit_build_pathways(self, source: ImageSource) -> None:
        limited = fitted(source, largest_held_out=2)
        assert (limited.fit.held_out_images, limited.fit.images) == (2, COUNT - 2)

    def test_has_no_pathway_of_a_class_with_too_few_images(self, source: ImageSource) -> None:
        counts = {label: total.images for label, total in fitted(source, minimum_images=1).bank.counts.items()}
        most = max(counts.values())
        kept = fitted(source, minimum_images=most).bank
        assert set(kept.counts) == {label for label, count in counts.items() if count == most} != set(counts)

    def test_does_not_depend_on_the_size_of_batches(self, source: ImageSource) -> None:
        one, other = fitted(source, batch_size=7), fitted(source, batch_size=64)
        for label, counts in one.bank.counts.items():
            assert torch.equal(counts.kept, other.bank.counts[label].kept)

    def test_says_how_it_was_fitted(self, source: ImageSource) -> None:
        bundle = fitted(source, sparsity=0.6, threshold=0.4, seed=9)
        assert (bundle.fit.images, bundle.fit.held_out_images, bundle.fit.skipped_images) == (48, 12, 0)
        assert (bundle.instance_sparsity, bundle.bank.threshold, bundle.fit.seed) == (0.6, 0.4, 9)
        assert (bundle.name, bundle.labels, bundle.source) == ("tiny", LABELS, PathwaySource.NEURON_MCT)


class TestStatistics:
    def test_come_from_the_held_out_images(self, source: ImageSource) -> None:
        bundle = fitted(source, others=COUNT)
        predicted = captured("decisive")(inputs(source, list(range(0, COUNT, 5)))).argmax(1)
        for label, statistics in bundle.bank.statistics.items():
            members = int((predicted == label).sum())
            for figures in (statistics.figures, statistics.random_control):
                assert (figures.member_images, figures.other_images) == (members, len(predicted) - members)

    def test_use_at_most_so_many_images_of_other_classes(self, source: ImageSource) -> None:
        for statistics in fitted(source, others=3).bank.statistics.values():
            assert statistics.figures.other_images <= 3

    def test_hold_the_mean_overlap_with_the_pathways_of_held_out_members(self, source: ImageSource) -> None:
        bundle = fitted(source)
        x = inputs(source, list(range(0, COUNT, 5)))
        predicted = captured("decisive")(x).argmax(1)
        pathway = neuron_mct(captured("decisive"), x, predicted, "channel").select(SETTINGS.sparsity)
        for label, statistics in bundle.bank.statistics.items():
            members = (predicted == label).nonzero()[:, 0]
            overlap = pathway[members].iou(bundle.bank.transfer([label])).mean() if len(members) else None
            expected = None if overlap is None else pytest.approx(float(overlap))
            assert statistics.mean_instance_iou == expected

    def test_hold_the_mean_sparsity_of_the_instance_pathways(self, source: ImageSource) -> None:
        for statistics in fitted(source).bank.statistics.values():
            # Fewer neurons than asked for are kept where fewer contribute.
            assert SETTINGS.sparsity - 0.05 < statistics.mean_instance_sparsity < 1


class TestRepeating:
    def test_with_the_same_seed_gives_the_same_bundle(self, source: ImageSource, tmp_path: Path) -> None:
        one, other = (save_bundle(fitted(source), tmp_path / name) for name in ("one", "other"))
        assert one == other

    def test_with_another_seed_gives_the_same_pathways_and_another_control(self, source: ImageSource) -> None:
        one, other = fitted(source, seed=0), fitted(source, seed=1)
        assert torch.equal(
            one.bank.transfer(list(one.bank.counts)).flat(), other.bank.transfer(list(one.bank.counts)).flat()
        )
        controls = [[s.random_control for s in bundle.bank.statistics.values()] for bundle in (one, other)]
        assert controls[0] != controls[1]

    def test_after_unreadable_images_gives_the_same_bundle(self, tmp_path: Path) -> None:
        source = folder(tmp_path / "images", bad=[7])
        one, other = (save_bundle(fitted(source), tmp_path / name) for name in ("one", "other"))
        assert one == other


def folder(path: Path, bad: list[int], count: int = COUNT) -> ImageSource:
    from PIL import Image

    path.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    for position in range(count):
        file = path / f"{position:03}.png"
        if position in bad:
            file.write_bytes(b"not an image")
        else:
            Image.fromarray(pixels[position]).save(file)
    return ImageSource(path)


class TestUnreadableImages:
    def test_are_skipped_counted_and_named(self, tmp_path: Path) -> None:
        source = folder(tmp_path / "images", bad=[0, 7, 8])
        bundle = fitted(source)
        assert bundle.fit.skipped_images == 3
        assert [Path(line.split(":")[0]).name for line in sorted(source.skipped)] == ["000.png", "007.png", "008.png"]

    def test_when_all_held_out_ones_are_unreadable_fitting_says_so(self, tmp_path: Path) -> None:
        source = folder(tmp_path / "images", bad=list(range(0, COUNT, 5)))
        with pytest.raises(FitError, match=r"None of the 12 held-out images could be read: .*000\.png"):
            fitted(source)

    def test_when_all_are_unreadable_fitting_says_so(self, tmp_path: Path) -> None:
        source = folder(tmp_path / "images", bad=list(range(6)), count=6)
        with pytest.raises(FitError, match="of 6 given, 2 are held out for the test, 4 could not be read"):
            fitted(source)


class TestRefusals:
    def test_labels_that_do_not_fit_the_classes(self, source: ImageSource) -> None:
        with pytest.raises(FitError, match="3 labels were given for 4 classes"):
            fit(captured("decisive"), PREPROCESSING, LABELS[:3], source, SETTINGS)

    def test_too_few_images_of_every_class(self, source: ImageSource) -> None:
        with pytest.raises(FitError, match=f"No class has {COUNT} images.*--minimum-images"):
            fitted(source, minimum_images=COUNT)

    def test_a_single_image(self, tmp_path: Path) -> None:
        with pytest.raises(FitError, match="of 1 given, 1 are held out"):
            fitted(ImageSource(npz(tmp_path / "one.npz", count=1)), minimum_images=1)

    def test_a_classifier_whose_output_is_not_finite_for_an_image(self, source: ImageSource) -> None:
        class Overflows(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.relu(x).mean((2, 3)) / (x.abs().amax((1, 2, 3)) < 4.8)[:, None]

        classifier = capture(Overflows(), images(2).clamp(-1, 1))
        with pytest.raises(FitError, match="not finite"):
            fit(classifier, PREPROCESSING, LABELS[:3], source, SETTINGS)


class TestProgress:
    def test_is_reported_for_every_image_and_class(self, source: ImageSource) -> None:
        seen: dict[str, tuple[int, int]] = {}

        def report(positions: object, description: str, total: int) -> Iterator[int]:
            count = 0
            for count, position in enumerate(positions, 1):  # type: ignore[arg-type, var-annotated]  # noqa: B007
                yield position
            seen[description] = (count, total)

        bundle = fit(captured("decisive"), PREPROCESSING, LABELS, source, SETTINGS, report)
        classes = len(bundle.bank)
        assert seen == {
            "Instance pathways": (48, 48),
            "Held-out images": (12, 12),
            "Testing class pathways": (classes, classes),
        }


@needs_fixtures
def test_a_real_network_on_real_images_gives_pathways_that_beat_chance(tmp_path: Path) -> None:
    np.savez(tmp_path / "cifar.npz", images=cifar("train")[0][::40])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    started, classifier = time.monotonic(), real("cifar_resnet20")
    bundle = fit(
        classifier,
        Preprocessing(32, 32, mean=mean, std=std),
        tuple(map(str, range(10))),
        ImageSource(tmp_path / "cifar.npz"),
        FitSettings("cifar", sparsity=0.7, threshold=0.6, others=16),
    )
    assert len(bundle.bank) == 10
    statistics = bundle.bank.statistics.values()
    agreement, control = (
        np.mean([getattr(each, kind).agreement for each in statistics]) for kind in ("figures", "random_control")
    )
    assert agreement > control + 0.3
    assert time.monotonic() - started < 60


def test_a_limited_number_of_held_out_images_is_spread_over_all_images(tmp_path: Path) -> None:
    # Sorted by what is seen, as class folders are: the first half dark, the second half bright.
    pixels = np.random.default_rng(0).integers(0, 100, (120, 8, 8, 3), dtype=np.uint8)
    pixels[60:] += 150
    np.savez(tmp_path / "sorted.npz", images=pixels)
    asked: list[list[int]] = []

    def note(positions: Iterable[int], description: str, _total: int) -> Iterable[int]:
        if description == "Held-out images":
            asked.append(list(positions))
        return positions

    settings = dataclasses.replace(SETTINGS, largest_held_out=6, minimum_images=1)
    fit(captured("decisive"), PREPROCESSING, LABELS, ImageSource(tmp_path / "sorted.npz"), settings, note)
    assert asked == [[0, 20, 40, 60, 80, 100]]
