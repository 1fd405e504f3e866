"""An evaluation: every measure of a bundle's explanations on a set of images, as tasks of a resumable run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.errors import EvaluationError
from pathlens.evaluation.batch import Batch
from pathlens.evaluation.class_pathways import (
    ClassPathwaySettings,
    observe_class_pathways,
    observe_ious,
    observe_stored_class_pathways,
)
from pathlens.evaluation.cost import CostSettings, observe_cost
from pathlens.evaluation.faithfulness import (
    InstancePathways,
    dead_neurons,
    observe_faithfulness,
    observe_overlap,
    observe_spread,
)
from pathlens.evaluation.generated import generated_pathway
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
from pathlens.evaluation.pathway_methods import (
    GENERATED,
    PathwayMethod,
    pathway_methods,
)
from pathlens.evaluation.pathway_store import PathwayStore
from pathlens.evaluation.randomisation import randomise_from_top
from pathlens.evaluation.settings import EvaluationSettings
from pathlens.evaluation.transfer import HeldOut
from pathlens.generator.generator import PathwayGenerator
from pathlens.pathways.bank import ClassPathwayBank
from pathlens.pathways.pathway import ZERO, Pathway
from pathlens.pathways.replacement import Replacement

DRAWN = ("neuron_mct", "neuron_intgrad", GENERATED)
"""The pathway methods whose maps are compared with others; a generated pathway has its own sparsity there."""

TRANSFERRED = "transferred"
"""Stored class pathways as they are served."""

BY_FREQUENCY = "transferred by frequency"
"""The masks by frequency of the same bank, where it has learned others."""

_OWN = f"{GENERATED} own"
"""Under which generated pathways of their own sparsity are kept on disk."""

COST_BATCH = 8
"""Images at which cost is measured."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A bundle under evaluation.

    Attributes:
        loader: Its classifier with the images.
        labels: One per class.
        bank: Its stored class pathways.
        settings: What is measured.
        folder: Where intermediate results are kept.
        generator: Its pathway generator; None without one.

    Raises:
        EvaluationError: If the settings ask for what the bundle does not have.
    """

    loader: BatchLoader
    labels: tuple[str, ...]
    bank: ClassPathwayBank
    settings: EvaluationSettings
    folder: Path
    generator: PathwayGenerator | None = None
    _cache: dict[int, Batch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings.check_available(self.bank.replacement.ablation, self.generator)

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
            own = (None,) if method == GENERATED else ()
            for sparsity in (*settings.sparsities, *own):
                work = partial(self._class_pathways, method, sparsity)
                name = f"class pathways {method} {'own' if sparsity is None else sparsity}"
                yield Task(name, "Class pathways", work)
        for method, bank in self._stored.items():
            work = partial(self._stored_class_pathways, method, bank)
            yield Task(f"class pathways {method}", "Class pathways", work)
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

    @cached_property
    def _generator(self) -> PathwayGenerator | None:
        """The generator where the classifier is, if it is evaluated."""
        if self.generator is None or GENERATED not in self.settings.methods:
            return None
        return self.generator.frozen(self.classifier.device)

    @cached_property
    def _replacement(self) -> Replacement:
        """What stands in for removed neurons, with one row or one for each class."""
        return self.bank.replacement if self.settings.ablation is self.bank.replacement.ablation else ZERO

    @cached_property
    def _stored(self) -> Mapping[str, ClassPathwayBank]:
        """The stored class pathways, and those by frequency if they are others; none of another granularity."""
        bank = self.bank
        if bank.granularity is not self.settings.granularity:
            return {}
        if not bank.masks:
            return {TRANSFERRED: bank}
        plain = ClassPathwayBank(bank.taps, bank.granularity, bank.threshold, bank.counts, replacement=bank.replacement)
        return {TRANSFERRED: bank, BY_FREQUENCY: plain.to(self.classifier.device)}

    def _methods(self, seed: int) -> Mapping[str, PathwayMethod]:
        return pathway_methods(self.settings.steps, seed, self._generator)

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
        methods = self._methods(seed)
        levels = {
            name: store.levels(methods[name](self.classifier, batch.images, batch.target, settings.granularity))
            for name in settings.methods
        }
        replacement = self._replacement.select(batch.target)
        instances = [
            InstancePathways(name, sparsity, store.pathway(levels[name], sparsity).under(replacement))
            for name in settings.methods
            for sparsity in settings.sparsities
        ]
        if self._generator is not None:
            generated = generated_pathway(self._generator, self.classifier, batch.images, self._replacement)
            levels[_OWN] = store.level_of(generated)
            instances.append(InstancePathways(GENERATED, None, generated))
        dead = dead_neurons(batch, settings.granularity)
        for each in instances:
            observations += observe_faithfulness(batch, each, dead, seed)
        observations += observe_overlap(batch, instances)
        observations += self._transferred(batch, seed)
        store.save(number, levels)
        return observations

    def _transferred(self, batch: Batch, seed: int) -> list[Observation]:
        """Measure the stored class pathways, on the images whose class has one."""
        rows = [row for row, label in enumerate(batch.target.tolist()) if label in self.bank]
        if not rows or not self._stored:
            return []
        known = Batch(self.classifier, tuple(batch.subjects[row] for row in rows), batch.images[rows])
        dead = dead_neurons(known, self.bank.granularity)
        observations = []
        for method, bank in self._stored.items():
            instances = InstancePathways(method, None, bank.transfer(known.target.tolist()))
            observations += observe_faithfulness(known, instances, dead, seed)
        return observations

    @property
    def _class_settings(self) -> ClassPathwaySettings:
        settings = self.settings
        return ClassPathwaySettings(
            self.bank.threshold, settings.minimum_images, settings.others, settings.batch_size, settings.seed
        )

    def _class_pathways(self, method: str, sparsity: float | None) -> list[Observation]:
        predicted = self._all_images.predicted
        replacement = self._replacement.select(predicted)
        levels = self._store.load(range(self.loader.batches), _OWN if sparsity is None else method)
        pathway = self._store.pathway(levels, sparsity).under(replacement)
        return [
            *(observe_spread(InstancePathways(method, None, pathway)) if sparsity is None else ()),
            *observe_ious(predicted.cpu(), pathway, method, sparsity),
            *observe_class_pathways(
                self.classifier,
                self._all_images,
                pathway.to(self.classifier.device),
                self.labels,
                method,
                sparsity,
                self._class_settings,
                self._replacement,
            ),
        ]

    def _stored_class_pathways(self, method: str, bank: ClassPathwayBank) -> list[Observation]:
        return observe_stored_class_pathways(
            self.classifier, self._all_images, bank, self.labels, method, self._class_settings
        )

    def _drawn(self, number: int) -> list[InstancePathways]:
        """Return the stored pathways whose maps are drawn."""
        store, settings = self._store, self.settings
        replacement = self._replacement.select(self._batch(number).target)

        def load(method: str, name: str, sparsity: float | None) -> InstancePathways:
            pathway = store.pathway(store.load([number], name), sparsity).to(self.classifier.device)
            return InstancePathways(method, sparsity, pathway.under(replacement))

        return [
            load(GENERATED, _OWN, None) if method == GENERATED else load(method, method, settings.map_sparsity)
            for method in DRAWN
            if method in settings.methods
        ]

    def _stated(self, observations: Iterable[Observation]) -> list[Observation]:
        """Add to the figures of maps what stood in for the neurons that their pathways remove."""
        ablation = self.settings.ablation.value
        return [replace(each, ablation=ablation) if each.method in DRAWN else each for each in observations]

    def _comparisons(self, number: int) -> Mapping[str, MapMethod]:
        return comparison_maps(self.classifier, self.settings.seed + number)

    def _original_maps(self, number: int) -> dict[str, Tensor]:
        batch = self._batch(number)
        pathways = {each.method: each.pathway for each in self._drawn(number)}
        return {
            **draw(self.classifier, batch.images, batch.target, pathways),
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
        return self._stated(
            [
                *observe_degradation(batch, maps, self.settings.seed),
                *observe_localisation(batch, maps, self.loader.preprocessing),
            ]
        )

    def _linearity(self, number: int) -> list[Observation]:
        settings = self.settings
        return observe_linearity(
            self._batch(number), self._drawn(number), settings.radii, settings.points, settings.seed
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
        # What was fitted to the classifier, the generator and what stands in for neurons, stays as it is.
        methods, replacement = self._methods(settings.seed), self._replacement.select(batch.target)
        pathways: dict[str, Pathway] = {}
        for name in DRAWN:
            if name == GENERATED and self._generator is not None:
                pathways[name] = generated_pathway(self._generator, classifier, batch.images).under(replacement)
            elif name in settings.methods:
                scores = methods[name](classifier, batch.images, batch.target, settings.granularity)
                pathways[name] = scores.select(settings.map_sparsity).under(replacement)
        randomised = {
            **draw(classifier, batch.images, batch.target, pathways),
            **{
                name: method(classifier, batch.images, batch.target)
                for name, method in self._comparisons(number).items()
                if name != "random"
            },
        }
        return self._stated(
            observe_randomisation(
                batch,
                {name: self._sample_maps[number][name][rows] for name in randomised},
                {name: with_signs(values) for name, values in randomised.items()},
                layer,
            )
        )

    def _cost(self) -> list[Observation]:
        images, settings = self._batch(0).images, self.settings
        images = images[torch.arange(COST_BATCH) % len(images)]
        methods = self._methods(settings.seed)
        timed = CostSettings(
            {name: methods[name] for name in settings.methods if name != GENERATED},
            self._comparisons(0),
            settings.granularity,
            settings.map_sparsity,
            settings.steps,
            self._replacement,
            self.bank.replacement,
            self._generator,
        )
        return observe_cost(self.classifier, images, timed)
