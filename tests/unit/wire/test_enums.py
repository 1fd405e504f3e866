"""Enum members and their numbers on the wire."""

from enum import Enum

import pytest

from pathlens.description import ClassPathwaySelection
from pathlens.errors import InvalidRequestError
from pathlens.explanation import Ablation, Granularity, Output, PathwaySource, Reduction
from pathlens.wire.enums import from_number, to_number
from pathlens.wire.requests import options_from_message
from pathlens.wire.v1 import explanation_service_pb2 as pb

KINDS = [
    (PathwaySource, pb.PathwaySource),
    (Granularity, pb.Granularity),
    (Ablation, pb.Ablation),
    (Reduction, pb.Reduction),
    (Output, pb.Output),
    (ClassPathwaySelection, pb.ClassPathwaySelection),
]
PREFIXES = ["PATHWAY_SOURCE", "GRANULARITY", "ABLATION", "REDUCTION", "OUTPUT", "CLASS_PATHWAY_SELECTION"]
MEMBERS = [
    (member, message, prefix) for (kind, message), prefix in zip(KINDS, PREFIXES, strict=True) for member in kind
]


@pytest.mark.parametrize(("member", "message", "prefix"), MEMBERS)
def test_every_member_has_the_name_and_the_number_of_the_contract(
    member: Enum, message: type[pb.Output], prefix: str
) -> None:
    assert to_number(member) == message.Value(f"{prefix}_{member.name}")
    assert from_number(type(member), to_number(member), "field") is member


@pytest.mark.parametrize(("kind", "message"), KINDS)
def test_every_value_of_the_contract_but_the_unspecified_has_a_member(
    kind: type[Enum], message: type[pb.Output]
) -> None:
    assert {to_number(member) for member in kind} == set(message.values()) - {0}


@pytest.mark.parametrize(("kind", "message"), KINDS)
@pytest.mark.parametrize("number", [-1, 99, 2**31 - 1])
def test_an_unknown_number_is_refused_with_its_field(kind: type[Enum], message: object, number: int) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        from_number(kind, number, "options.some", default=next(iter(kind)))
    assert (caught.value.reason, caught.value.field) == ("OPTION_INVALID", "options.some")
    assert caught.value.metadata == {"value": str(number)}


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS])
def test_the_unspecified_number_means_the_default_where_there_is_one(kind: type[Enum]) -> None:
    default = list(kind)[-1]
    assert from_number(kind, 0, "field", default) is default
    with pytest.raises(InvalidRequestError, match="field is 0"):
        from_number(kind, 0, "field")


@pytest.mark.parametrize("field", ["source", "granularity", "reduction"])
def test_an_unknown_option_is_refused_by_its_path(field: str) -> None:
    message = pb.ExplanationOptions()
    setattr(message, field, 77)
    with pytest.raises(InvalidRequestError) as caught:
        options_from_message(message)
    assert caught.value.field == f"options.{field}"


@pytest.mark.parametrize("number", [0, 77])
def test_an_unknown_or_unspecified_output_is_refused(number: pb.Output.ValueType) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        options_from_message(pb.ExplanationOptions(outputs=[pb.OUTPUT_MAP, number]))
    assert caught.value.field == "options.outputs"
