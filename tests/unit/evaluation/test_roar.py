from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.errors import EvaluationError
from pathlens.evaluation.map_methods import MapMethod
from pathlens.evaluation.observation import Observation
from pathlens.evaluation.roar import MEASURE, Roar, RoarSettings, remove_pixels

SIDE = 4
TELLING = (1, 2)
"""The pixel that alone tells the class of an image."""
ONE_PIXEL = 1 / SIDE**2
IMAGES = 60
QUICK = RoarSettings((ONE_PIXEL,), seeds=2, epochs=12, batch_size=8, learning_rate=0.05, held_out=0.25)


class Small(nn.Module):
    def __init__(self, classes: int = 2, channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Flatten(), nn.Linear(channels * SIDE**2, 6), nn.ReLU(), nn.Linear(6, classes)),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits


class Normalised(Small):
    """Batch norm cannot be trained on one image."""

    def __init__(self) -> None:
        super().__init__()
        self.body.insert(2, nn.BatchNorm1d(6))


class Twofold(nn.Module):
    """Returns something else than logits."""

    def __init__(self) -> None:
        super().__init__()
        self.small = Small()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.small(x), x


class Recording(Small):
    """Notes the weights it began with and every image that it sees."""

    def __init__(self, notes: "Notes") -> None:
        super().__init__()
        self.notes = notes
        notes.weights.append(next(self.parameters()).detach().clone())
        notes.trained.append([])
        notes.tested.append([])

    def forward(self, x: Tensor) -> Tensor:
        seen = self.notes.trained if self.training else self.notes.tested
        seen[-1].extend(x)
        return super().forward(x)


