"""Requests that deserve no answer, with the status that each deserves."""

from dataclasses import replace

import numpy as np
from google.protobuf.message import Message

from pathlens.explanation import ExplanationOptions, Output
from pathlens.wire.requests import image_to_message, options_to_message
from pathlens.wire.v1 import explanation_service_pb2 as pb
from reliability.case import Case, Item, StreamCase
from reliability.pictures import jpeg, picture, png
from reliability.questions import Questions, batch_case

UNARY_CALLS = ("Predict", "Explain", "BatchExplain", "GetClassPathway", "ListModels", "GetModel")
_INVALID = "INVALID_ARGUMENT "
_TOO_LARGE = "RESOURCE_EXHAUSTED "
_OVER_GRPC_BYTES = 2 * 2**20
# Widths of pictures whose heatmap and overlay fill a message: one of them, and a few of them.
_WHOLE_SIDE, _PART_SIDE = 900, 420


def malformed(rng: np.random.Generator) -> list[Case]:
    """Make requests that are wrong in their form.

    Args:
        rng: Source of randomness.

    Returns:
        One for each way of being wrong.
    """
    image = image_to_message(png(picture(rng, 12, 10)))
    # The wire type 7 does not exist, so that these are no message whatever follows.
    garbage = [b"\x07" + rng.bytes(int(rng.integers(0, 4096))) for _ in range(len(UNARY_CALLS) + 1)]
    wrong_message = pb.GetClassPathwayRequest(class_index=3)
    made = [
        *(
            _refused(method, content, _INVALID + "REQUEST_MALFORMED")
            for method, content in zip(UNARY_CALLS, garbage, strict=False)
        ),
        StreamCase("malformed", "StreamExplain", (garbage[-1],), None, {_INVALID + "REQUEST_MALFORMED"}, False),
        _refused("Predict", wrong_message, _INVALID + "IMAGE_MISSING"),
        _refused("Explain", wrong_message, _INVALID + "IMAGE_MISSING"),
        _refused("GetClassPathway", pb.PredictRequest(image=image), _INVALID + "CLASS_MISSING"),
        _refused("GetClassPathway", pb.GetClassPathwayRequest(class_index=1000), "NOT_FOUND CLASS_NOT_FOUND"),
        _refused("Predict", pb.PredictRequest(image=pb.Image(encoded=b"")), _INVALID + "IMAGE_EMPTY"),
        _refused(
            "Predict",
            pb.PredictRequest(model=pb.ModelReference(name="no-such-model"), image=image),
            "NOT_FOUND MODEL_NOT_FOUND",
        ),
        _refused(
            "Predict",
            pb.PredictRequest(
                image=pb.Image(tensor=pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=[4, 4], data=b"short"))
            ),
            _INVALID + "TENSOR_INVALID",
        ),
        *(
            _refused("Explain", pb.ExplainRequest(image=image, options=options), _INVALID + "OPTION_INVALID")
            for options in (
                pb.ExplanationOptions(sparsity=1.5),
                pb.ExplanationOptions(sparsity=float("nan")),
                pb.ExplanationOptions(top_neurons=10**6),
                pb.ExplanationOptions(source=99),  # type: ignore[arg-type]
                pb.ExplanationOptions(targets=pb.Targets(top_k=100)),
                pb.ExplanationOptions(linearity_radius=-1.0),
            )
        ),
    ]
    return made + [replace(case, needs_worker=True) for case in _refused_by_the_handler(rng)]


def too_large_to_send(rng: np.random.Generator, max_image_bytes: int, max_message_bytes: int) -> list[Case]:
    """Make requests over the limits.

    Args:
        rng: Source of randomness.
        max_image_bytes: Largest image.
        max_message_bytes: Largest message; more than the other.

    Returns:
        An image, a message, and a message that gRPC itself refuses.
    """

    def batch(size: int) -> pb.BatchExplainRequest:
        images = [rng.bytes(max_image_bytes // 2) for _ in range(-(-size // (max_image_bytes // 2)))]
        return pb.BatchExplainRequest(items=[pb.BatchExplainItem(image=pb.Image(encoded=image)) for image in images])

    image = pb.Image(encoded=rng.bytes(max_image_bytes + 1))
    tensor = pb.Image(tensor=image_to_message(np.zeros((3, 500, max_image_bytes // 6000 + 1), np.float32)).tensor)
    cases = [
        _refused("Predict", pb.PredictRequest(image=image), _INVALID + "IMAGE_TOO_LARGE"),
        _refused("Explain", pb.ExplainRequest(image=tensor), _INVALID + "IMAGE_TOO_LARGE"),
        _refused("BatchExplain", batch(max_message_bytes), _TOO_LARGE + "MESSAGE_TOO_LARGE"),
        # Without details.
        _refused("BatchExplain", batch(max_message_bytes + _OVER_GRPC_BYTES), _TOO_LARGE.strip()),
    ]
    return [replace(case, kind="too large to send") for case in cases]


def too_large_to_answer(questions: Questions, max_message_bytes: int) -> list[Case]:
    """Make requests whose answers are larger than a message.

    Args:
        questions: Makes the pictures.
        max_message_bytes: Largest message.

    Returns:
        One answer that is too large, alone and in a stream, and a batch of which a part fits.
    """
    refusal = {_TOO_LARGE + "RESPONSE_TOO_LARGE"}
    large, _, size = questions.picture_item(_WHOLE_SIDE)
    assert size > max_message_bytes, size
    part, whole, part_size = questions.picture_item(_PART_SIDE)
    count = 5
    assert part_size < max_message_bytes < count * part_size, part_size
    items = [(part, whole), *(questions.picture_item(_PART_SIDE)[:2] for _ in range(count - 1))]
    either = [(request, Item(item.check, refusal)) for request, item in items]
    stream = pb.StreamExplainRequest(id="large", request=large)
    return [
        Case("too large to answer", "Explain", (large.SerializeToString(),), None, refusal),
        StreamCase(
            "too large to answer", "StreamExplain", (stream.SerializeToString(),), items={"large": Item(None, refusal)}
        ),
        batch_case("too large to answer", either),
    ]


def _refused_by_the_handler(rng: np.random.Generator) -> list[Case]:
    whole = png(picture(rng, 40, 40))
    photo = jpeg(picture(rng, 40, 40))
    overlay = options_to_message(ExplanationOptions(outputs=frozenset({Output.OVERLAY})))
    own_input = image_to_message(np.zeros((3, 8, 8), np.float32))
    encoded = (whole[: len(whole) // 2], photo[: len(photo) // 3], rng.bytes(2000), b"GIF89a" + bytes(100))
    return [
        *(
            _refused("Predict", pb.PredictRequest(image=pb.Image(encoded=content)), _INVALID + "IMAGE_UNDECODABLE")
            for content in encoded
        ),
        _refused(
            "Predict",
            pb.PredictRequest(image=image_to_message(np.full((3, 8, 8), np.nan, np.float32))),
            _INVALID + "TENSOR_NOT_FINITE",
        ),
        _refused(
            "Predict",
            pb.PredictRequest(image=image_to_message(np.zeros((1, 8, 8), np.float32))),
            _INVALID + "TENSOR_INVALID",
        ),
        _refused("Explain", pb.ExplainRequest(image=own_input, options=overlay), _INVALID + "OPTION_INVALID"),
    ]


def _refused(method: str, request: Message | bytes, status: str) -> Case:
    content = request if isinstance(request, bytes) else request.SerializeToString()
    return Case("malformed", method, (content,), None, {status}, needs_worker=False)
