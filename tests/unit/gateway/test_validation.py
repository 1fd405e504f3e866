import io
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pathlens.errors import InvalidRequestError, NotFoundError, PathlensError
from pathlens.explanation import MAX_INTEGRATION_STEPS
from pathlens.gateway.settings import GatewaySettings
from pathlens.gateway.validation import (
    check_class_pathway,
    check_explain,
    check_image,
    check_options,
    check_stream_id,
)
from pathlens.wire.v1 import explanation_service_pb2 as messages

MODEL = messages.Model(model=messages.ServedModel(name="digits"), labels=["zero", "one", "two"])
LIMIT = 1000
SETTINGS = GatewaySettings(max_image_bytes=LIMIT)
UNKNOWN: Any = 99


def tensor(shape: list[int], size: int, data_type: Any = messages.DATA_TYPE_UINT8) -> messages.Image:
    return messages.Image(tensor=messages.Tensor(data_type=data_type, shape=shape, data=bytes(size)))


def refusal_of_image(image: messages.Image) -> tuple[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        check_image(image, SETTINGS)
    return caught.value.reason, caught.value.field


def refusal_of_options(options: messages.ExplanationOptions) -> tuple[type[PathlensError], str, str]:
    with pytest.raises(PathlensError) as caught:
        check_options(options, MODEL)
    return type(caught.value), caught.value.reason, caught.value.field


def test_an_encoded_image_within_the_limit_passes() -> None:
    check_image(messages.Image(encoded=bytes(LIMIT)), SETTINGS)


def test_an_image_must_be_there() -> None:
    assert refusal_of_image(messages.Image()) == ("IMAGE_MISSING", "image")


def test_an_encoded_image_must_have_bytes() -> None:
    assert refusal_of_image(messages.Image(encoded=b"")) == ("IMAGE_EMPTY", "image.encoded")


def test_an_encoded_image_must_not_exceed_the_limit() -> None:
    assert refusal_of_image(messages.Image(encoded=bytes(LIMIT + 1))) == ("IMAGE_TOO_LARGE", "image")


def test_a_tensor_must_not_exceed_the_limit() -> None:
    assert refusal_of_image(tensor([LIMIT + 1, 1], LIMIT + 1)) == ("IMAGE_TOO_LARGE", "image")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_of_too_many_pixels_is_refused_by_its_header(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, kind)
    file = messages.Image(encoded=buffer.getvalue())
    check_image(file, GatewaySettings(max_image_pixels=600))
    with pytest.raises(InvalidRequestError) as caught:
        check_image(file, GatewaySettings(max_image_pixels=599))
    assert (caught.value.reason, caught.value.field) == ("IMAGE_TOO_LARGE", "image")


def test_a_file_that_does_not_tell_its_size_is_left_to_the_handler() -> None:
    check_image(messages.Image(encoded=b"\x89PNG\r\n\x1a\n"), GatewaySettings(max_image_pixels=1))


@pytest.mark.parametrize(
    ("shape", "data_type"),
    [
        ([30, 20], messages.DATA_TYPE_UINT8),
        ([30, 20, 3], messages.DATA_TYPE_UINT8),
        ([3, 30, 20], messages.DATA_TYPE_FLOAT32),
        ([1, 30, 20], messages.DATA_TYPE_FLOAT32),
    ],
)
def test_the_pixels_of_a_tensor_are_its_height_times_its_width(shape: list[int], data_type: Any) -> None:
    image = tensor(shape, math.prod(shape) * (1 if data_type == messages.DATA_TYPE_UINT8 else 4), data_type)
    check_image(image, GatewaySettings(max_image_pixels=600))
    with pytest.raises(InvalidRequestError) as caught:
        check_image(image, GatewaySettings(max_image_pixels=599))
    assert caught.value.reason == "IMAGE_TOO_LARGE"


@given(
    st.sampled_from([(np.uint8, messages.DATA_TYPE_UINT8), (np.float32, messages.DATA_TYPE_FLOAT32)]),
    st.lists(st.integers(min_value=1, max_value=6), min_size=2, max_size=3),
)
def test_every_array_that_numpy_can_make_of_a_supported_type_passes(types: Any, shape: list[int]) -> None:
    numpy_type, data_type = types
    data = np.zeros(shape, dtype=numpy_type).tobytes()
    check_image(messages.Image(tensor=messages.Tensor(data_type=data_type, shape=shape, data=data)), SETTINGS)


@given(
    st.lists(st.integers(min_value=-(2**63), max_value=2**63 - 1), max_size=6),
    st.integers(min_value=0, max_value=7),
    st.binary(max_size=64),
)
def test_any_other_tensor_is_refused_with_a_reason(shape: list[int], data_type: Any, data: bytes) -> None:
    element_bytes = {1: 1, 2: 4}.get(data_type)
    if element_bytes and len(shape) in (2, 3) and min(shape) > 0 and math.prod(shape) * element_bytes == len(data):
        return
    image = messages.Image(tensor=messages.Tensor(data_type=data_type, shape=shape, data=data))
    reason, field = refusal_of_image(image)
    assert reason == "TENSOR_INVALID"
    assert field.startswith("image.tensor.")


@pytest.mark.parametrize(
    ("image", "field"),
    [
        (tensor([2, 2], 4, messages.DATA_TYPE_UNSPECIFIED), "image.tensor.data_type"),
        (tensor([2, 2], 4, 99), "image.tensor.data_type"),
        (tensor([], 1), "image.tensor.shape"),
        (tensor([1, 2, 2, 3], 12), "image.tensor.shape"),
        (tensor([0, 0], 0), "image.tensor.shape"),
        (tensor([-2, -2], 4), "image.tensor.shape"),
        (tensor([2, 2], 5), "image.tensor.data"),
        (tensor([3, 2, 2], 12, messages.DATA_TYPE_FLOAT32), "image.tensor.data"),
    ],
)
def test_a_wrong_tensor_names_the_field_at_fault(image: messages.Image, field: str) -> None:
    assert refusal_of_image(image) == ("TENSOR_INVALID", field)


@given(st.floats(min_value=0.0, max_value=1.0, exclude_max=True))
def test_a_sparsity_in_the_half_open_unit_interval_passes(sparsity: float) -> None:
    check_options(messages.ExplanationOptions(sparsity=sparsity), MODEL)


@given(st.floats().filter(lambda value: not 0.0 <= value < 1.0))
def test_any_other_sparsity_is_refused(sparsity: float) -> None:
    refusal = refusal_of_options(messages.ExplanationOptions(sparsity=sparsity))
    assert refusal == (InvalidRequestError, "OPTION_INVALID", "options.sparsity")


@given(st.floats().filter(lambda value: not 1e-6 <= value <= 1e6))
def test_a_linearity_radius_that_is_none_is_refused(radius: float) -> None:
    refusal = refusal_of_options(messages.ExplanationOptions(linearity_radius=radius))
    assert refusal == (InvalidRequestError, "OPTION_INVALID", "options.linearity_radius")


def test_more_steps_of_integration_than_the_limit_are_refused() -> None:
    check_options(messages.ExplanationOptions(integration_steps=MAX_INTEGRATION_STEPS), MODEL)
    refusal = refusal_of_options(messages.ExplanationOptions(integration_steps=MAX_INTEGRATION_STEPS + 1))
    assert refusal == (InvalidRequestError, "OPTION_INVALID", "options.integration_steps")


def test_options_may_be_left_out() -> None:
    check_options(messages.ExplanationOptions(), MODEL)


@pytest.mark.parametrize("field", ["source", "granularity", "reduction"])
def test_an_unknown_enum_number_is_refused(field: str) -> None:
    fields: dict[str, Any] = {field: 99}
    refusal = refusal_of_options(messages.ExplanationOptions(**fields))
    assert refusal == (InvalidRequestError, "OPTION_INVALID", f"options.{field}")


@pytest.mark.parametrize("output", [messages.OUTPUT_UNSPECIFIED, 99])
def test_an_output_that_is_none_is_refused(output: Any) -> None:
    refusal = refusal_of_options(messages.ExplanationOptions(outputs=[messages.OUTPUT_MAP, output]))
    assert refusal == (InvalidRequestError, "OPTION_INVALID", "options.outputs")


def test_the_most_probable_classes_are_no_more_than_all_classes() -> None:
    check_options(messages.ExplanationOptions(targets=messages.Targets(top_k=3)), MODEL)
    refusal = refusal_of_options(messages.ExplanationOptions(targets=messages.Targets(top_k=4)))
    assert refusal == (InvalidRequestError, "OPTION_INVALID", "options.targets.top_k")


@pytest.mark.parametrize("index", [-1, 3])
def test_a_class_index_out_of_range_is_not_found(index: int) -> None:
    refusal = refusal_of_options(messages.ExplanationOptions(targets=messages.Targets(class_indices=[0, index])))
    assert refusal == (NotFoundError, "CLASS_NOT_FOUND", "options.targets.class_indices")


def test_an_unknown_label_is_not_found() -> None:
    refusal = refusal_of_options(messages.ExplanationOptions(targets=messages.Targets(labels=["one", "ten"])))
    assert refusal == (NotFoundError, "CLASS_NOT_FOUND", "options.targets.labels")


def test_class_zero_is_a_class_like_any_other() -> None:
    check_options(messages.ExplanationOptions(targets=messages.Targets(class_indices=[0], labels=["zero"])), MODEL)


def test_options_of_absurd_length_are_refused_before_they_are_read() -> None:
    targets = messages.Targets(class_indices=[0] * 100_000)
    refusal = refusal_of_options(messages.ExplanationOptions(targets=targets))
    assert refusal == (InvalidRequestError, "OPTION_INVALID", "options.targets")
    refusal = refusal_of_options(messages.ExplanationOptions(targets=messages.Targets(labels=["x" * 70_000])))
    assert refusal == (InvalidRequestError, "OPTION_INVALID", "options")


@pytest.mark.parametrize(
    ("options", "field", "value", "limit"),
    [
        (
            messages.ExplanationOptions(
                targets=messages.Targets(top_k=3, class_indices=[0] * 10, labels=["one"] * 4), top_neurons=1000
            ),
            "options.targets",
            17,
            16,
        ),
        (messages.ExplanationOptions(top_neurons=1001), "options.top_neurons", 1001, 1000),
        # A value that is none comes last: what is too long is refused before it is looked at.
        (messages.ExplanationOptions(outputs=[messages.OUTPUT_MAP] * 5 + [UNKNOWN]), "options.outputs", 6, 5),
    ],
)
def test_more_than_the_most_is_refused_by_its_count(
    options: messages.ExplanationOptions, field: str, value: int, limit: int
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_options(options, MODEL)
    assert (caught.value.reason, caught.value.field) == ("OPTION_INVALID", field)
    assert caught.value.metadata == {"value": str(value), "limit": str(limit)}


def test_as_much_as_the_most_passes() -> None:
    targets = messages.Targets(top_k=3, class_indices=[0] * 10, labels=["one"] * 3)
    outputs: list[Any] = [number for number in messages.Output.values() if number]
    check_options(messages.ExplanationOptions(targets=targets, top_neurons=1000, outputs=outputs), MODEL)


@pytest.mark.parametrize(
    ("check", "metadata"),
    [
        (
            lambda: check_image(tensor([2, 2], 5, messages.DATA_TYPE_FLOAT32), SETTINGS),
            {"value": "5", "shape": "[2, 2]", "data_type": "DATA_TYPE_FLOAT32", "expected": "16"},
        ),
        (
            lambda: check_options(messages.ExplanationOptions(targets=messages.Targets(top_k=4)), MODEL),
            {"value": "4", "class_count": "3"},
        ),
        (
            lambda: check_options(messages.ExplanationOptions(granularity=99), MODEL),  # type: ignore[arg-type]
            {"value": "99", "choices": "GRANULARITY_CHANNEL, GRANULARITY_UNIT"},
        ),
        (
            lambda: check_class_pathway(messages.GetClassPathwayRequest(class_index=7), MODEL),
            {"class_index": "7", "class_count": "3", "model": "digits"},
        ),
    ],
)
def test_metadata_holds_every_value_of_the_sentence(check: Callable[[], None], metadata: dict[str, str]) -> None:
    with pytest.raises(PathlensError) as caught:
        check()
    assert caught.value.metadata == metadata
    for value in metadata.values():
        assert value in caught.value.message


def test_the_labels_of_a_model_are_looked_through_once() -> None:
    model = messages.Model(labels=[f"class {number}" for number in range(20_000)])
    options = messages.ExplanationOptions(targets=messages.Targets(labels=["class 5"]))

    def seconds(checks: int) -> float:
        began = time.perf_counter()
        for _ in range(checks):
            check_options(options, model)
        return time.perf_counter() - began

    assert seconds(1) > seconds(10)


def test_a_description_is_asked_for_its_own_labels() -> None:
    for labels in (["zero"], ["one"], ["zero"]):
        model = messages.Model(model=messages.ServedModel(name="digits", version="1.0"), labels=labels)
        check_options(messages.ExplanationOptions(targets=messages.Targets(labels=labels)), model)


def test_a_long_label_is_shortened_in_the_message() -> None:
    with pytest.raises(NotFoundError) as caught:
        check_options(messages.ExplanationOptions(targets=messages.Targets(labels=["x" * 60_000])), MODEL)
    assert len(caught.value.message) < 300
    assert len(caught.value.metadata["label"]) <= 80


def test_an_explanation_needs_an_image_and_valid_options() -> None:
    image = messages.Image(encoded=b"image")
    check_explain(messages.ExplainRequest(image=image), MODEL, SETTINGS)
    with pytest.raises(InvalidRequestError):
        check_explain(messages.ExplainRequest(), MODEL, SETTINGS)
    wrong = messages.ExplanationOptions(sparsity=2.0)
    with pytest.raises(InvalidRequestError):
        check_explain(messages.ExplainRequest(image=image, options=wrong), MODEL, SETTINGS)


@pytest.mark.parametrize(
    "request_message",
    [messages.GetClassPathwayRequest(class_index=0), messages.GetClassPathwayRequest(label="two")],
)
def test_a_class_pathway_of_a_known_class_passes(request_message: messages.GetClassPathwayRequest) -> None:
    check_class_pathway(request_message, MODEL)


@pytest.mark.parametrize(
    ("request_message", "reason", "field"),
    [
        (messages.GetClassPathwayRequest(), "CLASS_MISSING", "class"),
        (messages.GetClassPathwayRequest(class_index=3), "CLASS_NOT_FOUND", "class_index"),
        (messages.GetClassPathwayRequest(label=""), "CLASS_NOT_FOUND", "label"),
    ],
)
def test_a_class_pathway_needs_a_known_class(
    request_message: messages.GetClassPathwayRequest, reason: str, field: str
) -> None:
    with pytest.raises(PathlensError) as caught:
        check_class_pathway(request_message, MODEL)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_an_id_of_a_stream_has_a_bounded_length() -> None:
    check_stream_id(messages.StreamExplainRequest(id="x" * 1024))
    with pytest.raises(InvalidRequestError):
        check_stream_id(messages.StreamExplainRequest(id="x" * 1025))
