"""Errors of the tracer and the exporter, told in terms of the classifier."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pathlens.classifier.program import Program
from pathlens.errors import ExportError, PathlensError

_OPERATOR = re.compile(r"aten(?:::|\.)(\w+)")


@contextmanager
def refusals(program: Program) -> Iterator[None]:
    """Turn what goes wrong inside into an `ExportError` that names the operator and where the classifier uses it.

    Args:
        program: What is exported.
    """
    try:
        yield
    except PathlensError:
        raise
    except Exception as error:
        operator = _operator(error)
        cause = next((line for line in str(_innermost(error)).splitlines() if line.strip()), type(error).__name__)
        cause = cause.strip().rstrip(".")
        if operator:
            cause = f"aten.{operator}{_place(operator, program)} has no form in ONNX ({cause})"
        raise ExportError(
            f"The classifier cannot be written as an ONNX graph: {cause}. Replace the layer by others, or serve the "
            "bundle by torch."
        ) from error


def _operator(error: BaseException | None) -> str:
    while error is not None:
        # What could not be translated, rather than the operators that are proposed instead.
        found = _OPERATOR.findall(str(error))
        if found:
            return str(found[0])
        error = error.__cause__
    return ""


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _place(operator: str, program: Program) -> str:
    """Say which call of the classifier an operator, perhaps of a gradient, comes from and behind which weight."""
    name = operator.removesuffix("_backward").lstrip("_")
    weight = ""
    for call in program.calls:
        packet = call.function.removeprefix("aten.").partition(".")[0].lstrip("_")
        if packet == name or (packet in name and operator.endswith("_backward")) or name in packet:
            return f", from the call {call.name} of {call.function}" + (
                f" behind the module {weight!r}" if weight else ""
            )
        for argument in call.arguments:
            if isinstance(argument, dict) and "weight" in argument:
                weight = str(argument["weight"]).rpartition(".")[0]
    return ""
