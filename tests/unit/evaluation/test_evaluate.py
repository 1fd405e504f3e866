"""A whole evaluation: what it measures, that it can be interrupted, and that a seed fixes it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pathlens.classifier.images import ImageSource
from pathlens.errors import EvaluationError
from pathlens.evaluation.annotations import Annotation
from pathlens.evaluation.evaluate import DRAWN, Evaluation
from pathlens.evaluation.journal import Journal, Task
from pathlens.evaluation.loading import BatchLoader
from pathlens.evaluation.observation import Observation
from pathlens.evaluation.pathway_methods import CLASSIFIER_METHODS, GENERATED, PATHWAY_METHODS
from pathlens.evaluation.settings import EvaluationSettings
from pathlens.explanation import Ablation, Granularity
from pathlens.pathways.neuron_mct import neuron_mct
from tiny_bundle import LABELS, PREPROCESSING, TWO_SIDED, pixels, tiny_bundle

COUNT = 12
SETTINGS = EvaluationSettings(
    granularity=Granularity.CHANNEL,
    sparsities=(0.5, 0.8),
    map_sparsity=0.5,
    methods=PATHWAY_METHODS,
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


def evaluation(
    source: ImageSource,
    folder: Path,
    settings: EvaluationSettings = SETTINGS,
    fitted: Ablation = Ablation.ZERO,
    with_generator: bool = True,
) -> Evaluation:
    annotations = {
        source.name(number): Annotation(label=number % 5, boxes=((1.0, 1.0, 6.0, 7.0),)) for number in range(COUNT)
    }
    bundle = tiny_bundle(ablation=fitted)
    loader = BatchLoader(
        bundle.classifier, PREPROCESSING, source, annotations, None, settings.batch_size, settings.seed
    )
    return Evaluation(loader, LABELS, bundle.bank, settings, folder, bundle.generator if with_generator else None)


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
        *("sparsity spread", "lowest sparsity", "highest sparsity"),
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


def image(source: ImageSource, number: int) -> torch.Tensor:
    ((_, picture),) = source.select([number])
    return torch.from_numpy(PREPROCESSING.apply(picture))[None]


def figure(found: list[Observation], measure: str, method: str, sparsity: float | None, subject: int) -> float:
    wanted = (measure, method, sparsity, False, subject)
    (value,) = [o.value for o in found if (o.measure, o.method, o.sparsity, o.control, o.subject) == wanted]
    return value


def test_generated_pathways_are_measured_at_the_sparsity_that_each_finds(
    observations: list[Observation], source: ImageSource
) -> None:
    bundle = tiny_bundle()
    assert bundle.generator is not None
    for number in range(COUNT):
        images = image(source, number)
        whole = bundle.classifier.observe(images)
        logits, activations = whole.logits, whole.activations
        pathway = bundle.generator.pathways(activations)
        agrees = bundle.classifier(images, pathway).argmax(1) == logits.argmax(1)
        assert figure(observations, "agreement", GENERATED, None, number) == float(agrees)
        assert figure(observations, "realised sparsity", GENERATED, None, number) == float(pathway.sparsity)


@pytest.mark.parametrize("sparsity", SETTINGS.sparsities)
def test_generated_pathways_of_the_grid_keep_as_many_neurons_as_asked(
    observations: list[Observation], sparsity: float
) -> None:
    neurons = sum(tap.channels for tap in tiny_bundle().classifier.taps)
    for number in range(COUNT):
        removed = figure(observations, "realised sparsity", GENERATED, sparsity, number)
        assert removed == pytest.approx(1 - round((1 - sparsity) * neurons) / neurons)


def test_generated_pathways_of_their_own_sparsity_have_class_pathways_and_overlaps(
    observations: list[Observation],
) -> None:
    own = {each.measure for each in observations if (each.method, each.sparsity) == (GENERATED, None)}
    assert own >= {"acIOU", "cross IoU", "class agreement", "forcing", "class sparsity", "instance forcing"}


def test_the_map_of_the_generated_pathway_is_compared_with_the_others(observations: list[Observation]) -> None:
    for measure in ("area between", "spearman", "pointing game", "linearity error"):
        assert {each.method for each in observations if each.measure == measure} >= set(DRAWN)


def test_stored_masks_stand_beside_those_by_frequency(observations: list[Observation]) -> None:
    def figures(method: str, two_sided: bool) -> list[tuple[str, float, int | str]]:
        return [
            (each.measure, each.value, each.subject)
            for each in observations
            if each.method == method
            and each.measure in ("class sparsity", "class agreement", "forcing")
            and str(each.subject).startswith(str(TWO_SIDED)) is two_sided
        ]

    one, other = "transferred", "transferred by frequency"
    assert figures(one, two_sided=False) == figures(other, two_sided=False) != []
    assert figures(one, two_sided=True) != figures(other, two_sided=True)


@pytest.mark.parametrize("fitted", [Ablation.MEAN, Ablation.OPTIMAL])
@pytest.mark.parametrize("own", [True, False])
def test_every_pathway_is_measured_under_one_ablation(
    source: ImageSource, tmp_path: Path, fitted: Ablation, own: bool
) -> None:
    ablation = fitted if own else Ablation.ZERO
    settings = replace(SETTINGS, ablation=ablation, sparsities=(0.5,), layers=2)
    found = Journal(tmp_path / "journal", {}).run(without_cost(evaluation(source, tmp_path, settings, fitted)))
    bundle = tiny_bundle(ablation=fitted)
    for number in range(COUNT):
        images = image(source, number)
        target = bundle.classifier(images).argmax(1)
        pathway = neuron_mct(bundle.classifier, images, target, Granularity.CHANNEL).select(0.5)
        if own:
            pathway = pathway.under(bundle.bank.replacement_of(target))
        whole, alone = (bundle.classifier(images, which).softmax(1)[0, target] for which in (None, pathway))
        drop = float(((whole - alone).clamp(min=0) / whole).detach())
        assert figure(found, "confidence drop", "neuron_mct", 0.5, number) == pytest.approx(drop, abs=1e-5)
    stated = {(each.method, each.ablation) for each in found}
    stored = {"transferred", "transferred by frequency"}
    maps = {"gradient", "gradient_times_input", "integrated_gradients", "grad_cam", "whole network", "centre"}
    assert {said for method, said in stated if method in stored} == {fitted.value}
    assert {said for method, said in stated if method in set(PATHWAY_METHODS) - {"random"}} == {ablation.value}
    assert {said for method, said in stated if method in maps} == {""}


def test_maps_are_those_of_pathways_under_the_ablation(source: ImageSource, tmp_path: Path) -> None:
    found = []
    for ablation in (Ablation.ZERO, Ablation.MEAN):
        folder = tmp_path / ablation.value
        settings = replace(SETTINGS, ablation=ablation, sparsities=(0.5,), layers=2)
        tasks = without_cost(evaluation(source, folder, settings, Ablation.MEAN))
        observations = Journal(folder / "journal", {}).run(tasks)
        found.append(
            {
                measure: [each.value for each in observations if (each.measure, each.method) == (measure, "neuron_mct")]
                for measure in ("area between", "linearity error", "forcing", "acIOU")
            }
        )
    zero, mean = found
    assert all(zero[measure] != mean[measure] for measure in ("area between", "linearity error", "forcing"))
    # Which neurons a method selects has nothing to do with what stands in for the others.
    assert zero["acIOU"] == mean["acIOU"]


def test_figures_of_another_ablation_are_not_gone_on_with(tmp_path: Path) -> None:
    Journal(tmp_path / "journal", SETTINGS.to_json()).run([])
    with pytest.raises(EvaluationError, match="other settings"):
        Journal(tmp_path / "journal", replace(SETTINGS, ablation=Ablation.MEAN).to_json())


def test_what_the_bundle_does_not_have_is_refused_with_the_remedy(source: ImageSource, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"has no generator.*fit it with --source generated"):
        evaluation(source, tmp_path, with_generator=False)
    with pytest.raises(EvaluationError, match="generator makes channel pathways; evaluate at granularity channel"):
        evaluation(source, tmp_path, replace(SETTINGS, granularity=Granularity.UNIT))
    with pytest.raises(EvaluationError, match=r"no values for ablation mean.*fit it with --ablation mean"):
        evaluation(source, tmp_path, replace(SETTINGS, ablation=Ablation.MEAN), Ablation.OPTIMAL)


def test_a_bundle_without_a_generator_is_evaluated_without_generated_pathways(
    source: ImageSource, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, methods=CLASSIFIER_METHODS, sparsities=(0.5,), layers=2)
    tasks = without_cost(evaluation(source, tmp_path, settings, with_generator=False))
    assert GENERATED not in {each.method for each in Journal(tmp_path / "journal", {}).run(tasks)}


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
    assert {("cost", GENERATED, "pathway"), ("cost", GENERATED, "pathway + map")} <= found.keys()
    assert all(np.isfinite(value) and value > 0 for value in found.values())
    assert ("floor", "neuron_intgrad", "pathway") in found
