"""The enums of the vocabulary and their counterparts on the wire, which share their names."""

from enum import Enum
from typing import TypeVar

from pathlens.description import ClassPathwaySelection
from pathlens.errors import InvalidRequestError
from pathlens.explanation import Ablation, Granularity, Output, PathwaySource, Reduction
from pathlens.wire.v1 import explanation_service_pb2 as pb

_E = TypeVar("_E", bound=Enum)

_DESCRIPTORS = {
    PathwaySource: (pb.PathwaySource.DESCRIPTOR, "PATHWAY_SOURCE_"),
    Granularity: (pb.Granularity.DESCRIPTOR, "GRANULARITY_"),
    Ablation: (pb.Ablation.DESCRIPTOR, "ABLATION_"),
    Reduction: (pb.Reduction.DESCRIPTOR, "REDUCTION_"),
    Output: (pb.Output.DESCRIPTOR, "OUTPUT_"),
    ClassPathwaySelection: (pb.ClassPathwaySelection.DESCRIPTOR, "CLASS_PATHWAY_SELECTION_"),
}


def to_number(member: Enum) -> int:
    """Return the number of an enum member on the wire."""
    descriptor, prefix = _DESCRIPTORS[type(member)]
    number: int = descriptor.values_by_name[prefix + member.name].number
    return number


def from_number(kind: type[_E], number: int, field: str, default: _E | None = None) -> _E:
    """Return the enum member with a number on the wire.

    Args:
        kind: The enum.
        number: From the message.
        field: Path of the field, for the error.
        default: What zero, the unspecified value, means; None if it must be specified.

    Raises:
        InvalidRequestError: If there is no such member.
    """
    if number == 0 and default is not None:
        return default
    descriptor, prefix = _DESCRIPTORS[kind]
    value = descriptor.values_by_number.get(number)
    if number == 0 or value is None:
        names = ", ".join(prefix + member.name for member in kind)
        raise InvalidRequestError(
            f"{field} is {number}; expected one of {names}.",
            reason="OPTION_INVALID",
            field=field,
            metadata={"value": number},
        )
    return kind[value.name.removeprefix(prefix)]
