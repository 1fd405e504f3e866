"""Refuses bad requests before anything is forwarded; the handler checks what only it can know."""

import math
from collections.abc import Sequence
from functools import lru_cache

from pathlens.errors import InvalidRequestError, NotFoundError
from pathlens.explanation import LINEARITY_RADII, MAX_INTEGRATION_STEPS, MAX_TARGETS, MAX_TOP_NEURONS, Output
from pathlens.gateway.quoting import shortened
from pathlens.gateway.settings import GatewaySettings
from pathlens.image_header import check_picture_size, picture_size
from pathlens.wire.v1 import explanation_service_pb2 as messages

_ELEMENT_BYTES = {messages.DATA_TYPE_UINT8: 1, messages.DATA_TYPE_FLOAT32: 4}
_OPTION_VALUES: dict[str, dict[int, str]] = {
    "source": {number: name for name, number in messages.PathwaySource.items()},
    "granularity": {number: name for name, number in messages.Granularity.items()},
    "reduction": {number: name for name, number in messages.Reduction.items()},
    "outputs": {number: name for name, number in messages.Output.items()},
}
_TENSOR_RANKS = (2, 3)
# Options name classes and outputs; what is larger is no honest request and would cost the event loop its time.
_MAX_OPTIONS_BYTES = 64 * 1024
_MAX_ID_LENGTH = 1024


def check_explain(request: messages.ExplainRequest, model: messages.Model, settings: GatewaySettings) -> int | None:
    """Check a request of Explain.

    Args:
        request: The request.
        model: The model that it asks.
        settings: The limits of an image.

    Returns:
        The number of pixels, as of `check_image`.

    Raises:
        InvalidRequestError: The request is wrong; the error names the field.
        NotFoundError: The model has no such class.
    """
    pixels = check_image(request.image, settings)
    check_options(request.options, model)
    return pixels


def check_class_pathway(request: messages.GetClassPathwayRequest, model: messages.Model) -> None:
    """Check a request of GetClassPathway.

    Args:
        request: The request.
        model: The model that it asks.

    Raises:
        InvalidRequestError: The request names no class.
        NotFoundError: The model has no such class.
    """
    match request.WhichOneof("class"):
        case "class_index":
            _check_class_indices([request.class_index], model, "class_index")
        case "label":
            _check_labels([request.label], model, "label")
        case _:
            raise InvalidRequestError(
                "The request names no class: set class_index or label.", reason="CLASS_MISSING", field="class"
            )


def check_stream_id(request: messages.StreamExplainRequest) -> None:
    """Check the caller's own name for an image of a stream, which every result has to carry.

    Args:
        request: One request of StreamExplain.

    Raises:
        InvalidRequestError: The id is too long.
    """
    if len(request.id) > _MAX_ID_LENGTH:
        raise InvalidRequestError(
            f"The id {shortened(request.id)!r} has {len(request.id)} characters: use at most {_MAX_ID_LENGTH}.",
            reason="ID_TOO_LONG",
            field="id",
            metadata={"length": len(request.id), "limit": _MAX_ID_LENGTH},
        )


def check_image(image: messages.Image, settings: GatewaySettings) -> int | None:
    """Check an image without decoding it.

    Of a file, its header is read as far as a bounded number of steps goes. A file that does not say how large it is
    passes: whatever decodes it keeps the same limits and knows what is wrong with it.

    Args:
        image: The image.
        settings: Most bytes of an encoded file or of a tensor's data, and most pixels.

    Returns:
        The number of pixels; None of a file that does not say it.

    Raises:
        InvalidRequestError: The image is missing, empty, too large, made to take long, or a tensor that contradicts
            itself.
    """
    kind = image.WhichOneof("content")
    if kind is None:
        raise InvalidRequestError(
            "The request has no image: set image.encoded or image.tensor.", reason="IMAGE_MISSING", field="image"
        )
    # Each look at the field copies the whole file.
    encoded = image.encoded if kind == "encoded" else b""
    size, limit = len(encoded) if kind == "encoded" else len(image.tensor.data), settings.max_image_bytes
    if size > limit:
        raise InvalidRequestError(
            f"The image has {size} bytes: send at most {limit}.",
            reason="IMAGE_TOO_LARGE",
            field="image",
            metadata={"bytes": size, "limit": limit},
        )
    if kind == "tensor":
        _check_tensor(image.tensor)
        return _checked_pixels(_tensor_size(image.tensor), settings)
    if size == 0:
        raise InvalidRequestError(
            "The image has no bytes: send a whole JPEG, PNG or WebP file.", reason="IMAGE_EMPTY", field="image.encoded"
        )
    picture = picture_size(encoded)
    return None if picture is None else _checked_pixels(picture, settings)


def check_options(options: messages.ExplanationOptions, model: messages.Model) -> None:
    """Check what is asked about an image.

    Args:
        options: The options.
        model: The model that is asked.

    Raises:
        InvalidRequestError: An option is out of its range.
        NotFoundError: The model has no such class.
    """
    # Counts come first: what follows looks at every element.
    _check_counts(options, model)
    _check_enum("source", options.source)
    _check_enum("granularity", options.granularity)
    _check_enum("reduction", options.reduction)
    for output in options.outputs:
        _check_enum("outputs", output)
        if output == messages.OUTPUT_UNSPECIFIED:
            raise _option_error(
                "options.outputs",
                "OUTPUT_UNSPECIFIED is not an output: leave it out, or name the one you want.",
                output,
            )
    # Written so that NaN, which compares false with everything, is refused too.
    if options.HasField("sparsity") and not 0.0 <= options.sparsity < 1.0:
        raise _option_error(
            "options.sparsity",
            f"Sparsity {options.sparsity} is not a fraction of neurons to remove: choose one in [0, 1).",
            options.sparsity,
        )
    if (
        options.HasField("linearity_radius")
        and not LINEARITY_RADII[0] <= options.linearity_radius <= LINEARITY_RADII[1]
    ):
        raise _option_error(
            "options.linearity_radius",
            f"Linearity radius {options.linearity_radius} is out of range: choose one from {LINEARITY_RADII[0]:g} to "
            f"{LINEARITY_RADII[1]:g}.",
            options.linearity_radius,
        )
    _check_class_indices(options.targets.class_indices, model, "options.targets.class_indices")
    _check_labels(options.targets.labels, model, "options.targets.labels")


