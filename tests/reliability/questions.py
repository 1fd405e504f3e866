"""Requests with the answers that the explainer gives in this process."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from google.protobuf.message import Message

from pathlens.errors import PathlensError
from pathlens.explainer import Explainer
from pathlens.explanation import (
    ExplanationOptions,
    ExplanationRequest,
    ExplanationResult,
    Granularity,
    ImageInput,
    Output,
    PathwaySource,
    Reduction,
    Targets,
)
from pathlens.wire.models import class_pathway_response, model_to_message
from pathlens.wire.requests import image_to_message, options_to_message, request_from_explain, request_from_predict
from pathlens.wire.responses import explain_response, result_from_message
from pathlens.wire.v1 import explanation_service_pb2 as pb
from reliability.case import Case, Item, StreamCase
from reliability.comparison import difference
from reliability.pictures import jpeg, picture, png
from reliability.promises import Circumstances

_CHEAP_BYTES = 2**16
_FROM_CONTRIBUTIONS = (PathwaySource.NEURON_MCT, PathwaySource.NEURON_INTGRAD)


class Questions:
    """Makes valid requests, each with an image of its own, and computes their answers.

    Args:
        explainer: Of the bundle that is served.
        rng: Source of randomness.
    """

    def __init__(self, explainer: Explainer, rng: np.random.Generator) -> None:
        self._explainer = explainer
        self._rng = rng

    def predict(self, side: int | None = None) -> Case:
        """Make a `Predict` case; of a picture of about this width and height, or of anything small."""
        request = pb.PredictRequest(
            image=image_to_message(self.image(side)), prediction_count=int(self._rng.integers(0, 6))
        )
        (answer,) = self._explainer.answer([request_from_predict(request)])
        assert isinstance(answer, ExplanationResult)
        check = partial(_check_predict, expected=answer)
        return Case("Predict", "Predict", (request.SerializeToString(),), check)

    def explain(self, side: int | None = None) -> Case:
        """Make an `Explain` case; of a picture of about this width and height, or of anything small."""
        request, item = self.item(side)
        check = None if item.check is None else partial(_check_explain, item=item)
        return Case("Explain", "Explain", (request.SerializeToString(),), check, item.refusals)

    def batch(self, count: int) -> Case:
        """Make a `BatchExplain` case of so many images."""
        return batch_case("BatchExplain", [self.item() for _ in range(count)])

    def stream(self, count: int, side: int | None = None) -> StreamCase:
        """Make a `StreamExplain` case of so many images."""
        made = {f"{self._rng.integers(2**62):x}": self.item(side) for _ in range(count)}
        payloads = [pb.StreamExplainRequest(id=key, request=request) for key, (request, _) in made.items()]
        return StreamCase(
            "StreamExplain",
            "StreamExplain",
            tuple(payload.SerializeToString() for payload in payloads),
            items={key: item for key, (_, item) in made.items()},
        )

    def class_pathway(self, index: int, with_frequencies: bool) -> Case:
        """Make a `GetClassPathway` case."""
        request = pb.GetClassPathwayRequest(class_index=index, include_frequencies=with_frequencies)
        payload = (request.SerializeToString(),)
        try:
            answer = class_pathway_response(self._explainer.class_pathway(index, with_frequencies))
        except PathlensError as error:
            return Case("GetClassPathway", "GetClassPathway", payload, None, {f"{error.code} {error.reason}"})
        return Case("GetClassPathway", "GetClassPathway", payload, partial(_check_equal, expected=answer))

    def models(self) -> list[Case]:
        """Make a `ListModels` and a `GetModel` case."""
        model = model_to_message(self._explainer.describe())
        return [
            Case(
                "ListModels",
                "ListModels",
                (pb.ListModelsRequest().SerializeToString(),),
                partial(_check_equal, expected=pb.ListModelsResponse(models=[model])),
                needs_worker=False,
            ),
            Case(
                "GetModel",
                "GetModel",
                (pb.GetModelRequest().SerializeToString(),),
                partial(_check_equal, expected=pb.GetModelResponse(model=model)),
                needs_worker=False,
            ),
        ]

    def image(self, side: int | None = None) -> ImageInput:
        """Draw an image: a file, pixels, or the classifier's own input."""
        if side is not None:
            pixels = picture(self._rng, side, side + int(self._rng.integers(0, 9)))
            return png(pixels)
        small = picture(self._rng, *self._rng.integers(9, 33, 2).tolist())
        match self._rng.integers(4):
            case 0:
                return png(small)
            case 1:
                return jpeg(small)
            case 2:
                return small
            case _:
                return self._rng.standard_normal(self._explainer.classifier.input_shape, dtype=np.float32)

    def item(self, side: int | None = None) -> tuple[pb.ExplainRequest, Item]:
        """Make a request to explain an image, and what is right for it.

        Rounding that depends on what is computed together may decide on a neuron: such images are left out.
        """
        while True:
            image = self.image(side)
            options = self._options(self._possible_outputs(image))
            request = pb.ExplainRequest(image=image_to_message(image), options=options_to_message(options))
            wanted = request_from_explain(request)
            (alone,) = self._explainer.answer([wanted])
            if isinstance(alone, PathlensError):
                return request, Item(None, {f"{alone.code} {alone.reason}"})
            # Only small pictures are sent in batches.
            if side is not None or not self._depends_on_neighbours(wanted, alone):
                return request, Item(partial(_check_result, expected=alone))

    def picture_item(self, side: int) -> tuple[pb.ExplainRequest, Item, int]:
        """Make a request whose answer holds two pictures of the image's size, and tell how many bytes they have."""
        options = ExplanationOptions(
            outputs=frozenset({Output.HEATMAP, Output.OVERLAY}), source=PathwaySource.GENERATED
        )
        request = pb.ExplainRequest(
            image=image_to_message(jpeg(picture(self._rng, side, side), 50)), options=options_to_message(options)
        )
        (answer,) = self._explainer.answer([request_from_explain(request)])
        assert isinstance(answer, ExplanationResult)
        return request, Item(partial(_check_result, expected=answer)), explain_response(answer).ByteSize()

    def _depends_on_neighbours(self, request: ExplanationRequest, alone: ExplanationResult) -> bool:
        (together, _) = self._explainer.answer([request, request])
        return not isinstance(together, ExplanationResult) or difference(together, alone) is not None

    def _possible_outputs(self, image: ImageInput) -> list[Output]:
        if isinstance(image, bytes) and len(image) > _CHEAP_BYTES:
            # Drawing them would take most of the load's time.
            return [output for output in Output if output not in (Output.HEATMAP, Output.OVERLAY)]
        is_tensor = not isinstance(image, bytes) and image.dtype == np.float32
        return [output for output in Output if output is not Output.OVERLAY or not is_tensor]

    def _options(self, possible: Sequence[Output]) -> ExplanationOptions:
        choose = self._rng.choice
        source = list(PathwaySource)[self._rng.integers(len(PathwaySource))]
        by_contribution = source in _FROM_CONTRIBUTIONS
        classes = len(self._explainer.labels)
        targets = (
            Targets(),
            Targets(top_k=int(self._rng.integers(1, classes))),
            Targets(class_indices=tuple(choose(classes, 2, replace=False).tolist())),
        )
        return ExplanationOptions(
            targets=targets[self._rng.integers(len(targets))],
            source=source,
            sparsity=float(self._rng.uniform(0.2, 0.8)) if by_contribution and self._rng.random() < 0.5 else None,
            granularity=list(Granularity)[self._rng.integers(2)] if by_contribution else None,
            outputs=frozenset(output for output in possible if self._rng.random() < 0.5),
            reduction=list(Reduction)[self._rng.integers(len(Reduction))],
            top_neurons=int(choose([0, 0, 5])),
            predictions=int(self._rng.integers(1, classes + 1)),
        )


