"""Requests that cannot be answered: each is refused with its code, its reason and the field at fault."""

import math
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pathlens.classifier.capture import capture
from pathlens.classifier.decoding import DecodingLimits
from pathlens.classifier.preprocessing import Colour, Preprocessing
from pathlens.errors import DeadlineExceededError, PathlensError
from pathlens.explainer import Explainer
from pathlens.explanation import (
    ExplanationOptions,
    ExplanationRequest,
    ExplanationResult,
    Granularity,
    Output,
    PathwaySource,
    Targets,
)
from pathlens.pathways.bank import ClassCounts, ClassPathwayBank
from tiny_bundle import INPUT_SHAPE, LABELS, PREPROCESSING, pixels, png, tensor, tiny_bundle, tiny_explainer

MCT = PathwaySource.NEURON_MCT
# A PNG whose 500 colour profiles take 2 ms each to inflate.
_PROFILE = b"iCCP" + b"name\0\0" + zlib.compress(bytes(2**20), 9)
_CHUNK = struct.pack(">I", len(_PROFILE) - 4) + _PROFILE + struct.pack(">I", zlib.crc32(_PROFILE))
SLOW = png(pixels(0))[:33] + _CHUNK * 500 + png(pixels(0))[33:]
FITTED = pytest.mark.parametrize("source", [PathwaySource.TRANSFERRED, PathwaySource.GENERATED])


def refusal(image: Any, options: ExplanationOptions | None = None, explainer: Explainer | None = None) -> PathlensError:
    (error,) = (explainer or tiny_explainer()).answer([ExplanationRequest(image, options)])
    assert isinstance(error, PathlensError)
    return error


def facts(error: PathlensError) -> tuple[str, str, str]:
    return error.code, error.reason, error.field


@given(sparsity=st.floats())
@settings(max_examples=50)
def test_sparsity_must_lie_between_zero_and_one(sparsity: float) -> None:
    assume(not 0 <= sparsity < 1)
    error = refusal(tensor(0), ExplanationOptions(source=MCT, sparsity=sparsity))
    assert facts(error) == ("INVALID_ARGUMENT", "OPTION_INVALID", "options.sparsity")


@pytest.mark.parametrize("sparsity", [math.nan, 1.0, -1e-9, math.inf])
def test_sparsity_at_the_edges_is_refused(sparsity: float) -> None:
    error = refusal(tensor(0), ExplanationOptions(source=MCT, sparsity=sparsity))
    assert error.metadata == {"option": "sparsity", "value": str(sparsity)}


@FITTED
@pytest.mark.parametrize("sparsity", [0.0, 0.5, math.nan])
def test_a_fitted_pathway_takes_no_sparsity(source: PathwaySource, sparsity: float) -> None:
    error = refusal(tensor(0), ExplanationOptions(source=source, sparsity=sparsity))
    assert facts(error) == ("INVALID_ARGUMENT", "OPTION_INVALID", "options.sparsity")
    assert source.name in error.message


@FITTED
def test_a_fitted_pathway_has_the_granularity_of_the_bundle(source: PathwaySource) -> None:
    error = refusal(tensor(0), ExplanationOptions(source=source, granularity=Granularity.UNIT))
    assert facts(error) == ("FAILED_PRECONDITION", "GRANULARITY_UNAVAILABLE", "options.granularity")
    assert error.metadata == {"available": "CHANNEL"}


def test_a_source_that_the_bundle_lacks_is_refused_with_the_way_to_have_it() -> None:
    explainer = replace(tiny_bundle(), generator=None).explainer()
    error = refusal(tensor(0), ExplanationOptions(source=PathwaySource.GENERATED), explainer)
    assert facts(error) == ("FAILED_PRECONDITION", "PATHWAY_SOURCE_UNAVAILABLE", "options.source")
    assert error.metadata["source"] == "GENERATED"
    assert error.metadata["available"].split(", ") == [source.name for source in explainer.sources]
    assert PathwaySource.GENERATED not in explainer.sources
    assert "--source generated" in error.message


def test_a_generator_of_another_granularity_than_the_bank_is_no_explainer() -> None:
    bundle = replace(tiny_bundle(), generator=tiny_bundle(Granularity.UNIT).generator)
    with pytest.raises(ValueError, match="unit pathways, the bank holds channel"):
        bundle.explainer()


def test_a_bundle_without_class_pathways_offers_and_answers_contributions_alone() -> None:
    bundle = tiny_bundle()
    bank = ClassPathwayBank(bundle.classifier.taps, Granularity.CHANNEL, 0.5, {})
    explainer = Explainer(bundle.classifier, PREPROCESSING, LABELS, bank, 0.5)
    assert PathwaySource.TRANSFERRED not in explainer.sources
    assert explainer.describe().class_pathway_count == 0
    assert refusal(tensor(0), ExplanationOptions(), explainer).reason == "CLASS_PATHWAY_MISSING"
    (result,) = explainer.explain([tensor(0)], ExplanationOptions(source=MCT))
    assert result.explanations[0].class_pathway_iou is None


