"""Fitting: from a classifier and images to a generator, class pathways that were put to the test, and a bundle."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pathlens.bundle.manifest import FitPart
from pathlens.bundle.store import Bundle
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.images import ImageSource
from pathlens.description import ClassPathwaySelection
from pathlens.errors import FitError
from pathlens.evaluation.transfer import HeldOut
from pathlens.explainer import Explainer
from pathlens.explanation import PathwaySource
from pathlens.fitting.batch_plan import BatchPlan
from pathlens.fitting.checkpoint import Checkpoint
from pathlens.fitting.division import hold_out, set_apart, thin_out
from pathlens.fitting.held_out_test import HeldOutTest
from pathlens.fitting.progress import FitProgress, Silence
from pathlens.fitting.reading import ImageReader
from pathlens.fitting.reference import measure_reference
from pathlens.fitting.settings import FitSettings
from pathlens.fitting.subject import FitSubject
from pathlens.fitting.survey import Survey, survey
from pathlens.fitting.training_loop import LOST, run_training
from pathlens.generator.class_pathways import ClassPathwaySettings, ClassPathwayTraining
from pathlens.generator.generator import PathwayGenerator
from pathlens.generator.parallel import ProcessGroup
from pathlens.generator.training import GeneratorSettings, GeneratorTraining
from pathlens.pathways.bank import ClassPathwayBank, count_pathways
from pathlens.pathways.neuron_mct import contributions_of_trace
from pathlens.pathways.pathway import Pathway
from pathlens.pathways.reference import ReferenceDistribution
from pathlens.pathways.replacement import Replacement
from pathlens.version import __version__

KILLED = "A process that reads images was killed; is memory short? Lower --workers. The same command goes on later."
SILENCE = Silence()
ALONE = ProcessGroup()


def fit(
    subject: FitSubject,
    settings: FitSettings,
    unfinished: Path,
    progress: FitProgress = SILENCE,
    group: ProcessGroup = ALONE,
    restart: bool = False,
) -> Bundle | None:
    """Fit a bundle, going on where an interrupted fit with the same settings stopped.

    Args:
        subject: What is fitted.
        settings: How.
        unfinished: Folder of the checkpoints, removed by the caller once the bundle is written.
        progress: Shows how far the work is.
        group: The processes that train together.
        restart: Whether to discard an unfinished fit.

    Returns:
        The bundle; None in all processes of a group but the first.

    Raises:
        FitError: If the labels do not fit, no class has enough images, an output is not finite, no held-out image can
            be read, or `unfinished` holds a fit with other settings.
    """
    classifier = subject.classifier
    if len(subject.labels) != classifier.classes:
        raise FitError(f"{len(subject.labels)} labels were given for {classifier.classes} classes.")
    identity = {
        "settings": dict(settings.to_json()),
        "classifier": classifier.fingerprint,
        "preprocessing": subject.preprocessing.to_json(),
        "images": subject.images.fingerprint,
        "held_out_images": subject.held_out_images.fingerprint if subject.held_out_images is not None else None,
        "processes": group.size,
        "pathlens": __version__,
    }
    with Checkpoint(unfinished, identity, group.is_first, restart) as checkpoint:
        group.wait()
        try:
            return _Fit(subject, settings, checkpoint, progress, group).run()
        except RuntimeError as error:
            # Raised wherever the fit is when the system reports that a worker has ended.
            if "DataLoader worker" not in str(error):
                raise
            raise FitError(KILLED) from error


@dataclass(frozen=True, eq=False)
class _Fit:
    subject: FitSubject
    settings: FitSettings
    checkpoint: Checkpoint
    progress: FitProgress
    group: ProcessGroup

    def run(self) -> Bundle | None:
        subject, settings, classifier = self.subject, self.settings, self.subject.classifier
        building, held_out = self._divide()
        seen = self._survey(building)
        readable = seen.positions(range(classifier.classes))
        images = seen.images
        enough = [label for label, count in enumerate(images) if count >= settings.minimum_images]
        self._check(enough, images, len(subject.images) - len(building))
        masks, replacement = self._class_pathways(enough, seen)
        generator = self._generator(readable, seen, replacement)
        if not self.group.is_first:
            return None
        totals = count_pathways(
            (batch.predicted, pathway)
            for batch, pathway in self._pathways(self._reader, readable, "Instance pathways", generator, replacement)
        )
        # In batches of another size, an image between two classes may be predicted as the other one.
        counts = {label: totals[label] for label in enough if label in totals}
        bank = ClassPathwayBank(
            taps=classifier.taps,
            granularity=settings.granularity,
            threshold=settings.threshold,
            counts=counts,
            masks={label: masks[label] for label in counts if label in masks},
            replacement=replacement,
            too_few={label: count for label, count in enumerate(images) if label not in counts},
        ).to(classifier.device)
        self._test(bank, thin_out(held_out, settings.largest_tested), generator, replacement)
        reference = self._reference(bank, held_out, generator)
        return Bundle(
            name=settings.name,
            classifier=classifier,
            preprocessing=subject.preprocessing,
            labels=tuple(subject.labels),
            bank=bank.to("cpu"),
            generator=generator.frozen("cpu") if generator is not None else None,
            reference=reference,
            source=settings.source,
            instance_sparsity=settings.sparsity,
            minimum_images=settings.minimum_images,
            fit=FitPart(
                images=len(readable),
                held_out_images=len(set(held_out) - set(self._held_out_images.reasons)),
                skipped_images=len(subject.skipped),
                seed=settings.seed,
                pathlens_version=__version__,
                torch_version=torch.__version__,
                settings=dict(settings.to_json()),
            ),
        )

    def _divide(self) -> tuple[list[int], list[int]]:
        """Return which of the images build, and which of `_held_out_images` are held out."""
        subject, settings = self.subject, self.settings
        if subject.held_out_images is None:
            return hold_out(len(subject.images), settings.held_out, settings.largest_held_out)
        held_out = thin_out(range(len(subject.held_out_images)), settings.largest_held_out)
        return list(range(len(subject.images))), held_out

    # What each stage finds out; survey and trainings are in the checkpoint once they are done.

    def _survey(self, building: list[int]) -> Survey:
        images, classifier = self.subject.images, self.subject.classifier
        if self.checkpoint.load("survey") is None and self.group.is_first:
            with self.progress.stage("Survey", len(building)) as stage:

                def shown() -> Iterator[tuple[list[int], Tensor]]:
                    for positions, batch in self._reader.read(self._batches(building)):
                        yield positions, batch
                        stage.advance(len(positions))

                seen = survey(classifier, shown(), len(images))
            means, magnitudes = list(seen.means), list(seen.magnitudes)
            self.checkpoint.save("survey", [seen.predicted, means, magnitudes, images.reasons])
        # All processes go on with what the first has seen.
        self.group.wait()
        predicted, means, magnitudes, reasons = self.checkpoint.load("survey")
        self.group.wait()
        images.reasons.update(reasons)
        device = classifier.device
        return Survey(
            classifier.taps,
            classifier.classes,
            predicted,
            tuple(mean.to(device) for mean in means),
            tuple(magnitude.to(device) for magnitude in magnitudes),
        )

    def _check(self, enough: list[int], predicted: list[int], testing: int) -> None:
        settings, images = self.settings, self.subject.images
        needed = 2 if settings.selection is ClassPathwaySelection.TWO_SIDED else 1
        if len(enough) < needed:
            # Whoever lowers the number changes the settings, which are those of the survey's checkpoint as well.
            self.checkpoint.discard()
            raise FitError(
                f"{len(enough) or 'No'} class{'' if len(enough) == 1 else 'es'} of {len(predicted)} got "
                f"{settings.minimum_images} images, and {needed} must: of {len(images)} given, {testing} are held out "
                f"for the test, {len(images.skipped)} could not be read, and at most {max(predicted)} were "
                "predicted as one class. Give more images or lower --minimum-images."
            )

    def _class_pathways(self, enough: list[int], seen: Survey) -> tuple[dict[int, Tensor], Replacement]:
        """Train two-sided class pathways where they are wanted, and the constants of removed neurons with them."""
        settings = self.settings
        replacement = seen.replacement(settings.ablation)
        if settings.selection is not ClassPathwaySelection.TWO_SIDED:
            return {}, replacement
        training_set, validation = self._set_apart(enough, seen)
        plan = self._plan(training_set, settings.class_steps, settings.seed)
        training = ClassPathwayTraining(
            self._training_classifier,
            enough,
            replacement,
            ClassPathwaySettings(
                granularity=settings.granularity,
                steps=settings.class_steps,
                agreement=settings.class_agreement,
                forcing=settings.class_forcing,
            ),
            self._read(validation),
            self.group,
            settings.seed,
        )
        self._train(training, "class-pathways", plan)
        return training.masks(), training.replacement()

    def _generator(self, readable: list[int], seen: Survey, replacement: Replacement) -> PathwayGenerator | None:
        settings = self.settings
        if settings.source is not PathwaySource.GENERATED:
            return None
        # A price that is set needs no validation.
        training_set, validation = readable, list[int]()
        if settings.agreement is not None:
            training_set, validation = self._set_apart(range(self.subject.classifier.classes), seen)
        plan = self._plan(training_set, settings.generator_steps, settings.seed + 1)
        training = GeneratorTraining(
            self._training_classifier,
            seen.magnitudes,
            replacement,
            GeneratorSettings(
                granularity=settings.granularity,
                steps=settings.generator_steps,
                price=settings.price,
                agreement=settings.agreement,
            ),
            self._read(validation),
            self.group,
            settings.seed,
        )
        self._train(training, "generator", plan)
        return training.generator.frozen()

    def _set_apart(self, classes: Collection[int], seen: Survey) -> tuple[list[int], list[int]]:
        """Divide the images of some classes into those that train and those that validate."""
        positions, settings = seen.positions(classes), self.settings
        training, validation = set_apart(positions, seen.predicted, settings.validation, settings.largest_validation)
        # Of so few images, all must do both.
        return (training, validation) if len(validation) >= self.group.size else (positions, positions)

    def _read(self, positions: list[int]) -> Tensor:
        """Read this process's share of some images."""
        share = self.group.share(positions)
        found, images = list[int](), list[Tensor]()
        for read, values in self._reader.read(self._batches(share)):
            found += read
            images.append(values)
        if found != share:
            raise FitError(LOST)
        device = self.subject.classifier.device
        return torch.cat(images).to(device) if images else torch.empty(0, device=device)

    def _plan(self, positions: list[int], steps: int, seed: int) -> BatchPlan:
        plan = BatchPlan(positions, self.settings.training_batch, steps, seed)
        if len(plan[0]) < self.group.size:
            # A process without a share would take no step, and the others would wait for it.
            raise FitError(
                f"A batch of {len(plan[0])} images cannot be shared by {self.group.size} processes; raise "
                "--training-batch, give more images, or start fewer processes."
            )
        return plan

    def _train(self, training: ClassPathwayTraining | GeneratorTraining, name: str, plan: BatchPlan) -> None:
        device = self.subject.classifier.device
        run_training(training, name, plan, self._reader, self.checkpoint, self.progress, self.group, device)

    def _test(
        self, bank: ClassPathwayBank, testing: list[int], generator: PathwayGenerator | None, replacement: Replacement
    ) -> None:
        """Fill the bank's statistics."""
        settings, images = self.settings, self._held_out_images
        batches, pathways = [], []
        for batch, pathway in self._pathways(self._held_out_reader, testing, "Held-out images", generator, replacement):
            batches.append(batch)
            pathways.append(pathway)
        if not batches:
            raise FitError(f"None of the {len(testing)} held-out images could be read: {'; '.join(images.skipped[:3])}")
        held_out = HeldOut(
            torch.cat([batch.images for batch in batches]), torch.cat([batch.probabilities for batch in batches])
        )
        test = HeldOutTest(
            self.subject.classifier,
            held_out,
            Pathway.concatenate(pathways),
            settings.others,
            settings.batch_size,
            settings.seed,
        )
        overlaps = test.overlaps()
        with self.progress.stage("Testing class pathways", len(bank)) as stage:
            for label in bank.counts:
                bank.statistics[label] = test.statistics(bank, label, overlaps.get(label), settings.source)
                stage.advance(1)

    def _reference(
        self, bank: ClassPathwayBank, held_out: list[int], generator: PathwayGenerator | None
    ) -> Mapping[PathwaySource, ReferenceDistribution]:
        """Explain the held-out images as the bundle will when it serves."""
        subject = self.subject
        explainer = Explainer(
            subject.classifier,
            subject.preprocessing,
            subject.labels,
            bank,
            self.settings.sparsity,
            generator=generator,
        )
        with self.progress.stage("Reference explanations", len(held_out)) as stage:

            def shown() -> Iterator[Tensor]:
                for positions, batch in self._held_out_reader.read(self._batches(held_out)):
                    yield batch
                    stage.advance(len(positions))

            return measure_reference(explainer, shown(), (PathwaySource.TRANSFERRED, self.settings.source))

    def _pathways(
        self,
        reader: ImageReader,
        positions: list[int],
        name: str,
        generator: PathwayGenerator | None,
        replacement: Replacement,
    ) -> Iterator[tuple[HeldOut, Pathway]]:
        """Predict images and find the pathway of each prediction, batch by batch."""
        classifier, settings = self.subject.classifier, self.settings
        with self.progress.stage(name, len(positions)) as stage:
            for read, values in reader.read(self._batches(positions)):
                images = values.to(classifier.device)
                if generator is not None:
                    whole = classifier.observe(images)
                    logits, activations = whole.logits, whole.activations
                    predicted = HeldOut(images, logits.softmax(1))
                    yield predicted, generator.pathways(activations, replacement.select(predicted.predicted))
                else:
                    trace = classifier.trace(images)
                    predicted = HeldOut(images, trace.logits.detach().softmax(1))
                    contributions = contributions_of_trace(classifier, trace, predicted.predicted, settings.granularity)
                    pathway = contributions.select(settings.sparsity)
                    yield predicted, pathway.under(replacement.select(predicted.predicted))
                stage.advance(len(read))

    @property
    def _reader(self) -> ImageReader:
        return ImageReader(self.subject.images, self.subject.preprocessing, self.subject.workers)

    @property
    def _held_out_reader(self) -> ImageReader:
        return ImageReader(self._held_out_images, self.subject.preprocessing, self.subject.workers)

    @property
    def _held_out_images(self) -> ImageSource:
        return self.subject.images if self.subject.held_out_images is None else self.subject.held_out_images

    def _batches(self, positions: list[int]) -> list[list[int]]:
        size = self.settings.batch_size
        return [positions[start : start + size] for start in range(0, len(positions), size)]

    @property
    def _training_classifier(self) -> CapturedClassifier:
        return self.subject.classifier.to(dtype=getattr(torch, self.settings.precision))
