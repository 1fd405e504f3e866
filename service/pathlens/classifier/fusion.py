"""Convolutions that take in what stands beside them: fewer operators forward, and fewer still in the gradient."""

from collections import Counter
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.program import Call, Program, references

_NORM = "aten._native_batch_norm_legit_no_training.default"
_CONVOLUTION_2D = "aten.conv2d.default"
_DEFAULTS = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
"""Of the arguments of a convolution."""
_CONVOLUTIONS = frozenset({"aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default"})


def fuse(classifier: CapturedClassifier) -> CapturedClassifier:
    """Return a classifier that computes the same, but for rounding, with fewer operators.

    Args:
        classifier: Of its batch norms, those that follow a convolution become part of its weights; of its margins of
            zeros, those of equal width on both sides become part of the convolution that reads them.
    """
    return fuse_margins(fold_batch_norms(classifier))


def fuse_margins(classifier: CapturedClassifier) -> CapturedClassifier:
    """Return the same classifier with equal margins of zeros as the padding of the convolutions that read them."""
    program = classifier.program
    readers = _readers(program)
    margins = {call.name: call for call in program.calls if _is_equal_margin(call) and readers[call.name] == 1}
    fused: dict[str, Call] = {}
    gone: set[str] = set()
    for call in program.calls:
        source = call.arguments[0].get("call") if call.function == _CONVOLUTION_2D and not call.keywords else None
        if source in margins:
            arguments = [*call.arguments, *_DEFAULTS[len(call.arguments) :]]
            width, height = margins[source].arguments[1][0], margins[source].arguments[1][2]
            arguments[0] = margins[source].arguments[0]
            # One number stands for both directions.
            arguments[4] = [arguments[4][0] + height, arguments[4][-1] + width]
            fused[call.name] = replace(call, arguments=arguments)
            gone.add(source)
    calls = tuple(fused.get(call.name, call) for call in program.calls if call.name not in gone)
    return CapturedClassifier(replace(program, calls=calls), classifier.weights)


def _is_equal_margin(call: Call) -> bool:
    if (
        call.function != "aten.pad.default"
        or call.keywords
        or call.arguments[2:] not in ([], ["constant"], ["constant", 0.0])
    ):
        return False
    left, right, top, bottom = (*call.arguments[1], *[None] * 4)[:4]
    return len(call.arguments[1]) == 4 and left == right and top == bottom and min(left, top) >= 0


def fold_batch_norms(classifier: CapturedClassifier) -> CapturedClassifier:
    """Return a classifier that computes the same, but for rounding, without the batch norms that follow convolutions.

    Args:
        classifier: A batch norm of it stays where its convolution has other readers, or weights that are computed.
    """
    weights = dict(classifier.weights)
    program = classifier.program
    readers = _readers(program)
    convolutions = {
        call.name: call for call in program.calls if call.function in _CONVOLUTIONS and _has_weights(call, range(1, 3))
    }
    folded: dict[str, Call] = {}
    moved: dict[str, str] = {}
    for call in program.calls:
        if call.function == _NORM and _has_weights(call, range(1, 5)):
            source = call.arguments[0].get("call")
            if source in convolutions and readers[source] == 1:
                folded[source] = _fold(convolutions[source], call, weights)
                moved[call.name] = source
        elif call.function == "operator.getitem" and call.arguments[0].get("call") in moved:
            moved[call.name] = moved[call.arguments[0]["call"]]
    calls = tuple(
        replace(kept, arguments=_rename(kept.arguments, moved), keywords=_rename(kept.keywords, moved))
        for kept in (folded.get(call.name, call) for call in program.calls if call.name not in moved)
    )
    used = {name for call in calls for name in references([call.arguments, call.keywords], "weight")}
    return CapturedClassifier(
        replace(program, calls=calls, output=moved.get(program.output, program.output)),
        {name: weight for name, weight in weights.items() if name in used},
    )


def _fold(convolution: Call, norm: Call, weights: dict[str, Tensor]) -> Call:
    """Add the weights of both in one to `weights` and return the convolution that reads them."""
    arguments = [*convolution.arguments, None][: max(3, len(convolution.arguments))]
    scale, shift, mean, variance = (_look_up(value, weights) for value in norm.arguments[1:5])
    kernel, bias = _look_up(arguments[1], weights), _look_up(arguments[2], weights)
    exact = [None if value is None else value.double() for value in (kernel, bias, mean, variance, scale, shift)]
    epsilon = norm.arguments[6]
    fused = fuse_conv_bn_weights(exact[0], exact[1], exact[2], exact[3], epsilon, exact[4], exact[5])  # type: ignore[arg-type]
    # Under the name of the convolution's own weight: another convolution may share that, with another batch norm.
    for place, value in zip((1, 2), fused, strict=True):
        name = f"{arguments[1]['weight']}/{norm.name}" + ("" if place == 1 else "/bias")
        weights[name] = value.detach().to(kernel.dtype)  # type: ignore[union-attr]
        arguments[place] = {"weight": name}
    return replace(convolution, arguments=arguments)


def _readers(program: Program) -> Counter[str]:
    """Count who reads the result of each call; the output of the program is read, and so is what an edit replaces."""
    readers = Counter(name for call in program.calls for name in references([call.arguments, call.keywords]))
    readers.update([program.output, *(tap.node for tap in program.taps)])
    return readers


def _has_weights(call: Call, places: range) -> bool:
    """Tell whether what stands at these places is stored, or left out, rather than computed."""
    values = call.arguments[places.start : places.stop]
    return not call.keywords and all(value is None or set(value) == {"weight"} for value in values)


def _look_up(value: Any, weights: dict[str, Tensor]) -> Tensor | None:
    return None if value is None else weights[value["weight"]]


def _rename(value: Any, moved: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_rename(item, moved) for item in value]
    if isinstance(value, dict):
        if set(value) == {"call"} and value["call"] in moved:
            return {"call": moved[value["call"]]}
        return {key: _rename(item, moved) for key, item in value.items()}
    return value