def test_a_negative_number_of_top_neurons_is_refused() -> None:
    error = refusal(tensor(0), ExplanationOptions(top_neurons=-1))
    assert facts(error) == ("INVALID_ARGUMENT", "OPTION_INVALID", "options.top_neurons")


def test_an_overlay_needs_pixels_to_be_drawn_on() -> None:
    error = refusal(tensor(0), ExplanationOptions(outputs=frozenset({Output.OVERLAY})))
    assert facts(error) == ("INVALID_ARGUMENT", "OPTION_INVALID", "options.outputs")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [(0, 0, 0), (2, 7, 7)])
def test_a_tensor_must_be_finite(value: float, position: tuple[int, int, int]) -> None:
    image = tensor(0)
    image[position] = value
    assert facts(refusal(image)) == ("INVALID_ARGUMENT", "TENSOR_NOT_FINITE", "image")


@pytest.mark.parametrize("shape", [(), (8, 8), (1, 8, 8), (3, 8, 9), (8, 8, 3), (1, 3, 8, 8), (3, 0, 8)])
def test_a_tensor_must_have_the_shape_of_the_input(shape: tuple[int, ...]) -> None:
    error = refusal(np.zeros(shape, np.float32))
    assert facts(error) == ("INVALID_ARGUMENT", "TENSOR_INVALID", "image")
    assert error.metadata == {"shape": str(list(shape)), "expected_shape": str(list(INPUT_SHAPE))}


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int8, np.int64, np.bool_, ">f4"])
def test_a_tensor_must_be_of_a_known_type(dtype: Any) -> None:
    assert facts(refusal(np.zeros(INPUT_SHAPE, dtype))) == ("INVALID_ARGUMENT", "TENSOR_INVALID", "image")


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 5), (5, 0, 3), (5, 5, 4), (5, 5, 1), (5,), (2, 5, 5, 3)])
def test_pixels_must_make_a_picture(shape: tuple[int, ...]) -> None:
    error = refusal(np.zeros(shape, np.uint8))
    assert facts(error) == ("INVALID_ARGUMENT", "TENSOR_INVALID", "image")


@pytest.mark.parametrize("content", [b"", b"not an image", png(pixels(0))[:50], b"GIF89a", bytes(1000)])
def test_an_encoded_image_must_be_one(content: bytes) -> None:
    error = refusal(content)
    assert error.code == "INVALID_ARGUMENT"
    assert error.reason in {"IMAGE_EMPTY", "IMAGE_UNDECODABLE"}
    assert error.field == "image"


@pytest.mark.parametrize("image", [pixels(0, 11, 10), png(pixels(0, 11, 10))])
def test_an_image_over_the_limit_of_the_explainer_is_refused(image: Any) -> None:
    bundle = tiny_bundle()
    explainer = Explainer(
        bundle.classifier, PREPROCESSING, LABELS, bundle.bank, 0.5, limits=DecodingLimits(max_pixels=109)
    )
    assert facts(refusal(image, explainer=explainer)) == ("INVALID_ARGUMENT", "IMAGE_TOO_LARGE", "image")


def test_an_image_that_takes_too_long_is_refused_alone() -> None:
    bundle = tiny_bundle()
    explainer = Explainer(
        bundle.classifier, PREPROCESSING, LABELS, bundle.bank, 0.5, limits=DecodingLimits(seconds=0.05)
    )
    answers = explainer.answer([ExplanationRequest(image, None) for image in (png(pixels(0)), SLOW, png(pixels(1)))])
    assert [getattr(answer, "reason", "") for answer in answers] == ["", "IMAGE_TOO_SLOW", ""]


def test_decoding_ends_where_the_deadline_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every look at the clock takes a second.
    seconds = iter(range(10_000))
    monkeypatch.setattr("pathlens.explainer.item.time.time", lambda: float(next(seconds)))
    (answer,) = tiny_explainer().answer([ExplanationRequest(SLOW, None, deadline=100.0)])
    assert isinstance(answer, DeadlineExceededError)
    assert next(seconds) == 102


def test_the_image_is_checked_before_the_options() -> None:
    assert refusal(b"", ExplanationOptions(sparsity=7.0)).reason == "IMAGE_EMPTY"


