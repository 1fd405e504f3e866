"""How long ONNX Runtime and PyTorch take for the same explanations: medians of interleaved runs in one process."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from pathlens.onnx_export.session import ExplainerSession
from pathlens.onnx_export.subject import ExplainedClassifier
from pathlens.onnx_export.torch_explanation import explain_with_torch

_ROUNDS = 15
_SECONDS = 10.0
"""Time for the rounds of one batch size: slow ones are fewer, but at least one."""


@dataclass(frozen=True)
class Speed:
    """Milliseconds for each image, in batches of one size.

    Attributes:
        batch_size: Images in one run.
        rounds: Runs of each, of which this is the median.
        onnx_runtime: Of the exported explainer.
        torch: Of the same explanations by PyTorch.
    """

    batch_size: int
    rounds: int
    onnx_runtime: float
    torch: float

    @property
    def ratio(self) -> float:
        """How many times as long PyTorch takes."""
        return self.torch / self.onnx_runtime


def measure_speed(session: ExplainerSession, subject: ExplainedClassifier, images: Tensor, batch_size: int) -> Speed:
    """Time an explainer beside PyTorch; both take turns, so that a busy machine slows both.

    Args:
        session: The explainer.
        subject: Classifier, class pathways and generator.
        images: Preprocessed, float32 [N, C, H, W]; repeated where the batch is larger.
        batch_size: Images in one run.
    """
    batch = images[torch.arange(batch_size) % len(images)]

    def by_torch() -> None:
        explain_with_torch(subject, batch, session.metadata.sources)

    # The first round warms up, and counts only where it is so long that no second one is made.
    onnx, own = [_seconds(lambda: session.run(batch))], [_seconds(by_torch)]
    while len(onnx) <= _ROUNDS and sum(onnx) + sum(own) < _SECONDS:
        onnx.append(_seconds(lambda: session.run(batch)))
        own.append(_seconds(by_torch))
    onnx, own = onnx[1:] or onnx, own[1:] or own
    scale = 1000 / batch_size
    return Speed(batch_size, len(onnx), scale * median(onnx), scale * median(own))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch compute with so many threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
