"""The cache cuts slices when they are asked for and keeps to its limit, whatever cutting does."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pathlens.attribution.pathway_gradient import run_pathway
from pathlens.classifier.captured import CapturedClassifier
from pathlens.pathways.bank import ClassCounts, ClassPathwayBank
from pathlens.pathways.pathway import Pathway
from pathlens.slicing import cache as module
from pathlens.slicing.cache import DEFAULT_BYTES, SliceCache
from pathlens.slicing.not_sliceable import NotSliceable
from pathlens.slicing.slice import Slice
from tiny_bundle import WITHOUT_PATHWAY, tensor, tiny_bundle

CLASSIFIER, BANK = tiny_bundle().classifier, tiny_bundle().bank
LABELS = tuple(BANK.counts)
IMAGES = torch.from_numpy(np.stack([tensor(seed) for seed in range(3)]))
Cut = Callable[[CapturedClassifier, Pathway], Slice]


def cache(
    limit_bytes: int = DEFAULT_BYTES, most_work: float = 1.0, bank: ClassPathwayBank = BANK, cost_of_call: float = 0.0
) -> SliceCache:
    return SliceCache(CLASSIFIER, bank, limit_bytes, most_work, cost_of_call)


def size(label: int) -> int:
    found = cache().get(label)
    assert found is not None
    return found.bytes


def kept(slices: SliceCache) -> set[int]:
    return {label for label in LABELS if label in slices}


def is_pathway_of(label: int, pathway: Pathway) -> bool:
    return bool((pathway.flat() == BANK.transfer([label]).flat()).all())


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The classes that are cut, in order."""
    classes: list[int] = []
    cut: Cut = vars(module)["cut"]

    def noted(classifier: CapturedClassifier, pathway: Pathway) -> Slice:
        classes.append(next(label for label in LABELS if is_pathway_of(label, pathway)))
        return cut(classifier, pathway)

    monkeypatch.setattr(module, "cut", noted)
    return classes