def test_nothing_is_computed_for_a_refused_request(monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = tiny_explainer()
    monkeypatch.setattr(explainer.classifier, "run", lambda *_: pytest.fail("the classifier ran"))
    assert refusal(tensor(0), ExplanationOptions(top_neurons=-1), explainer).reason == "OPTION_INVALID"


class Cancelling(nn.Module):
    """Two large features that cancel: without one of them, the other is beyond the largest float32."""

    def __init__(self) -> None:
        super().__init__()
        self.difference, self.twice = nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.difference.weight.copy_(torch.tensor([[3.0, -3.0]]))
            self.twice.weight.copy_(torch.tensor([[2.0], [0.0]]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.twice(F.relu(self.difference(F.relu(images.flatten(1)))))
        return logits


class Curved(nn.Module):
    """The gradient of this activation function is NaN where its cube overflows; its output is finite."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, images: Tensor) -> Tensor:
        return F.gelu(images.flatten(1), approximate="tanh") * self.scale


def two_pixel_explainer(model: nn.Module, kept: list[int]) -> Explainer:
    classifier = capture(model, torch.rand(2, 1, 1, 2))
    counts = {label: ClassCounts(torch.tensor(kept, dtype=torch.int32), 1, 0.0) for label in (0, 1)}
    bank = ClassPathwayBank(classifier.taps, Granularity.UNIT, 0.5, counts)
    preprocessing = Preprocessing(1, 2, mean=(0.0,), std=(1.0,), colour=Colour.GREY)
    return Explainer(classifier, preprocessing, ("one", "other"), bank, 0.3)


FIRST = Targets(class_indices=(0,))
TAME = np.array([[[2.0, 1.0]]], np.float32)
WILD = np.array([[[1e38, 0.9e38]]], np.float32)
MAP_AND_CHECK = ExplanationOptions(FIRST)
CHECK_ALONE = ExplanationOptions(FIRST, outputs=frozenset({Output.FAITHFULNESS}))


@pytest.mark.parametrize("options", [MAP_AND_CHECK, CHECK_ALONE])
def test_a_pathway_network_whose_output_overflows_is_refused(options: ExplanationOptions) -> None:
    explainer = two_pixel_explainer(Cancelling(), [1, 0, 1])
    tame, wild, last = explainer.answer([ExplanationRequest(image, options) for image in (TAME, WILD, TAME)])
    assert isinstance(wild, PathlensError)
    assert facts(wild) == ("INVALID_ARGUMENT", "OUTPUT_NOT_FINITE", "image")
    for answer in (tame, last):
        assert isinstance(answer, ExplanationResult)
        check = answer.explanations[0].faithfulness
        assert check is not None
        # Whole network 2 · 3 · (2 - 1) = 6, pathway 2 · 3 · 2 = 12, against a logit of 0.
        assert check.confidence == pytest.approx(1 / (1 + math.exp(-6)))
        assert check.pathway_confidence == pytest.approx(1 / (1 + math.exp(-12)))


def test_contributions_that_overflow_are_refused_alone() -> None:
    explainer = two_pixel_explainer(Cancelling(), [1, 1, 1])
    options = ExplanationOptions(FIRST, MCT)
    tame, wild, last = explainer.answer([ExplanationRequest(image, options) for image in (TAME, WILD, TAME)])
    assert isinstance(wild, PathlensError)
    assert facts(wild) == ("INVALID_ARGUMENT", "OUTPUT_NOT_FINITE", "image")
    assert isinstance(tame, ExplanationResult)
    assert isinstance(last, ExplanationResult)


def test_top_neurons_whose_contributions_overflow_are_refused_alone() -> None:
    explainer = two_pixel_explainer(Cancelling(), [1, 1, 1])
    listed, plain = ExplanationOptions(FIRST, top_neurons=2), ExplanationOptions(FIRST)
    wild, tame, unlisted = explainer.answer(
        [ExplanationRequest(WILD, listed), ExplanationRequest(TAME, listed), ExplanationRequest(WILD, plain)]
    )
    assert isinstance(wild, PathlensError)
    assert wild.reason == "OUTPUT_NOT_FINITE"
    assert isinstance(tame, ExplanationResult)
    # a · ∂f/∂a of the two pixels and of their difference: 2 · 6, 1 · -6 and 3 · 2.
    listed_contributions = [neuron.contribution for neuron in tame.explanations[0].top_neurons]
    assert [abs(contribution) for contribution in listed_contributions] == pytest.approx([12, 6])
    assert isinstance(unlisted, ExplanationResult)


def test_a_gradient_that_is_not_a_number_is_refused() -> None:
    explainer = two_pixel_explainer(Curved(), [1, 1])
    wild = ExplanationRequest(np.array([[[1e20, 1.0]]], np.float32), MAP_AND_CHECK)
    refused, answered = explainer.answer([wild, ExplanationRequest(TAME, MAP_AND_CHECK)])
    assert isinstance(refused, PathlensError)
    assert refused.reason == "OUTPUT_NOT_FINITE"
    assert isinstance(answered, ExplanationResult)


@pytest.mark.parametrize("options", [None, MAP_AND_CHECK, ExplanationOptions(FIRST, MCT)])
def test_a_finite_tensor_that_overflows_is_refused(options: ExplanationOptions | None) -> None:
    image = np.full(INPUT_SHAPE, 3e38, np.float32)
    assert facts(refusal(image, options)) == ("INVALID_ARGUMENT", "OUTPUT_NOT_FINITE", "image")
