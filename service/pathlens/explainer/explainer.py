"""The explainer: a batch of requests in, a batch of results out.

Items of one batch may ask for different sources, targets and outputs. What can be computed together is: one forward
pass predicts the items, one pass of the generator makes the pathways of all generated items from what that pass
computed anyway, one backward pass for each rank of target finds the contributions of all NeuronMCT items, and one
forward and backward pass of the pathway network serves every target of every item of one ablation, whatever its source.
Stored pathways are apart: they are known beforehand, and run as slices, class by class, where that takes less time.

What computes is a `Backend`, except for contributions: these are PyTorch's alone.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image

from pathlens.attribution.rendering import fit_within
from pathlens.classifier.acceleration import accelerate
from pathlens.classifier.captured import CapturedClassifier, Trace
from pathlens.classifier.decoding import DecodingLimits, check_pixels, decode_picture
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.description import ClassPathway, ModelDescription, TapDescription
from pathlens.errors import InternalError, PathlensError
from pathlens.explainer.backend import Backend, GenerationRun, chunks
from pathlens.explainer.checks import (
    check_finite,
    check_options,
    check_overlay,
    check_prediction_count,
    check_tensor,
)
from pathlens.explainer.class_names import ClassNames
from pathlens.explainer.contribution_rows import ContributionRows
from pathlens.explainer.decision import decide
from pathlens.explainer.fit_comparison import FitComparison
from pathlens.explainer.generation import generate_rows
from pathlens.explainer.item import Item, PredictionPass, Row, errors_of
from pathlens.explainer.pathway_runs import run_pathways
from pathlens.explainer.results import ResultBuilder, tap_frequencies
from pathlens.explainer.stage_clock import StageClock
from pathlens.explainer.torch_backend import TorchBackend
from pathlens.explanation import (
    ExplanationOptions,
    ExplanationRequest,
    ExplanationResult,
    ImageInput,
    Output,
    PathwaySource,
    ServedModel,
)
from pathlens.generator.generator import PathwayGenerator
from pathlens.pathways.bank import ClassPathwayBank
from pathlens.pathways.reference import ReferenceDistribution
from pathlens.slicing.cache import DEFAULT_BYTES

PICTURES = frozenset({Output.HEATMAP, Output.OVERLAY})


class Explainer:
    """Predicts and explains with one fitted classifier.

    It keeps no state between calls but slices of stored pathways, and may be used from several threads.

    Args:
        classifier: The captured classifier.
        preprocessing: From pixels to the classifier's input.
        labels: One per class.
        bank: The stored class pathways.
        default_sparsity: Of contribution sources when a request states none, in [0, 1).
        model: Name, version and bundle hash, repeated in every result.
        limits: What images are accepted.
        generator: Makes the pathway of an image, of the granularity of the bank; None without one.
        reference: What the fit saw of explanations, by source; answers say how typical they are of it.
        backend: What computes, made for this classifier, bank and generator; None for PyTorch.
        slice_bytes: What PyTorch may keep of slices of the stored pathways, of which then less is computed; 0 for none.
            Another backend has its own limit.
    """

    def __init__(
        self,
        classifier: CapturedClassifier,
        preprocessing: Preprocessing,
        labels: Sequence[str],
        bank: ClassPathwayBank,
        default_sparsity: float,
        model: ServedModel = ServedModel(),
        limits: DecodingLimits = DecodingLimits(),
        generator: PathwayGenerator | None = None,
        reference: Mapping[PathwaySource, ReferenceDistribution] = MappingProxyType({}),
        backend: Backend | None = None,
        slice_bytes: int = DEFAULT_BYTES,
    ) -> None:
        if len(labels) != classifier.classes:
            raise ValueError(
                f"{len(labels)} labels for {classifier.classes} classes; expected one label for each class"
            )
        if generator is not None and generator.granularity is not bank.granularity:
            raise ValueError(
                f"the generator makes {generator.granularity.value} pathways, the bank holds {bank.granularity.value} "
                "pathways; expected one granularity"
            )
        self.classifier = classifier
        self._accelerated = accelerate(classifier)
        self.preprocessing = preprocessing
        self.labels = tuple(labels)
        self.bank = bank.to(classifier.device)
        self.generator = None if generator is None else generator.frozen(classifier.device)
        self.backend: Backend = backend or TorchBackend(classifier, self.bank, self.generator, slice_bytes)
        self.default_sparsity = default_sparsity
        self.model = model
        self.limits = limits
        self._classes = ClassNames(self.labels)
        self._contributions = ContributionRows(self._accelerated, bank.granularity, default_sparsity)
        comparison = FitComparison(reference, bank.granularity, default_sparsity)
        self._results = ResultBuilder(self.labels, preprocessing, self.bank, comparison)

    def warm(self, seconds: float) -> None:
        """Prepare for requests that are likely: slice the pathways of the classes that the fit saw most often.

        Args:
            seconds: About how long it may take.
        """
        self.backend.slices.warm(seconds)

    def predict(self, images: Sequence[ImageInput], predictions: int = 5) -> list[ExplanationResult]:
        """Predict the classes of images; raises the first error."""
        return _raise_first(self.answer([ExplanationRequest(image, None, predictions) for image in images]))

    def explain(
        self, images: Sequence[ImageInput], options: ExplanationOptions = ExplanationOptions()
    ) -> list[ExplanationResult]:
        """Predict and explain images; raises the first error."""
        return _raise_first(self.answer([ExplanationRequest(image, options) for image in images]))

    def answer(self, requests: Sequence[ExplanationRequest]) -> list[ExplanationResult | PathlensError]:
        """Answer every request: with a result, or with the error that concerns this request alone."""
        clock = StageClock(self.classifier.device)
        items = [Item(request) for request in requests]
        self._answer([item for item in items if not item.is_integrated], clock)
        # What takes many passes comes last, one by one: it must not use up the time of the others.
        for item in items:
            if item.is_integrated:
                self._answer([item], clock)
        seconds = clock.stop()
        for item in items:
            if item.result is not None:
                item.result.stage_seconds.update(seconds)
        return [item.result or item.error or InternalError("No result was computed.") for item in items]

    def _answer(self, items: Sequence[Item], clock: StageClock) -> None:
        """Take items through all stages together; each then has a result or an error."""
        clock.switch("decode")
        for item in items:
            if not item.expire():
                with errors_of(item):
                    self._decode(item)
        for kind in PredictionPass:
            for chunk in chunks([item for item in items if item.prediction_pass is kind]):
                if live := [item for item in chunk if not item.expire()]:
                    with errors_of(*live):
                        self._predict(live, kind, clock)
        rows = [row for item in items if item.error is None for row in item.rows if row.needs_run]
        if rows:
            clock.switch("gradient")
            run_pathways(self.backend, self.classifier, rows)
        clock.switch("encode")
        live = [item for item in items if not item.expire()]
        with errors_of(*live):
            self._results.measure([row for item in live for row in item.rows])
        for item in live:
            if not item.expire():
                with errors_of(item):
                    item.result = self._build_result(item)

    def class_pathway(self, selector: int | str, with_frequencies: bool = False) -> ClassPathway:
        """Return the stored pathway of a class.

        Args:
            selector: Index or label of the class.
            with_frequencies: Whether to add how often the instance pathways keep each neuron: 32 times as much data
                as the pathway itself.

        Raises:
            NotFoundError: If there is no such class.
            FailedPreconditionError: If the class has no stored pathway.
        """
        index = self._classes.index(selector, field="class")
        stored = self._results.stored(index)
        statistics = self.bank.statistics[index]
        return ClassPathway(
            class_index=index,
            label=self.labels[index],
            granularity=stored.pathway.granularity,
            ablation=stored.pathway.ablation,
            sparsity=stored.sparsity,
            pathway=stored.masks,
            statistics=statistics,
            frequencies=tap_frequencies(self.bank, index) if with_frequencies else (),
            model=self.model,
        )

    def describe(self) -> ModelDescription:
        """Describe what is served."""
        return ModelDescription(
            model=self.model,
            classifier_sha256=self.classifier.fingerprint,
            labels=self.labels,
            input_shape=self.classifier.input_shape,
            taps=tuple(TapDescription(tap.name, tap.activation, tap.shape) for tap in self.classifier.taps),
            sources=self.sources,
            granularity=self.bank.granularity,
            ablation=self.bank.replacement.ablation,
            default_sparsity=self.default_sparsity,
            class_pathway_count=len(self.bank),
            classes_without_pathway=tuple(index for index in range(len(self.labels)) if index not in self.bank),
        )

    @property
    def sources(self) -> tuple[PathwaySource, ...]:
        """The pathway sources that this explainer can answer."""
        stored = (PathwaySource.TRANSFERRED,) if len(self.bank) else ()
        generated = (PathwaySource.GENERATED,) if self.generator is not None else ()
        return (*stored, *generated, PathwaySource.NEURON_MCT, PathwaySource.NEURON_INTGRAD)

    # Stage "decode": bytes or arrays into the classifier's input.

    def _decode(self, item: Item) -> None:
        image = item.request.image
        picture: Image.Image | None = None
        if isinstance(image, bytes):
            picture = decode_picture(image, self.limits, item.check_time)
        elif image.dtype != np.float32:
            picture = Image.fromarray(check_pixels(np.asarray(image), self.limits))
        check_prediction_count(item.request.prediction_count)
        if item.request.options is not None:
            check_options(item.options, self.sources, self.bank.granularity, self.classifier.classes)
            check_overlay(item.options, picture is not None)
        if picture is not None:
            item.tensor = torch.from_numpy(self.preprocessing.apply_to_picture(picture))
            # Only pictures need the pixels again, and no picture is larger: whole photographs of a batch would add up.
            item.pixels = fit_within(np.array(picture)) if item.options.outputs & PICTURES else None
        else:
            item.tensor = check_tensor(np.asarray(image, dtype=np.float32), self.classifier.input_shape)

    # Stages "predict" and "pathway": logits, targets and a pathway for each target.

    def _predict(self, items: Sequence[Item], kind: PredictionPass, clock: StageClock) -> None:
        clock.switch("predict")
        images = torch.stack([item.tensor for item in items]).to(self.classifier.device)
        trace: Trace | None = None
        generation: GenerationRun | None = None
        if kind is PredictionPass.TRACED:
            trace = self._accelerated.trace(images)
            logits = trace.logits.detach()
        elif kind is PredictionPass.RECORDED:
            generation = self.backend.generate(images)
            logits = generation.logits
        else:
            logits = self.backend.logits(images)
        targets: list[list[int]] = []
        decisions = decide(logits, max(item.ranking_depth for item in items))
        for item, row, decision in zip(items, logits, decisions, strict=True):
            targets.append([])
            with errors_of(item):
                check_finite(row)
                item.decision = decision
                if item.request.options is not None:
                    targets[-1] = self._classes.targets(item.options.targets, item.decision.ranking)
        if any(targets):
            clock.switch("pathway")
        if trace is not None:
            self._contributions.select(items, targets, trace)
            return
        if generation is not None and any(targets):
            assert self.generator is not None, "the options were checked"  # noqa: S101
            generate_rows(self.classifier, self.generator, items, targets, generation.pathway())
            return
        for item, classes in zip(items, targets, strict=True):
            if classes:
                with errors_of(item):
                    if item.is_integrated:
                        item.rows = self._contributions.integrate(item, classes)
                    else:
                        item.rows = self._transfer(item, classes)

    def _transfer(self, item: Item, classes: Sequence[int]) -> list[Row]:
        return [Row(item, target, self._results.stored(target).pathway, is_stored=True) for target in classes]

    # Stage "encode": tensors into the result's numbers, masks and pictures.

    def _build_result(self, item: Item) -> ExplanationResult:
        explanations = tuple(self._results.explanation(row) for row in item.rows)
        return ExplanationResult(self._results.predictions(item), explanations, model=self.model)


def _raise_first(answers: Sequence[ExplanationResult | PathlensError]) -> list[ExplanationResult]:
    for answer in answers:
        if isinstance(answer, PathlensError):
            raise answer
    return [answer for answer in answers if isinstance(answer, ExplanationResult)]