@pytest.fixture
def without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut again as soon as there is no room, as long as tests want to see what goes for it."""
    monkeypatch.setattr(module, "_ASKS_BETWEEN_CUTS", 0)


@pytest.mark.parametrize("label", LABELS)
def test_a_slice_is_that_of_the_class(label: int) -> None:
    found, target = cache().get(label), torch.full((3,), label)
    assert found is not None
    expected = run_pathway(CLASSIFIER, IMAGES, target, BANK.transfer([label] * 3))
    run = found.run(IMAGES, target)
    torch.testing.assert_close(run.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run.gradient, expected.gradient, rtol=1e-4, atol=1e-4)


def test_a_class_is_cut_once(cuts: list[int]) -> None:
    slices = cache()
    assert slices.get(1) is slices.get(1)
    assert cuts == [1]


def test_of_several_classes_only_the_first_without_a_slice_is_cut(cuts: list[int]) -> None:
    slices = cache()
    found = [set(slices.get_all({2: 1, 0: 1, 1: 1})) for _ in range(4)]
    assert found == [{2}, {2, 0}, {2, 0, 1}, {2, 0, 1}]
    assert cuts == [2, 0, 1]


class TestWhatIsWorthARunOfItsOwn:
    """A few images among many others may be done sooner with them."""

    def test_is_every_batch_of_one_class(self) -> None:
        assert set(cache(cost_of_call=1e12).get_all({0: 1})) == {0}

    def test_is_nothing_among_others_where_calls_take_longer_than_computing(self) -> None:
        assert cache(cost_of_call=1e12).get_all({0: 100, 1: 1}) == {}

    def test_is_what_costs_less_than_its_images_among_others(self) -> None:
        part = cache().get(0)
        assert part is not None
        saved = 8 - part.cost(8, 0)
        assert saved > 0
        balanced = saved * part.operations / len(part.network.program.calls)
        assert set(cache(cost_of_call=0.99 * balanced).get_all({0: 8, 1: 1})) == {0}
        assert cache(cost_of_call=1.01 * balanced).get_all({0: 8, 1: 1}) == {}


def test_a_limit_of_zero_cuts_nothing(cuts: list[int]) -> None:
    slices = cache(0)
    slices.warm(60)
    assert slices.get_all(dict.fromkeys(LABELS, 1)) == {}
    assert cuts == []


def test_a_class_without_a_stored_pathway_has_no_slice(caplog: pytest.LogCaptureFixture) -> None:
    assert cache().get(WITHOUT_PATHWAY) is None
    assert not caplog.records


class TestWhatGetsNoSlice:
    """It is tried once, with the reason in the log."""

    @pytest.fixture(autouse=True)
    def everything_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "pathlens")

    def test_what_is_larger_than_the_limit(self, cuts: list[int], caplog: pytest.LogCaptureFixture) -> None:
        slices = cache(size(0) - 1)
        cuts.clear()
        assert slices.get(0) is slices.get(0) is None
        assert (cuts, slices.bytes) == ([0], 0)
        assert [record.getMessage() for record in caplog.records] == [
            f"The pathway of class 0 is run with masks: its slice has {size(0)} bytes"
        ]

    def test_what_saves_too_little(self, cuts: list[int], caplog: pytest.LogCaptureFixture) -> None:
        found = cache().get(0)
        assert found is not None
        assert cache(most_work=found.work).get(0) is not None
        slices = cache(most_work=found.work - 0.01)
        cuts.clear()
        assert slices.get(0) is slices.get(0) is None
        assert cuts == [0]
        assert f"its slice has {found.work:.2f} of the work" in caplog.text

    def test_what_cannot_be_sliced(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        fail_for(0, NotSliceable("a construct is unknown"), monkeypatch)
        slices = cache()
        assert slices.get(0) is slices.get(0) is None
        assert slices.get(1) is not None
        assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
            ("DEBUG", "The pathway of class 0 is run with masks: a construct is unknown")
        ]

    def test_what_fails_with_one_traceback_for_all_classes(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        fail_for(0, RuntimeError("a defect"), monkeypatch)
        fail_for(1, ValueError("another"), monkeypatch)
        slices = cache()
        assert [slices.get(label) is None for label in (0, 1, 0, 1, 2)] == [True] * 4 + [False]
        assert [record.levelname for record in caplog.records] == ["ERROR", "DEBUG"]
        assert "a defect" in caplog.text


def fail_for(label: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    cut: Cut = vars(module)["cut"]

    def failing(classifier: CapturedClassifier, pathway: Pathway) -> Slice:
        if is_pathway_of(label, pathway):
            raise error
        return cut(classifier, pathway)

    monkeypatch.setattr(module, "cut", failing)


class TestWhenThereIsNoRoom:
    @pytest.mark.parametrize("error", [MemoryError("no room"), torch.OutOfMemoryError("no room")])
    def test_what_finds_no_memory_is_cut_later_but_not_at_once(self, error: Exception) -> None:
        slices = cache()
        with pytest.MonkeyPatch.context() as patch:
            fail_for(0, error, patch)
            assert slices.get(0) is None
        found = [slices.get(0) for _ in range(2 * module._ASKS_BETWEEN_CUTS)]
        assert found[0] is None
        assert found[-1] is not None

    @pytest.mark.usefixtures("without_patience")
    def test_the_slice_that_was_not_asked_for_longest_goes_first(self) -> None:
        slices = cache(size(0) + size(1) + size(2))
        for label in (0, 1, 2, 0):
            slices.get(label)
        # Being looked at is not being asked for.
        assert 1 in slices
        slices.get(3)
        assert kept(slices) >= {0, 3}
        assert 1 not in slices

    @pytest.mark.usefixtures("without_patience")
    def test_the_limit_is_never_exceeded_and_what_fits_is_kept(self) -> None:
        sizes = {label: size(label) for label in LABELS}
        limit = max(sizes.values()) * 2
        slices, expected = cache(limit), OrderedDict[int, int]()
        for label in np.random.default_rng(0).choice(LABELS, 60).tolist():
            slices.get(label)
            expected[label] = sizes[label]
            expected.move_to_end(label)
            while sum(expected.values()) > limit:
                expected.popitem(last=False)
            assert kept(slices) == set(expected)
            assert slices.bytes == sum(expected.values()) <= limit

    def test_absent_classes_are_cut_so_rarely_that_it_costs_little(self, cuts: list[int]) -> None:
        slices = cache(max(size(label) for label in LABELS))
        cuts.clear()
        asks = 10 * module._ASKS_BETWEEN_CUTS
        for ask in range(asks):
            slices.get(ask % len(LABELS))
        assert len(LABELS) < len(cuts) <= 2 + 10
        assert slices.bytes > 0


class TestWarming:
    """Classes 1, 2, 0, 3 were seen 9, 6, 3 and 2 times."""

    @pytest.fixture
    def bank(self) -> ClassPathwayBank:
        seen = {0: 3, 1: 9, 2: 6, 3: 2}
        counts = {
            label: ClassCounts(torch.where(total.kept * 2 >= total.images, seen[label], 0), seen[label], 1.0)
            for label, total in BANK.counts.items()
        }
        return ClassPathwayBank(BANK.taps, BANK.granularity, BANK.threshold, counts, masks=BANK.masks)

    def test_the_classes_that_the_fit_saw_most_often_come_first(self, bank: ClassPathwayBank, cuts: list[int]) -> None:
        slices = cache(bank=bank)
        slices.warm(60)
        assert cuts == [1, 2, 0, 3]
        assert slices.bytes == sum(size(label) for label in LABELS)

    def test_it_ends_with_the_room(self, bank: ClassPathwayBank) -> None:
        slices = cache(size(1) + size(2), bank=bank)
        slices.warm(60)
        assert kept(slices) == {1, 2}
        assert slices.bytes == size(1) + size(2)

    def test_of_classes_that_were_not_asked_for_the_less_frequent_one_goes_first(self, bank: ClassPathwayBank) -> None:
        slices = cache(size(1) + size(2) + size(0) - 1, bank=bank)
        slices.warm(60)
        assert kept(slices) == {1, 2}
        slices.get(0)
        assert 1 in slices
        assert 2 not in slices

    def test_it_ends_with_the_time(
        self, bank: ClassPathwayBank, cuts: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Every cut takes a second.
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(len(cuts))))
        cache(bank=bank).warm(2.0)
        assert cuts == [1, 2]

    def test_it_goes_on_after_a_class_that_gets_no_slice(
        self, bank: ClassPathwayBank, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fail_for(2, NotSliceable("a construct is unknown"), monkeypatch)
        slices = cache(bank=bank)
        slices.warm(60)
        assert kept(slices) == {0, 1, 3}

    def test_what_was_cut_already_is_not_cut_again(self, bank: ClassPathwayBank, cuts: list[int]) -> None:
        slices = cache(bank=bank)
        slices.get(1)
        slices.warm(60)
        assert sorted(cuts) == list(LABELS)


class TestThreads:
    def test_nobody_waits_for_a_slice_that_is_being_cut_and_nobody_cuts_it_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun, go_on = threading.Event(), threading.Event()
        cut: Cut = vars(module)["cut"]
        labels = list[int]()

        def slow(classifier: CapturedClassifier, pathway: Pathway) -> Slice:
            labels.append(0 if is_pathway_of(0, pathway) else 1)
            if labels[-1] == 0:
                begun.set()
                assert go_on.wait(60)
            return cut(classifier, pathway)

        monkeypatch.setattr(module, "cut", slow)
        slices, found = cache(), list[Slice | None]()
        thread = threading.Thread(target=lambda: found.append(slices.get(0)))
        thread.start()
        assert begun.wait(60)
        assert slices.get(0) is None
        assert slices.get(1) is not None
        go_on.set()
        thread.join()
        assert labels == [0, 1]
        assert slices.get(0) is found[0] is not None

    @pytest.mark.usefixtures("without_patience")
    def test_many_threads_keep_to_the_limit(self) -> None:
        sizes = {label: size(label) for label in LABELS}
        slices, wrong = cache(2 * max(sizes.values())), list[object]()

        def work(seed: int) -> None:
            for label in np.random.default_rng(seed).choice(LABELS, 40).tolist():
                found = slices.get(label)
                if found is not None and found.bytes != sizes[label]:
                    wrong.append(label)
                if slices.bytes > 2 * max(sizes.values()):
                    wrong.append(slices.bytes)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert slices.bytes == sum(sizes[label] for label in kept(slices))


def test_what_is_given_up_makes_room_and_is_never_cut_again(cuts: list[int]) -> None:
    slices = cache()
    slices.get_all({0: 1})
    slices.get_all({1: 1})
    slices.give_up(0)
    slices.give_up(0)
    assert slices.get(0) is None
    assert cuts == [0, 1]
    assert slices.bytes == size(1)


def test_what_was_cut_in_inference_mode_has_gradients_later() -> None:
    slices = cache()
    with torch.inference_mode():
        slices.get(0)
    found = slices.get(0)
    assert found is not None
    assert bool(found.run(IMAGES, torch.zeros(3, dtype=torch.int64)).gradient.any())