class Notes:
    """One entry per network; the first is the one that is made for a check alone."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.trained: list[list[Tensor]] = []
        self.tested: list[list[Tensor]] = []


@cache
def classifier() -> CapturedClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return capture(Small().eval(), torch.rand(2, 3, SIDE, SIDE))


@cache
def labelled() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(IMAGES) % 2
    images = torch.randn(IMAGES, 3, SIDE, SIDE, generator=generator) / 4
    images[:, :, *TELLING] += (4.0 * labels - 2)[:, None]
    return images, labels


def pointing_at(row: int, column: int) -> MapMethod:
    """A map that is the same for every image: one pixel is relevant, in one colour channel and against the class."""

    def draw(_: CapturedClassifier, images: Tensor, __: Tensor) -> Tensor:
        drawn = torch.zeros_like(images)
        drawn[:, 1, row, column] = -1
        return drawn

    return draw


MAPS: Mapping[str, MapMethod] = {"knowing": pointing_at(*TELLING), "ignorant": pointing_at(3, 3)}


def roar(
    methods: Mapping[str, MapMethod] = MAPS, make: Callable[[], nn.Module] = Small, settings: RoarSettings = QUICK
) -> Roar:
    return Roar(classifier(), make, *labelled(), methods, settings)


def figures(run: Roar, backwards: bool = False) -> dict[str, Observation]:
    tasks = run.tasks()[::-1] if backwards else run.tasks()
    return {task.name: observation for task in tasks for observation in task.run()}


@cache
def quick_figures() -> list[Observation]:
    return list(figures(roar()).values())


class TestRemovedPixels:
    @given(st.integers(0, 2**16), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.floats(0, 1))
    def test_exactly_as_many_as_asked_for_and_no_kept_one_is_more_relevant(
        self, seed: int, channels: int, height: int, width: int, fraction: float
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand(3, channels, height, width, generator=generator)
        relevance = torch.randint(0, 4, (3, height, width), generator=generator).float()
        before = images.clone()
        changed = remove_pixels(images, relevance, fraction, torch.full((channels,), 7.0))
        gone = (changed == 7).all(1)
        assert gone.flatten(1).sum(1).tolist() == [round(fraction * height * width)] * 3
        # A pixel that is not gone in all colour channels is untouched in all of them.
        assert torch.equal(changed[~gone[:, None].expand_as(changed)], images[~gone[:, None].expand_as(images)])
        for image in range(3):
            kept, removed = relevance[image][~gone[image]], relevance[image][gone[image]]
            assert not len(kept) or not len(removed) or kept.max() <= removed.min()
        assert torch.equal(images, before)

    def test_each_colour_channel_gets_its_own_value(self) -> None:
        changed = remove_pixels(torch.zeros(1, 2, 1, 2), torch.tensor([[[0.0, 1.0]]]), 0.5, torch.tensor([3.0, 4.0]))
        assert changed.tolist() == [[[[0, 3]], [[0, 4]]]]

    def test_a_batch_gets_what_its_images_get_alone(self) -> None:
        images, _ = labelled()
        relevance = images.abs().sum(1).round()
        together = remove_pixels(images, relevance, 0.4, torch.zeros(3), 1)
        alone = [remove_pixels(images[[row]], relevance[[row]], 0.4, torch.zeros(3), 1) for row in range(len(images))]
        assert torch.equal(together, torch.cat(alone))

    def test_equally_relevant_pixels_go_in_an_order_of_chance_that_all_images_share(self) -> None:
        gone = [
            remove_pixels(torch.ones(2, 1, 8, 8), torch.zeros(2, 8, 8), 0.5, torch.zeros(1), s) == 0 for s in (0, 1)
        ]
        assert torch.equal(gone[0][0], gone[0][1])
        assert not torch.equal(gone[0], gone[1])
        assert 4 < int(gone[0][0, 0, :4].sum()) < 28

    @pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
    def test_a_fraction_out_of_range_is_refused(self, fraction: float) -> None:
        with pytest.raises(ValueError, match="fraction is"):
            remove_pixels(torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2), fraction, torch.zeros(1))

    @pytest.mark.parametrize(("relevance", "pixel"), [((1, 2, 3), (1,)), ((1, 1, 2, 2), (1,)), ((1, 2, 2), (2,))])
    def test_shapes_that_do_not_fit_are_refused(self, relevance: tuple[int, ...], pixel: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="relevance has shape"):
            remove_pixels(torch.ones(1, 1, 2, 2), torch.ones(relevance), 0.5, torch.zeros(pixel))


class TestFigures:
    def test_accuracy_falls_to_chance_by_the_map_that_knows_and_stays_by_the_one_that_does_not(self) -> None:
        means: dict[str, float] = {}
        for observation in quick_figures():
            means[observation.method] = means.get(observation.method, 0) + observation.value / QUICK.seeds
        assert means[""] > 0.95
        assert means["ignorant"] > 0.95
        assert means["knowing"] < 0.8

    def test_every_condition_is_observed_once_per_seed(self) -> None:
        conditions = {(seen.measure, seen.method, seen.detail, seen.subject) for seen in quick_figures()}
        assert len(conditions) == len(quick_figures())
        assert conditions == {
            (MEASURE, method, detail, number)
            for method, detail in [("", "0"), ("knowing", "0.0625"), ("ignorant", "0.0625")]
            for number in (0, 1)
        }

    def test_they_depend_neither_on_the_order_of_the_tasks_nor_on_what_torch_drew_before(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(123)
            backwards = figures(roar(), backwards=True)
        assert sorted(backwards.values()) == sorted(quick_figures())

    def test_torch_draws_afterwards_as_if_nothing_had_happened(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            expected = torch.rand(3)
            torch.manual_seed(1)
            roar(methods={}).tasks()[0].run()
            assert torch.equal(torch.rand(3), expected)

    def test_batch_norm_can_be_trained_when_one_image_would_be_left_over(self) -> None:
        training, _ = roar().split()
        settings = RoarSettings((0.5,), 1, 1, len(training) - 1, held_out=QUICK.held_out)
        (observation,) = roar({}, Normalised, settings).tasks()[0].run()
        assert 0 <= observation.value <= 1


class TestRetraining:
    def test_held_out_images_train_nothing_and_every_image_is_used(self) -> None:
        notes = Notes()
        run = roar({}, lambda: Recording(notes))
        run.tasks()[0].run()
        rows = [{tuple(image.flatten().tolist()) for image in seen[-1]} for seen in (notes.trained, notes.tested)]
        assert not rows[0] & rows[1]
        assert [len(part) for part in rows] == [45, 15]
        assert len(notes.trained[-1]) == 45 * QUICK.epochs

    def test_pixels_are_gone_from_training_and_from_held_out_images(self) -> None:
        notes = Notes()
        run = roar({"knowing": MAPS["knowing"]}, lambda: Recording(notes))
        run.tasks()[-1].run()
        mean = run.images[run.split()[0]].mean((0, 2, 3))
        for image in notes.trained[-1] + notes.tested[-1]:
            torch.testing.assert_close(image[:, *TELLING], mean)
            assert not torch.isclose(image, mean[:, None, None]).all()

    def test_networks_of_one_number_begin_alike_and_those_of_another_do_not(self) -> None:
        notes = Notes()
        figures(roar(make=lambda: Recording(notes)))
        first, second, *others = notes.weights[1:]
        assert not torch.equal(first, second)
        assert all(torch.equal(weights, (first, second)[row % 2]) for row, weights in enumerate(others))

    def test_images_come_in_another_order_to_each_number_even_if_the_factory_seeds_torch_itself(self) -> None:
        notes = Notes()

        def make() -> nn.Module:
            torch.manual_seed(0)
            return Recording(notes)

        figures(roar({}, make))
        first, second = (torch.stack(seen) for seen in notes.trained[1:])
        assert first.shape == second.shape
        assert not torch.equal(first, second)

    def test_another_seed_splits_differently(self) -> None:
        training, held_out = roar().split()
        other, _ = roar(settings=RoarSettings(seed=1)).split()
        assert sorted(torch.cat([training, held_out]).tolist()) == list(range(IMAGES))
        assert not set(training.tolist()) <= set(other.tolist())


class TestMaps:
    def test_each_explains_the_predicted_class_of_every_image_once(self) -> None:
        asked: list[tuple[Tensor, Tensor]] = []

        def noting(_: CapturedClassifier, images: Tensor, target: Tensor) -> Tensor:
            asked.append((images, target))
            return images

        run = roar({"noting": noting}, settings=RoarSettings((0.2, 0.4), seeds=2, epochs=1, batch_size=8))
        figures(run)
        seen, targets = (torch.cat(parts) for parts in zip(*asked, strict=True))
        assert torch.equal(seen, run.images)
        assert torch.equal(targets, classifier()(run.images).argmax(1))
        assert max(len(images) for images, _ in asked) == 8

    def test_one_that_is_not_finite_is_named(self) -> None:
        run = roar({"broken": lambda _, images, __: images / 0})
        with pytest.raises(EvaluationError, match="broken is not finite"):
            run.tasks()[-1].run()

    def test_one_channel_is_enough(self) -> None:
        run = roar({"flat": lambda _, images, __: images[:, :1]}, settings=RoarSettings((0.5,), 1, 1))
        assert len(run.tasks()[-1].run()) == 1


class TestRefuses:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"fractions": ()}, "fractions are"),
            ({"fractions": (0.0,)}, "fractions are"),
            ({"fractions": (0.5, 1.0)}, "fractions are"),
            ({"fractions": (float("nan"),)}, "fractions are"),
            ({"fractions": (0.5, 0.5)}, "each of them once"),
            ({"seeds": 0}, "seeds is 0"),
            ({"epochs": 0}, "epochs is 0"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"learning_rate": 0.0}, "learning_rate is 0"),
            ({"held_out": 1.0}, "held_out is 1"),
        ],
    )
    def test_settings_out_of_range(self, settings: dict[str, float], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            RoarSettings(**settings)  # type: ignore[arg-type]

    def test_images_of_one_class(self) -> None:
        images, labels = labelled()
        with pytest.raises(EvaluationError, match="All 60 images are of one class"):
            Roar(classifier(), Small, images, torch.zeros_like(labels), MAPS, QUICK)

    @pytest.mark.parametrize("held_out", [0.1, 0.9])
    def test_too_few_images_to_split(self, held_out: float) -> None:
        images, labels = labelled()
        with pytest.raises(EvaluationError, match="too few"):
            Roar(classifier(), Small, images[:2], labels[:2], MAPS, RoarSettings(held_out=held_out))

    def test_labels_of_no_class(self) -> None:
        images, labels = labelled()
        with pytest.raises(ValueError, match="labels are"):
            Roar(classifier(), Small, images, labels + 1, MAPS, QUICK)

    @pytest.mark.parametrize(("images", "labels"), [((4, 3, 5, 5), 4), ((4, 3, SIDE, SIDE), 5)])
    def test_shapes_that_do_not_fit(self, images: tuple[int, ...], labels: int) -> None:
        with pytest.raises(ValueError, match="images have shape"):
            Roar(classifier(), Small, torch.ones(images), torch.zeros(labels, dtype=torch.int64), MAPS, QUICK)

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: Small(channels=1), "does not take images"),
            (lambda: Small(classes=3), r"returns \[2, 3\] for 2 images"),
            (nn.Flatten, "no weights"),
            (Twofold, "returns tuple for 2 images"),
        ],
    )
    def test_a_network_of_another_kind_than_the_classifier(self, make: Callable[[], nn.Module], words: str) -> None:
        with pytest.raises(EvaluationError, match=words) as caught:
            roar(make=make)
        assert "\n" not in caught.value.message

    def test_a_training_that_ends_in_numbers_that_are_none(self) -> None:
        with pytest.raises(EvaluationError, match="lower the learning rate"):
            roar(settings=RoarSettings(epochs=5, learning_rate=1e30)).tasks()[0].run()
