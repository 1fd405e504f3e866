import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pathlens.gateway.batch import Room, chunks, computed, fitted
from pathlens.wire.status import OK, error_from_status, response_too_large, status_from_error
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


@given(
    st.lists(st.lists(st.integers(min_value=0, max_value=30_000), min_size=1, max_size=4), max_size=8),
    st.integers(min_value=1, max_value=4),
)
def test_chunks_never_hold_more_than_one_message(sizes: list[list[int]], window: int) -> None:
    limit, held, shares = 40_000, 0, 0
    flat = [size for chunk in sizes for size in chunk]
    positions = iter(range(len(flat)))
    cut = [[next(positions) for _ in chunk] for chunk in sizes]

    async def compute(chunk: Sequence[int], max_bytes: int) -> list[messages.ExplainResult]:
        nonlocal held, shares
        shares += max_bytes
        assert held + shares <= limit + 1_000
        await asyncio.sleep(0)
        answers, room = [], max_bytes
        for position in chunk:
            answer = result_of(flat[position])
            if (size := answer.ByteSize()) > room:
                answer = messages.ExplainResult(status=status_from_error(response_too_large(size, room, "x")))
            else:
                room -= size
                held += size
            answers.append(answer)
        shares -= max_bytes
        return answers

    results = asyncio.run(computed(cut, compute, Room(limit, window, len(cut))))
    assert sorted(results) == list(range(len(flat)))
    refused = [flat[position] for position, result in results.items() if result.status.code != OK.code]
    # Nothing is refused for which there would have been room beside the rest.
    assert all(held + size > limit - 6_000 for size in refused)
