"""A whole evaluation: what it measures, that it can be interrupted, and that a seed fixes it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pathlens.classifier.images import ImageSource
from pathlens.evaluation.annotations import Annotation
from pathlens.evaluation.evaluate import Evaluation, EvaluationSettings
from pathlens.evaluation.journal import Journal, Task
from pathlens.evaluation.loading import BatchLoader
from pathlens.evaluation.observation import Observation
from pathlens.explanation import Granularity
from pathlens.pathways.neuron_mct import neuron_mct
from tiny_bundle import LABELS, PREPROCESSING, pixels, tiny_bundle

COUNT = 12
SETTINGS = EvaluationSettings(
    granularity=Granularity.CHANNEL,
    sparsities=(0.5, 0.8),
    map_sparsity=0.5,
    steps=2,
    sample=4,
    radii=(0.5,),
    points=2,
    minimum_images=1,
    batch_size=4,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    folder = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        Image.fromarray(pixels(number)).save(folder / f"{number:02d}.png")
    return ImageSource(folder)


def evaluation(source: ImageSource, folder: Path, settings: EvaluationSettings = SETTINGS) -> Evaluation:
    annotations = {
        source.name(number): Annotation(label=number % 5, boxes=((1.0, 1.0, 6.0, 7.0),)) for number in range(COUNT)
    }
    bundle = tiny_bundle()
    loader = BatchLoader(
        bundle.classifier, PREPROCESSING, source, annotations, None, settings.batch_size, settings.seed
    )
    return Evaluation(loader, LABELS, bundle.bank, settings, folder)


def without_cost(evaluation: Evaluation) -> list[Task]:
    return [task for task in evaluation.tasks() if task.name != "cost"]


def run(source: ImageSource, folder: Path, settings: EvaluationSettings = SETTINGS) -> list[Observation]:
    return Journal(folder / "journal", settings.to_json()).run(without_cost(evaluation(source, folder, settings)))


@pytest.fixture(scope="module")
def observations(source: ImageSource, tmp_path_factory: pytest.TempPathFactory) -> list[Observation]:
    return run(source, tmp_path_factory.mktemp("work"))


def test_every_measure_of_the_contract_is_made(observations: list[Observation]) -> None:
    assert {each.measure for each in observations} == {
        *("accuracy", "agreement", "confidence increase", "confidence drop", "realised sparsity", "dead share"),
        *("instance forcing", "instance leak", "instance leak reference", "overlap", "acIOU", "cross IoU"),
        *("class sparsity", "class agreement", "class confidence increase", "class confidence drop"),
        *("forcing", "leak", "leak reference", "MoRF", "LeRF", "MoRF area", "LeRF area", "area between"),
        *("spearman", "absolute spearman", "ssim", "pointing game", "energy in box", "linearity error"),
    }


def test_agreement_is_that_of_the_pathways_of_the_python_function(
    observations: list[Observation], source: ImageSource
) -> None:
    classifier = tiny_bundle().classifier
    for number in range(COUNT):
        ((_, picture),) = source.select([number])
        images = torch.from_numpy(PREPROCESSING.apply(picture))[None]
        target = classifier(images).argmax(1)
        pathway = neuron_mct(classifier, images, target, Granularity.CHANNEL).select(0.8)
        agrees = bool(classifier(images, pathway).argmax(1) == target)
        (measured,) = [
            each.value
            for each in observations
            if (each.measure, each.method, each.sparsity, each.control, each.subject)
            == ("agreement", "neuron_mct", 0.8, False, number)
        ]
        assert measured == float(agrees)


def test_every_image_is_measured_once_under_each_condition(observations: list[Observation]) -> None:
    conditions = [replace(each, value=0.0) for each in observations]
    assert len(set(conditions)) == len(conditions)
    assert sum(each.measure == "accuracy" for each in observations) == COUNT


def test_the_cascade_covers_every_layer_on_the_sample_alone(observations: list[Observation]) -> None:
    layers = {each.detail for each in observations if each.measure == "spearman"}
    assert layers == {"001 last", "002 hidden", "003 second", "004 first"}
    assert len({each.subject for each in observations if each.measure == "ssim"}) == SETTINGS.sample


def test_an_interrupted_evaluation_ends_with_the_same_figures(
    source: ImageSource, observations: list[Observation], tmp_path: Path
) -> None:
    for stop in (1, 7, 20):
        tasks = without_cost(evaluation(source, tmp_path))[:stop]
        Journal(tmp_path / "journal", SETTINGS.to_json()).run(tasks)
    assert run(source, tmp_path) == observations


def test_the_seed_fixes_every_figure(source: ImageSource, observations: list[Observation], tmp_path: Path) -> None:
    assert run(source, tmp_path / "same") == observations
    assert run(source, tmp_path / "other", replace(SETTINGS, seed=1)) != observations


def test_the_size_of_batches_changes_no_figure_of_a_contributor(
    source: ImageSource, observations: list[Observation], tmp_path: Path
) -> None:
    def agreement(found: list[Observation]) -> dict[object, float]:
        return {
            (each.method, each.sparsity, each.subject): each.value
            for each in found
            if each.measure == "agreement" and not each.control and each.method in ("neuron_mct", "transferred")
        }

    other = run(source, tmp_path, replace(SETTINGS, batch_size=6))
    assert agreement(other) == agreement(observations)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsities": (0.5, 1.0)}, r"sparsity is 1.0; expected a number in \[0, 1\)"),
        ({"map_sparsity": 0.6}, "map_sparsity is 0.6; expected one of"),
        ({"methods": ("neuron_mct", "magic")}, "unknown methods .'magic'."),
        ({"methods": ("random",)}, "methods lack neuron_mct"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)  # type: ignore[arg-type]


def test_cost_counts_forward_passes(source: ImageSource, tmp_path: Path) -> None:
    (task,) = [task for task in evaluation(source, tmp_path).tasks() if task.name == "cost"]
    found = {(each.measure, each.method, each.detail): each.value for each in task.run()}
    assert {method for measure, method, _ in found if measure == "cost"} >= {"neuron_mct", "transferred", "gradient"}
    assert all(np.isfinite(value) and value > 0 for value in found.values())
    assert ("floor", "neuron_intgrad", "pathway") in found
