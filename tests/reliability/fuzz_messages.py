"""Requests that are well formed as messages, with values from the edges of what a field can hold."""

import math
import struct
from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

from pathlens.wire.v1 import explanation_service_pb2 as pb

Value = TypeVar("Value")

INT32 = (0, 1, -1, 2, 4, 5, 6, 127, 128, 2**31 - 1, -(2**31))
UINT32 = (0, 1, 2, 5, 6, 16, 17, 100, 101, 1000, 1001, 2**16, 2**31, 2**32 - 1)
SIDES = (0, 1, 2, 3, 8, 9, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -1, -8, -(2**31), -(2**63))
DOUBLES = (
    *(0.0, -0.0, 0.5, 0.9, 1.0, -1.0, 1e-6, 1e6, 5e-324, 2.2e-308, 1e308, -1e308, 1.0 - 2**-53, 1.0 + 2**-52),
    *(math.nan, math.inf, -math.inf, 1e-7, 1e7, 0.999999),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 3.4e38, -3.4e38, 1e20, math.nan, math.inf, -math.inf)
ENUMS = (0, 1, 2, 3, 4, 5, 6, 7, 99, -1, 2**31 - 1, -(2**31))
TEXTS = (
    *(
        "",
        "tiny",
        "cow",
        "ant",
        "0",
        " ",
        "\x00",
        "\x00\x00\x00",
        "\r\n",
        "\x1b[31m",
        "\x7f\x80\x9f",
        "%00%n%s{0}",
        "../../..",
    ),
    *(
        "../../..",
        "\u202e\u200b\ufeff",
        "\ufffd\uffff",
        "\U0010ffff" * 40,
        "e\u0301" * 30,
        "\u0130\u0131",
        "名前",
        "🦆" * 100,
    ),
    *("a" * 79, "a" * 80, "a" * 81, "a" * 1024, "a" * 1025, "é" * 70_000, "\x00" * 5_000),
)
LABELS = ("ant", "bee", "cow", "eel")
CLASSES = 5
INPUT_SHAPE = (3, 8, 8)


