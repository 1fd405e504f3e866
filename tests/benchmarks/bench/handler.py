"""The second part: TorchServe's handler, called as TorchServe calls it: from serialised requests to replies."""

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ts.context import Context, RequestProcessor

from benchmarks.bench.class_masks import make_bundle
from benchmarks.bench.in_process import Row, Tell
from benchmarks.bench.routes import PREDICT, SLICED, Route, answers, requests
from benchmarks.bench.settings import BATCH, Settings
from benchmarks.bench.subjects import Subject
from benchmarks.bench.timing import interleave
from pathlens.bundle.archive import pack
from pathlens.bundle.store import load_bundle, save_bundle
from pathlens.explanation import ImageInput
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.requests import image_to_message, options_to_message
from pathlens.wire.v1 import explanation_service_pb2 as pb
from pathlens_handler import PathlensHandler

CALLS = {"Predict": PREDICT, "Explain": SLICED}
_STAGES = ("decode", "predict", "pathway", "gradient", "encode")


def archive_of(subject: Subject, settings: Settings) -> Path:
    """Write the model archive that handler and service load: that of `SLICED`."""
    folder = settings.folder / "served" / subject.name
    save_bundle(make_bundle(subject, SLICED.masks), folder / "bundle")
    return pack(folder / "bundle", folder)


def call_message(route: Route, image: ImageInput, label: int) -> pb.PredictRequest | pb.ExplainRequest:
    """Write the request of a route as applications send it."""
    (request,) = requests(route, [image], [label])
    message = image_to_message(image)
    if request.options is None:
        return pb.PredictRequest(image=message)
    return pb.ExplainRequest(image=message, options=options_to_message(request.options))


@dataclass
class _Handled:
    """Calls the handler with the same requests again and again, and keeps what the replies tell of their times."""

    handler: PathlensHandler
    context: Context
    rows: list[dict[str, bytearray]]
    shares: list[list[float]] = field(default_factory=list)

    def __call__(self) -> list[bytes]:
        self.context.request_processor = [RequestProcessor({}) for _ in self.rows]
        return self.handler.handle(list(self.rows), self.context)

    def look(self) -> list[str]:
        """Call it once more and note its stages; return what is wrong."""
        response = worker_pb2.WorkerResponse.FromString(self()[0])
        reply = response.replies[0]
        if reply.status.code:
            return [f"the handler says: {reply.status.message}"]
        timings = getattr(reply, reply.WhichOneof("reply") or "").timings
        whole = response.handler_time.ToNanoseconds()
        self.shares.append([getattr(timings, stage).ToNanoseconds() / whole for stage in _STAGES])
        return []


def measure(subject: Subject, settings: Settings, tell: Tell) -> Iterator[list[Row] | str]:
    """Measure calls with JPEG files and with tensors, alone and as a batch, beside the explainer on the same requests.

    Args:
        subject: What is served.
        settings: How.
        tell: Is told what is measured next.

    Yields:
        The rows of one kind of batch after the other; and, as text, what is wrong.
    """
    tell("the handler")
    model = _unpacked(archive_of(subject, settings))
    manifest = json.loads((model / "MAR-INF" / "MANIFEST.json").read_text())
    context = Context(subject.name, str(model), manifest, BATCH, None, "0.12.0")
    handler = PathlensHandler()
    handler.initialize(context)
    explainer = load_bundle(model / "bundle").explainer()
    places = subject.rows_of_different_classes(BATCH)
    for count in (1, BATCH):
        rows, labels = places[:count], [int(subject.predicted[place]) for place in places[:count]]
        images = subject.images[rows]
        forward = partial(_forward, subject, images)
        inputs: dict[str, list[Any]] = {
            "JPEG": [subject.pictures[row] for row in rows],
            "tensor": list(images.numpy()),
        }
        handled: dict[str, _Handled] = {}
        works: dict[str, Callable[[], object]] = {}
        for call, route in CALLS.items():
            for content, values in inputs.items():
                asked = [
                    _worker_call(call_message(route, value, label)) for value, label in zip(values, labels, strict=True)
                ]
                row = {"pathlens": bytearray(worker_pb2.WorkerRequest(calls=asked).SerializeToString())}
                works[f"{call}, {content}"] = handled[f"{call}, {content}"] = _Handled(handler, context, [row])
                works[f"{call}, {content}: explainer"] = partial(answers, explainer, requests(route, values, labels))
        timings = interleave(
            works, forward, settings.device, settings.rounds, settings.group_seconds / 2, settings.seed
        )
        measured = []
        for name, one in handled.items():
            for _ in range(min(5, settings.rounds)):
                yield from one.look()
            decode, *_, encode = np.median(one.shares, axis=0).tolist() if one.shares else [0.0, 0.0]
            inner = sum(np.median(one.shares, axis=0).tolist()) if one.shares else 0.0
            timing, beneath = timings[name], timings[f"{name}: explainer"]
            measured.append(
                {
                    "name": name,
                    "batch": count,
                    **timing.row(),
                    "milliseconds_per_item": round(timing.milliseconds / count, 4),
                    "explainer_milliseconds_per_item": round(beneath.milliseconds / count, 4),
                    "decode_share": round(decode, 3),
                    "encode_share": round(encode, 3),
                    "message_share": round(max(0.0, 1 - inner), 3),
                }
            )
        yield measured


def _worker_call(message: pb.PredictRequest | pb.ExplainRequest) -> worker_pb2.WorkerCall:
    if isinstance(message, pb.PredictRequest):
        return worker_pb2.WorkerCall(predict=message)
    return worker_pb2.WorkerCall(explain=message)


def _forward(subject: Subject, images: torch.Tensor) -> None:
    with torch.no_grad():
        subject.classifier(images)


def _unpacked(archive: Path) -> Path:
    folder = archive.parent / "model"
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder
