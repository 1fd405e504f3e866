from hypothesis import given
from hypothesis import strategies as st

from pathlens.gateway.batch import chunks, fitted
from pathlens.wire.status import OK, error_from_status
from pathlens.wire.v1 import explanation_service_pb2 as messages


def result_of(size: int) -> messages.ExplainResult:
    explanation = messages.Explanation(heatmap_png=bytes(size))
    return messages.ExplainResult(status=OK, response=messages.ExplainResponse(explanations=[explanation]))


@given(
    st.lists(st.integers(min_value=0, max_value=100)),
    st.integers(min_value=1, max_value=10),
    st.integers(min_value=0, max_value=200),
)
def test_chunks_keep_every_item_in_order_and_both_limits(sizes: list[int], max_items: int, max_bytes: int) -> None:
    cut = list(chunks(list(enumerate(sizes)), max_items, max_bytes))
    assert [position for chunk in cut for position in chunk] == list(range(len(sizes)))
    for chunk in cut:
        assert 1 <= len(chunk) <= max_items
        assert len(chunk) == 1 or sum(sizes[position] for position in chunk) <= max_bytes


@given(st.lists(st.integers(min_value=0, max_value=2000), max_size=20))
def test_results_that_fit_are_sent_unchanged(sizes: list[int]) -> None:
    results = [result_of(size) for size in sizes]
    assert list(fitted(results, max_bytes=1_000_000).results) == results


@given(st.lists(st.integers(min_value=0, max_value=5000), max_size=20))
def test_a_response_never_exceeds_the_limit(sizes: list[int]) -> None:
    assert fitted([result_of(size) for size in sizes], max_bytes=20_000).ByteSize() <= 20_000


def test_a_result_without_room_names_the_remedy() -> None:
    response = fitted([result_of(10), result_of(50_000), result_of(20)], max_bytes=10_000)
    refusal = error_from_status(response.results[1].status)
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "RESPONSE_TOO_LARGE")
    assert "StreamExplain" in refusal.message
    assert not response.results[1].HasField("response")


def test_a_result_without_room_costs_no_other_result_its_place() -> None:
    response = fitted([result_of(10), result_of(50_000), result_of(20)], max_bytes=10_000)
    assert [result.status.code == OK.code for result in response.results] == [True, False, True]