class MessageMaker:
    """Makes requests for the tiny classifier of the tests, some of them odd.

    Args:
        draw: Where decisions come from.
        images: Encoded pictures to send.
    """

    def __init__(self, draw: Random, images: Sequence[bytes]) -> None:
        self._draw = draw
        self._images = images
        self._oddness = 0.0

    def request(self, method: str) -> bytes:
        """Make a request of a method, by its short name."""
        self._choose_oddness()
        match method:
            case "Predict":
                count = self._mostly(self._draw.randrange(7), UINT32)
                message = pb.PredictRequest(model=self._model(), image=self._image(), prediction_count=count)
                return message.SerializeToString()
            case "Explain":
                return self._explain().SerializeToString()
            case "GetClassPathway":
                return self._class_pathway().SerializeToString()
            case "GetModel":
                return pb.GetModelRequest(model=self._model()).SerializeToString()
            case "ListModels":
                return pb.ListModelsRequest().SerializeToString()
            case "StreamExplain":
                return self.stream_item(self._text("x")).SerializeToString()
            case _:
                return self.batch(self._mostly(self._draw.randrange(4), (0, 1, 257, 300))).SerializeToString()

    def batch(self, size: int) -> pb.BatchExplainRequest:
        """Make a request of BatchExplain."""
        self._choose_oddness()
        request = pb.BatchExplainRequest(model=self._model())
        if self._draw.random() < 0.5:
            request.options.CopyFrom(self._options())
        for _ in range(min(size, 300)):
            # Beyond the limit the batch is refused whatever it holds.
            item = request.items.add()
            if size <= 256:
                self._choose_oddness()
                item.image.CopyFrom(self._image())
                if self._draw.random() < 0.7:
                    item.options.CopyFrom(self._options())
        return request

    def stream_item(self, item_id: str) -> pb.StreamExplainRequest:
        """Make one request of StreamExplain."""
        self._choose_oddness()
        return pb.StreamExplainRequest(id=item_id, request=self._explain())

    def _choose_oddness(self) -> None:
        # What is odd everywhere is refused for the first of its oddities: mostly there are few.
        self._oddness = self._draw.choice((0.0, 0.03, 0.03, 0.1, 0.4))

    def _odd(self) -> bool:
        return self._draw.random() < self._oddness

    def _mostly(self, usual: Value, odd: Sequence[Value]) -> Value:
        return self._draw.choice(odd) if self._odd() else usual

    def _text(self, usual: str) -> str:
        return self._mostly(usual, TEXTS)

    def _model(self) -> pb.ModelReference:
        return pb.ModelReference(name=self._text("tiny"), version=self._text(self._draw.choice(("", "1.0"))))

    def _explain(self) -> pb.ExplainRequest:
        request = pb.ExplainRequest(model=self._model(), image=self._image())
        if self._draw.random() < 0.8:
            request.options.CopyFrom(self._options())
        return request

    def _class_pathway(self) -> pb.GetClassPathwayRequest:
        request = pb.GetClassPathwayRequest(model=self._model(), include_frequencies=self._draw.random() < 0.5)
        if self._draw.random() < 0.5:
            request.class_index = self._mostly(self._draw.randrange(CLASSES), INT32)
        elif not self._odd():
            request.label = self._text(self._draw.choice(LABELS))
        return request

    def _image(self) -> pb.Image:
        if self._odd():
            return self._draw.choice((pb.Image(), pb.Image(encoded=b""), pb.Image(tensor=pb.Tensor())))
        if self._draw.random() < 0.4:
            return pb.Image(encoded=self._draw.choice(self._images))
        return pb.Image(tensor=self._tensor())

    def _tensor(self) -> pb.Tensor:
        pixels = self._draw.random() < 0.5
        honest = self._draw.choice(((5, 7, 3), (4, 4), (8, 8, 3), (1, 1), (1, 90, 3))) if pixels else INPUT_SHAPE
        size = math.prod(honest)
        data = bytes(self._draw.randrange(256) for _ in range(4)) * (-(-size // 4)) if pixels else self._floats(size)
        shape = list(honest)
        if self._odd():
            # Data stay those of the honest shape, so that the two contradict each other, or agree by overflow.
            shape = [self._draw.choice(SIDES) for _ in range(self._mostly(3, (0, 1, 2, 4, 33, 2000)))]
        data_type = pb.DATA_TYPE_UINT8 if pixels else pb.DATA_TYPE_FLOAT32
        message = pb.Tensor(shape=shape, data=data[: size if pixels else 4 * size])
        message.data_type = self._mostly(data_type, ENUMS)  # type: ignore[assignment]
        if self._odd():
            message.data = message.data[: self._draw.randrange(size + 1)]
        return message

    def _floats(self, size: int) -> bytes:
        usual = struct.pack("<f", self._draw.uniform(-3, 3)) * size
        if self._odd():
            position = 4 * self._draw.randrange(size)
            return usual[:position] + struct.pack("<f", self._draw.choice(FLOATS)) + usual[position + 4 :]
        return struct.pack("<f", self._draw.choice(FLOATS)) * size if self._odd() else usual

    def _options(self) -> pb.ExplanationOptions:
        draw = self._draw
        source = self._mostly(draw.randrange(5), ENUMS)
        by_contribution = source in (pb.PATHWAY_SOURCE_NEURON_MCT, pb.PATHWAY_SOURCE_NEURON_INTGRAD)
        granularity = draw.randrange(3) if by_contribution else 0
        options = pb.ExplanationOptions(
            targets=self._targets(),
            top_neurons=self._mostly(draw.choice((0, 0, 3)), UINT32),
            prediction_count=self._mostly(draw.choice((0, 1, 5)), UINT32),
            integration_steps=self._mostly(draw.choice((0, 1, 4)), UINT32),
        )
        options.source = source  # type: ignore[assignment]
        options.granularity = self._mostly(granularity, ENUMS)  # type: ignore[assignment]
        options.reduction = self._mostly(draw.randrange(4), ENUMS)  # type: ignore[assignment]
        outputs: list[Any] = draw.sample(range(1, 6), draw.randrange(4))
        odd_outputs: tuple[list[Any], ...] = ([0], [1, 1, 1], [6], [-1], list(range(1, 6)), [1] * 3000)
        options.outputs.extend(self._mostly(outputs, odd_outputs))
        if (by_contribution and draw.random() < 0.3) or self._odd():
            options.sparsity = self._mostly(draw.random(), DOUBLES)
        if self._odd():
            options.linearity_radius = self._draw.choice((0.1, *DOUBLES))
        return options

    def _targets(self) -> pb.Targets:
        draw = self._draw
        indices = [self._mostly(draw.randrange(4), INT32) for _ in range(draw.choice((0, 0, 1, 2)))]
        labels = [self._text(draw.choice(LABELS[:3])) for _ in range(draw.choice((0, 0, 0, 1)))]
        return pb.Targets(
            top_k=self._mostly(draw.choice((0, 0, 1, 2)), UINT32),
            class_indices=self._mostly(indices, ([0] * 17, [3] * 100_000, [0, 0, 0])),
            labels=self._mostly(labels, (["cow"] * 17, ["cow"] * 20_000, ["cow", "ant"])),
        )