def batch_case(kind: str, items: Sequence[tuple[pb.ExplainRequest, Item]]) -> Case:
    """Make a batch of items.

    Args:
        kind: Under which name it is counted.
        items: Each with its own options.

    Returns:
        The case.
    """
    request = pb.BatchExplainRequest(
        items=[pb.BatchExplainItem(image=one.image, options=one.options) for one, _ in items]
    )
    check = partial(_check_batch, items=[item for _, item in items])
    return Case(kind, "BatchExplain", (request.SerializeToString(),), check, needs_worker=False)


def _check_predict(content: bytes, _: Circumstances, *, expected: ExplanationResult) -> str | None:
    return difference(result_from_message(pb.PredictResponse.FromString(content)), expected)


def _check_explain(content: bytes, _: Circumstances, *, item: Item) -> str | None:
    assert item.check is not None
    return item.check(pb.ExplainResponse.FromString(content))


def _check_result(response: pb.ExplainResponse, *, expected: ExplanationResult) -> str | None:
    return difference(result_from_message(response), expected)


def _check_batch(content: bytes, circumstances: Circumstances, *, items: Sequence[Item]) -> str | None:
    results = pb.BatchExplainResponse.FromString(content).results
    if len(results) != len(items):
        return f"{len(results)} results for {len(items)} items"
    complaints = (item.complaint(result, circumstances) for item, result in zip(items, results, strict=True))
    return next(filter(None, complaints), None)


def _check_equal(content: bytes, _: Circumstances, *, expected: Message) -> str | None:
    actual = type(expected).FromString(content)
    return None if actual == expected else f"another {type(expected).__name__}"
