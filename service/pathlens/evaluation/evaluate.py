"""An evaluation: every measure of a bundle's explanations on a set of images, as tasks of a resumable run."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.errors import EvaluationError
from pathlens.evaluation.batch import Batch
from pathlens.evaluation.class_pathways import ClassPathwaySettings, observe_class_pathways, observe_ious
from pathlens.evaluation.cost import CostSettings, observe_cost
from pathlens.evaluation.faithfulness import InstancePathways, dead_neurons, observe_faithfulness, observe_overlap
from pathlens.evaluation.journal import Task
from pathlens.evaluation.loading import BatchLoader
from pathlens.evaluation.map_methods import MapMethod, comparison_maps
from pathlens.evaluation.maps import (
    draw,
    observe_degradation,
    observe_linearity,
    observe_localisation,
    observe_randomisation,
    with_signs,
)
from pathlens.evaluation.observation import Observation
from pathlens.evaluation.pathway_methods import PATHWAY_METHODS, pathway_methods
from pathlens.evaluation.pathway_store import PathwayStore
from pathlens.evaluation.randomisation import randomise_from_top
from pathlens.evaluation.transfer import HeldOut
from pathlens.explanation import Granularity
from pathlens.pathways.bank import ClassPathwayBank
from pathlens.pathways.pathway import Pathway
from pathlens.pathways.selection import check_sparsity

DRAWN = ("neuron_mct", "neuron_intgrad")
"""The pathway methods whose maps are compared with others."""

COST_BATCH = 8
"""Images at which cost is measured."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured and how; the figures depend on nothing else but bundle and images.

    Attributes:
        granularity: What counts as one neuron.
        sparsities: At which pathways are measured, each in [0, 1).
        map_sparsity: Of the pathways whose maps are drawn; one of `sparsities`.
        methods: Names of the pathway methods, without repeats.
        steps: Of NeuronIntGrad's integral, at least 1.
        sample: Images on which the expensive measures are made: the cascade of randomised layers, and linearity.
        layers: At how many layers the cascade is looked at, evenly spread with the first and the last among them; None
            for all.
        radii: Of the balls in which linearity is measured, in units of the preprocessed input.
        points: Random points of each ball.
        minimum_images: A class with fewer building images gets no class pathway.
        others: Most images of other classes on which a class pathway is measured.
        batch_size: Images in one pass.
        seed: Of every random choice.
    """

    granularity: Granularity = Granularity.CHANNEL
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.99)
    map_sparsity: float = 0.9
    methods: tuple[str, ...] = PATHWAY_METHODS
    steps: int = 20
    sample: int = 32
    layers: int | None = None
    radii: tuple[float, ...] = (0.1, 1.0)
    points: int = 8
    minimum_images: int = 5
    others: int = 64
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for sparsity in self.sparsities:
            check_sparsity(sparsity)
        if self.map_sparsity not in self.sparsities:
            raise ValueError(f"map_sparsity is {self.map_sparsity}; expected one of {list(self.sparsities)}")
        if unknown := set(self.methods) - set(PATHWAY_METHODS):
            raise ValueError(f"unknown methods {sorted(unknown)}; known are {', '.join(PATHWAY_METHODS)}")
        if "neuron_mct" not in self.methods:
            raise ValueError("methods lack neuron_mct, which every evaluation measures")

    def to_json(self) -> dict[str, object]:
        """Return the settings as JSON values."""
        return {**asdict(self), "granularity": self.granularity.value}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A bundle under evaluation.

    Attributes:
        loader: Its classifier with the images.
        labels: One per class.
        bank: Its stored class pathways.
        settings: What is measured.
        folder: Where intermediate results are kept.
    """

    loader: BatchLoader
    labels: tuple[str, ...]
    bank: ClassPathwayBank
    settings: EvaluationSettings
    folder: Path
    _cache: dict[int, Batch] = field(default_factory=dict)

    @property
    def sample(self) -> int:
        """Number of images for the expensive measures: whole batches."""
        return len(self._sample_batches()) * self.settings.batch_size

    @property
    def classifier(self) -> CapturedClassifier:
        """What is explained."""
        return self.loader.classifier

    def tasks(self) -> Iterable[Task]:
        """Return all tasks, in an order in which each finds what it needs."""
        settings = self.settings
        batches = range(self.loader.batches)
        for number in batches:
            yield Task(f"pathways {number}", "Pathways", partial(self._pathways, number))
        for method in settings.methods:
            for sparsity in settings.sparsities:
                work = partial(self._class_pathways, method, sparsity)
                yield Task(f"class pathways {method} {sparsity}", "Class pathways", work)
        for number in batches:
            yield Task(f"maps {number}", "Maps", partial(self._maps, number))
        for number in self._sample_batches():
            yield Task(f"linearity {number}", "Linearity", partial(self._linearity, number))
        for depth, layer in self._layers():
            for number in self._sample_batches():
                work = partial(self._randomisation, number, depth, f"{depth + 1:03d} {layer}")
                yield Task(f"randomisation {depth} {number}", "Randomised layers", work)
        yield Task("cost", "Cost", self._cost)

    @property
    def _store(self) -> PathwayStore:
        grid = tuple(sorted(self.settings.sparsities))
        return PathwayStore(self.folder, self.classifier.taps, self.settings.granularity, grid)

    def _batch(self, number: int) -> Batch:
        # Tasks of one batch follow each other in some stages.
        if number not in self._cache:
            self._cache.clear()
            self._cache[number] = self.loader.load(number)
        return self._cache[number]

    @cached_property
    def _all_images(self) -> HeldOut:
        batches = [self._batch(number) for number in range(self.loader.batches)]
        images = torch.cat([batch.images for batch in batches])
        return HeldOut(images, torch.cat([batch.probabilities for batch in batches]))

    def _sample_batches(self) -> range:
        return range(min(self.loader.batches, -(-self.settings.sample // self.settings.batch_size)))

    def _layers(self) -> list[tuple[int, str]]:
        """Return depth and name of the layers at which the cascade is looked at."""
        names = [layer for layer, _ in randomise_from_top(self.classifier, self.settings.seed)]
        count = min(self.settings.layers or len(names), len(names))
        depths = sorted({round(step * (len(names) - 1) / max(count - 1, 1)) for step in range(count)})
        return [(depth, names[depth]) for depth in depths]

    def _pathways(self, number: int) -> list[Observation]:
        batch, settings, store = self._batch(number), self.settings, self._store
        if not bool(batch.probabilities.isfinite().all()):
            raise EvaluationError(
                f"The classifier's output is not finite for an image of {batch.positions}; look at these images."
            )
        observations = [
            Observation("accuracy", float(subject.label == predicted), subject=subject.position)
            for subject, predicted in zip(batch.subjects, batch.target.tolist(), strict=True)
            if subject.label is not None
        ]
        seed = settings.seed + number
        methods = pathway_methods(settings.steps, seed)
        levels = {
            name: store.levels(methods[name](self.classifier, batch.images, batch.target, settings.granularity))
            for name in settings.methods
        }
        instances = [
            InstancePathways(name, sparsity, store.pathway(levels[name], sparsity))
            for name in settings.methods
            for sparsity in settings.sparsities
        ]
        dead = dead_neurons(batch, settings.granularity)
        for each in instances:
            observations += observe_faithfulness(batch, each, dead, seed)
        observations += observe_overlap(batch, instances)
        if settings.granularity is self.bank.granularity:
            observations += self._transferred(batch, seed)
        store.save(number, levels)
        return observations

    def _transferred(self, batch: Batch, seed: int) -> list[Observation]:
        """Measure the stored class pathways, on the images whose class has one."""
        rows = [row for row, label in enumerate(batch.target.tolist()) if label in self.bank]
        if not rows:
            return []
        known = Batch(self.classifier, tuple(batch.subjects[row] for row in rows), batch.images[rows])
        pathway = self.bank.transfer(known.target.tolist())
        dead = dead_neurons(known, self.bank.granularity)
        return observe_faithfulness(known, InstancePathways("transferred", None, pathway), dead, seed)

    def _class_pathways(self, method: str, sparsity: float) -> list[Observation]:
        store, settings = self._store, self.settings
        pathway = store.pathway(store.load(range(self.loader.batches), method), sparsity)
        how = ClassPathwaySettings(
            self.bank.threshold, settings.minimum_images, settings.others, settings.batch_size, settings.seed
        )
        return [
            *observe_ious(self._all_images.predicted.cpu(), pathway, method, sparsity),
            *observe_class_pathways(
                self.classifier,
                self._all_images,
                pathway.to(self.classifier.device),
                self.labels,
                method,
                sparsity,
                how,
            ),
        ]

    def _drawn(self, number: int) -> dict[str, Pathway]:
        """Return the stored pathways whose maps are drawn."""
        store, device = self._store, self.classifier.device
        return {
            method: store.pathway(store.load([number], method), self.settings.map_sparsity).to(device)
            for method in DRAWN
            if method in self.settings.methods
        }

    def _comparisons(self, number: int) -> Mapping[str, MapMethod]:
        return comparison_maps(self.classifier, self.settings.seed + number)

    def _original_maps(self, number: int) -> dict[str, Tensor]:
        batch = self._batch(number)
        return {
            **draw(self.classifier, batch.images, batch.target, self._drawn(number)),
            **{
                name: method(self.classifier, batch.images, batch.target)
                for name, method in self._comparisons(number).items()
            },
        }

    @cached_property
    def _sample_maps(self) -> dict[int, dict[str, Tensor]]:
        """The maps of the whole classifier with which those of randomised ones are compared."""
        return {
            number: {name: with_signs(values) for name, values in self._original_maps(number).items()}
            for number in self._sample_batches()
        }

    def _maps(self, number: int) -> list[Observation]:
        batch, maps = self._batch(number), self._original_maps(number)
        return [
            *observe_degradation(batch, maps, self.settings.seed),
            *observe_localisation(batch, maps, self.loader.preprocessing),
        ]

    def _linearity(self, number: int) -> list[Observation]:
        settings = self.settings
        return observe_linearity(
            self._batch(number),
            self._drawn(number),
            settings.map_sparsity,
            settings.radii,
            settings.points,
            settings.seed,
        )

    def _randomisation(self, number: int, depth: int, layer: str) -> list[Observation]:
        batch, settings = self._batch(number), self.settings
        _, classifier = next(islice(randomise_from_top(self.classifier, settings.seed), depth, None))
        with torch.no_grad():
            rows = classifier(batch.images).isfinite().all(1).nonzero()[:, 0]
        if not len(rows):
            return []
        # Random weights may overflow for an image; then there is no map to compare with.
        batch = Batch(self.classifier, tuple(batch.subjects[row] for row in rows.tolist()), batch.images[rows])
        methods = pathway_methods(settings.steps, settings.seed)
        pathways = {
            name: methods[name](classifier, batch.images, batch.target, settings.granularity).select(
                settings.map_sparsity
            )
            for name in self._drawn(number)
        }
        randomised = {
            **draw(classifier, batch.images, batch.target, pathways),
            **{
                name: method(classifier, batch.images, batch.target)
                for name, method in self._comparisons(number).items()
                if name != "random"
            },
        }
        return observe_randomisation(
            batch,
            {name: self._sample_maps[number][name][rows] for name in randomised},
            {name: with_signs(values) for name, values in randomised.items()},
            layer,
        )

    def _cost(self) -> list[Observation]:
        images, settings = self._batch(0).images, self.settings
        images = images[torch.arange(COST_BATCH) % len(images)]
        methods = pathway_methods(settings.steps, settings.seed)
        timed = CostSettings(
            {name: methods[name] for name in settings.methods},
            self._comparisons(0),
            settings.granularity,
            settings.map_sparsity,
            settings.steps,
        )
        return observe_cost(self.classifier, images, timed)