def _check_counts(options: messages.ExplanationOptions, model: messages.Model) -> None:
    targets, class_count = options.targets, len(model.labels)
    if targets.top_k > class_count:
        raise _option_error(
            "options.targets.top_k",
            f"There are no {targets.top_k} most probable classes: the model has {class_count}.",
            targets.top_k,
            class_count=class_count,
        )
    target_count = targets.top_k + len(targets.class_indices) + len(targets.labels)
    for field, value, limit, what in (
        ("options.targets", target_count, MAX_TARGETS, "targets in top_k, class_indices and labels together"),
        ("options.top_neurons", options.top_neurons, MAX_TOP_NEURONS, "neurons to list"),
        ("options.integration_steps", options.integration_steps, MAX_INTEGRATION_STEPS, "steps of integration"),
        ("options.outputs", len(options.outputs), len(Output), "outputs"),
        ("options", options.ByteSize(), _MAX_OPTIONS_BYTES, "bytes of options"),
    ):
        if value > limit:
            raise _option_error(field, f"There are {value} {what}: ask for at most {limit}.", value, limit=limit)


def _check_tensor(tensor: messages.Tensor) -> None:
    element_bytes = _ELEMENT_BYTES.get(tensor.data_type)
    if element_bytes is None:
        raise _tensor_error(
            "data_type",
            f"Data type {tensor.data_type} is not supported: use DATA_TYPE_UINT8 or DATA_TYPE_FLOAT32.",
            tensor.data_type,
        )
    if len(tensor.shape) not in _TENSOR_RANKS:
        raise _tensor_error(
            "shape",
            f"A tensor of {len(tensor.shape)} dimensions is not an image: send [height, width],"
            " [height, width, 3] or the classifier's own [channels, height, width].",
            len(tensor.shape),
        )
    shape = list(tensor.shape)
    if min(shape) < 1:
        raise _tensor_error("shape", f"Shape {shape} holds no pixels: every dimension must be at least 1.", shape)
    expected = math.prod(shape) * element_bytes
    if len(tensor.data) != expected:
        raise _tensor_error(
            "data",
            f"Shape {shape} of {messages.DataType.Name(tensor.data_type)} needs {expected} bytes of data, not"
            f" {len(tensor.data)}: send every element, little-endian, in row-major order.",
            len(tensor.data),
            shape=shape,
            data_type=messages.DataType.Name(tensor.data_type),
            expected=expected,
        )


def _tensor_size(tensor: messages.Tensor) -> tuple[int, int]:
    # The classifier's own input is float32 and has its channels first, pixels have them last.
    height, width = tensor.shape[-2:] if tensor.data_type == messages.DATA_TYPE_FLOAT32 else tensor.shape[:2]
    return width, height


def _checked_pixels(size: tuple[int, int], settings: GatewaySettings) -> int:
    check_picture_size(size, settings.max_image_pixels)
    width, height = size
    return width * height


def _check_enum(option: str, value: int) -> None:
    names_of_values = _OPTION_VALUES[option]
    if value not in names_of_values:
        names = ", ".join(name for number, name in names_of_values.items() if number)
        raise _option_error(
            f"options.{option}", f"{value} is not a value of {option}: choose one of {names}.", value, choices=names
        )


def _check_class_indices(indices: Sequence[int], model: messages.Model, field: str) -> None:
    class_count = len(model.labels)
    for index in indices:
        if not 0 <= index < class_count:
            raise NotFoundError(
                f"There is no class {index}: model {model.model.name!r} has {class_count} classes, counted from 0.",
                reason="CLASS_NOT_FOUND",
                field=field,
                metadata={"class_index": index, "class_count": class_count, "model": model.model.name},
            )


def _check_labels(labels: Sequence[str], model: messages.Model, field: str) -> None:
    if not labels:
        return
    known = _label_set(_ByIdentity(model))
    for label in labels:
        if label not in known:
            raise NotFoundError(
                f"Model {model.model.name!r} has no class labelled {shortened(label)!r}: GetModel lists its labels, "
                "as `pathlens models --format json` does.",
                reason="CLASS_NOT_FOUND",
                field=field,
                metadata={"label": shortened(label), "model": model.model.name},
            )


class _ByIdentity:
    """A description as a key: messages have no hash, and each version keeps its description for as long as it lives."""

    def __init__(self, model: messages.Model) -> None:
        self.model = model

    def __hash__(self) -> int:
        return id(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.model is other.model


# Of the versions asked last: a set of many labels takes milliseconds to build.
@lru_cache(maxsize=16)
def _label_set(described: _ByIdentity) -> frozenset[str]:
    return frozenset(described.model.labels)


def _option_error(field: str, message: str, value: object, **values: object) -> InvalidRequestError:
    return InvalidRequestError(message, reason="OPTION_INVALID", field=field, metadata={"value": value, **values})


def _tensor_error(field: str, message: str, value: object, **values: object) -> InvalidRequestError:
    return InvalidRequestError(
        message, reason="TENSOR_INVALID", field=f"image.tensor.{field}", metadata={"value": value, **values}
    )
