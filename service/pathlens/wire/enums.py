"""The enums of the vocabulary and their counterparts on the wire, which share their names."""

from enum import Enum
from typing import TypeVar, cast

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

_NUMBERS: dict[Enum, int] = {
    member: descriptor.values_by_name[prefix + member.name].number
    for kind, (descriptor, prefix) in _DESCRIPTORS.items()
    for member in kind
}
_MEMBERS = {kind: {_NUMBERS[member]: member for member in kind} for kind in _DESCRIPTORS}


def to_number(member: Enum) -> int:
    """Return the number of an enum member on the wire."""
    return _NUMBERS[member]


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
    member = _MEMBERS[kind].get(number)
    if member is None:
        names = ", ".join(_DESCRIPTORS[kind][1] + member.name for member in kind)
        raise InvalidRequestError(
            f"{field} is {number}; expected one of {names}.",
            reason="OPTION_INVALID",
            field=field,
            metadata={"value": number},
        )
    # The table of a kind holds its members alone.
    return cast("_E", member)
