"""The same classifier in fewer and faster operators, for those who run it often."""

import logging
from dataclasses import replace
from threading import Lock
from weakref import WeakKeyDictionary

import torch

from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.convolution import FASTER
from pathlens.classifier.fusion import fuse
from pathlens.classifier.program import Program, references

TOLERANCE = 1e-4
"""How far a logit may be from the original's, as a part of its magnitude or of 1, whichever is larger.

Rounding alone makes 2e-5 in deep networks, as another number of threads does."""

_CONVOLUTIONS = frozenset({"aten.conv2d.default", "aten.conv2d.padding"})
_INDIFFERENT = {"aten.view.default": "aten.reshape.default"}
"""Operators that refuse tensors whose channels come last in memory, and what does the same for any tensor."""

_logger = logging.getLogger(__name__)
_lock = Lock()
# None stands for the classifier itself, which would never be forgotten if its own value referred to it.
_known: WeakKeyDictionary[CapturedClassifier, CapturedClassifier | None] = WeakKeyDictionary()


def accelerate(classifier: CapturedClassifier) -> CapturedClassifier:
    """Return a classifier with the same taps that computes the same, but for rounding, in less time.

    Batch norms and margins become part of convolutions. On the CPU, the weights of convolutions are laid out with the
    channels last, and activations follow them. Both are tried on an example, and what changes its logits is not used.
    It is made once for each classifier, unless there was no memory for it. Weights that stay as they are share their
    memory with the original's.

    Args:
        classifier: On any device. One that does not compute in float32 is returned as it is: bfloat16 would round the
            folded weights, and float64 is not there for speed.

    Returns:
        The accelerated classifier, or `classifier` itself where there is none.
    """
    if classifier.dtype is not torch.float32:
        return classifier
    with _lock:
        if classifier not in _known:
            try:
                _known[classifier] = _accelerate(classifier)
            except (MemoryError, torch.OutOfMemoryError):
                _logger.warning("The classifier runs as it was captured, because there is no memory to accelerate it")
                return classifier
        return _known[classifier] or classifier


def _accelerate(classifier: CapturedClassifier) -> CapturedClassifier | None:
    try:
        # On the CPU wherever it will run: on GPUs, convolutions in TF32 differ by more than what is looked for.
        original = classifier.to("cpu")
        accelerated = fuse(original)
        if classifier.device.type == "cpu":
            accelerated = _with_channels_last(accelerated)
        images = torch.randn(2, *classifier.input_shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = original(images)
            difference = (accelerated(images) - expected).abs() / expected.abs().clamp(min=1)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _logger.warning("The classifier runs as it was captured, because it cannot be accelerated: %s", error)
        return None
    # Written so that what is not a number is refused, too.
    if not bool((difference <= TOLERANCE).all()):
        _logger.warning(
            "The classifier runs as it was captured, because accelerating it changes its logits by %g; at most %g is "
            "rounding.",
            float(difference.max()),
            TOLERANCE,
        )
        return None
    return accelerated.to(classifier.device)


def _with_channels_last(classifier: CapturedClassifier) -> CapturedClassifier:
    """Lay out the weights of two-dimensional convolutions with the channels last, and let every operator take that."""
    program = classifier.program
    kernels = _kernels(program)
    weights = {
        name: weight.contiguous(memory_format=torch.channels_last) if name in kernels and weight.ndim == 4 else weight
        for name, weight in classifier.weights.items()
    }
    calls = tuple(replace(call, function=_INDIFFERENT.get(call.function, call.function)) for call in program.calls)
    return CapturedClassifier(replace(program, calls=calls), weights, FASTER)


def _kernels(program: Program) -> set[str]:
    """Name the weights that two-dimensional convolutions read as their kernels, and nothing else reads."""
    kernels: set[str] = set()
    others: set[str] = set()
    for call in program.calls:
        arguments = list(call.arguments)
        if call.function in _CONVOLUTIONS and len(arguments) > 1:
            kernels.update(references(arguments.pop(1), "weight"))
        others.update(references([arguments, call.keywords], "weight"))
    return kernels - others
