"""A fit with held-out images of their own: they test, and everything else builds."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pathlens.bundle.store import Bundle, save_bundle
from pathlens.classifier.images import ImageSource
from pathlens.errors import FitError
from pathlens.fitting.settings import FitSettings
from small_fits import COUNT, TRAINED, WAYS, Recorder, fitted, folder, inputs, npz
from small_networks import CLASSES, captured

OTHERS = 40

both_ways = pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    return npz(tmp_path / "images.npz")


@pytest.fixture
def others(tmp_path: Path) -> ImageSource:
    return npz(tmp_path / "others.npz", OTHERS, seed=1)


def predictions(source: ImageSource, positions: range) -> Tensor:
    return captured("decisive")(inputs(source, list(positions))).argmax(1)


@both_ways
def test_all_images_build(source: ImageSource, others: ImageSource, tmp_path: Path, settings: FitSettings) -> None:
    bundle = fitted(source, tmp_path / "u", settings, held_out_images=others)
    counts = torch.bincount(predictions(source, range(COUNT)), minlength=CLASSES)
    assert len(bundle.bank) > 1
    assert {label: known.images for label, known in bundle.bank.counts.items()} == {
        label: int(counts[label]) for label in bundle.bank.counts
    }
    assert (bundle.fit.images, bundle.fit.held_out_images, bundle.fit.skipped_images) == (COUNT, OTHERS, 0)


@both_ways
def test_the_held_out_images_test_and_build_nothing(
    source: ImageSource, others: ImageSource, tmp_path: Path, settings: FitSettings
) -> None:
    one = fitted(source, tmp_path / "one", settings, held_out_images=others, others=OTHERS)
    strange = npz(tmp_path / "strange.npz", OTHERS, seed=2)
    other = fitted(source, tmp_path / "other", settings, held_out_images=strange, others=OTHERS)
    classes = list(one.bank.counts)
    assert torch.equal(one.bank.transfer(classes).flat(), other.bank.transfer(classes).flat())
    if one.generator is not None and other.generator is not None:
        for parameter, same in zip(one.generator.parameters(), other.generator.parameters(), strict=True):
            assert torch.equal(parameter, same)
    for bundle, testing in ((one, others), (other, strange)):
        predicted = predictions(testing, range(OTHERS))
        for label, statistics in bundle.bank.statistics.items():
            members = int((predicted == label).sum())
            figures = statistics.stored.figures
            assert (figures.member_images, figures.other_images) == (members, OTHERS - members)


def classes_of_reference(bundle: Bundle) -> list[list[int]]:
    return [distribution.classes.tolist() for distribution in bundle.reference.values()]


def test_they_are_the_reference(source: ImageSource, others: ImageSource, tmp_path: Path) -> None:
    bundle = fitted(source, tmp_path / "u", held_out_images=others)
    assert classes_of_reference(bundle) == [predictions(others, range(OTHERS)).tolist()] * 2


def test_of_too_many_some_are_taken_evenly_spread(source: ImageSource, tmp_path: Path) -> None:
    many = npz(tmp_path / "many.npz", 100, seed=1)
    bundle = fitted(source, tmp_path / "u", held_out_images=many, largest_held_out=40)
    assert (bundle.fit.images, bundle.fit.held_out_images) == (COUNT, 34)
    assert classes_of_reference(bundle) == [predictions(many, range(0, 100, 3)).tolist()] * 2


def test_their_number_does_not_depend_on_that_of_the_others(source: ImageSource, tmp_path: Path) -> None:
    few = npz(tmp_path / "few.npz", 1, seed=1)
    assert fitted(source, tmp_path / "u", held_out_images=few).fit.held_out_images == 1


@both_ways
def test_the_same_seed_gives_the_same_bundle(
    source: ImageSource, others: ImageSource, tmp_path: Path, settings: FitSettings
) -> None:
    one, other = (
        save_bundle(fitted(source, tmp_path / f"{name}.unfinished", settings, held_out_images=others), tmp_path / name)
        for name in ("one", "other")
    )
    assert one == other


@both_ways
def test_unreadable_ones_are_skipped_counted_and_named_with_the_others(tmp_path: Path, settings: FitSettings) -> None:
    source, others = folder(tmp_path / "images", bad=[0, 7]), folder(tmp_path / "others", bad=[7, 8, 9])
    bundle = fitted(source, tmp_path / "u", settings, held_out_images=others)
    assert (bundle.fit.images, bundle.fit.held_out_images, bundle.fit.skipped_images) == (COUNT - 2, COUNT - 3, 5)
    assert [Path(line.split(":")[0]).name for line in others.skipped] == ["007.png", "008.png", "009.png"]


def test_without_a_readable_one_the_fit_ends(source: ImageSource, tmp_path: Path) -> None:
    broken = folder(tmp_path / "others", bad=[0, 1, 2], count=3)
    with pytest.raises(FitError, match=r"None of the 3 held-out images could be read: .*000\.png"):
        fitted(source, tmp_path / "u", held_out_images=broken)


def test_too_few_images_to_build_are_not_blamed_on_them(
    source: ImageSource, others: ImageSource, tmp_path: Path
) -> None:
    with pytest.raises(FitError, match=f"of {COUNT} given, 0 are held out for the test"):
        fitted(source, tmp_path / "u", held_out_images=others, minimum_images=COUNT)


def interrupt(source: ImageSource, others: ImageSource | None, unfinished: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fitted(source, unfinished, TRAINED, Recorder("Generator", 3), held_out_images=others)


def test_an_interrupted_fit_goes_on_to_the_bundle_of_an_uninterrupted_one(
    source: ImageSource, others: ImageSource, tmp_path: Path
) -> None:
    whole = save_bundle(fitted(source, tmp_path / "w", TRAINED, held_out_images=others), tmp_path / "whole")
    interrupt(source, others, tmp_path / "u")
    resumed = fitted(source, tmp_path / "u", TRAINED, held_out_images=others)
    assert save_bundle(resumed, tmp_path / "resumed") == whole


@pytest.mark.parametrize("instead", ["other ones", "a share of the images"])
def test_an_unfinished_fit_goes_on_with_no_others(
    instead: str, source: ImageSource, others: ImageSource, tmp_path: Path
) -> None:
    interrupt(source, others, tmp_path / "u")
    different = npz(tmp_path / "different.npz", OTHERS, seed=2) if instead == "other ones" else None
    with pytest.raises(FitError, match="unfinished fit with other settings, images"):
        fitted(source, tmp_path / "u", TRAINED, held_out_images=different)


def test_a_fit_that_held_out_a_share_does_not_go_on_with_images_of_their_own(
    source: ImageSource, others: ImageSource, tmp_path: Path
) -> None:
    interrupt(source, None, tmp_path / "u")
    with pytest.raises(FitError, match="unfinished fit with other settings, images"):
        fitted(source, tmp_path / "u", TRAINED, held_out_images=others)
