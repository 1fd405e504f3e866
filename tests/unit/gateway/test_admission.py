import asyncio
from dataclasses import replace
from typing import Any

import pytest

from pathlens.errors import ResourceExhaustedError
from pathlens.gateway.admission import Admission, Place
from pathlens.gateway.call_kind import CallKind

from .fault_injector import SETTINGS

PREDICTION, EXPLANATION, BULK = CallKind


def admission_of(**limits: Any) -> Admission:
    return Admission(replace(SETTINGS, **limits))


def place_of(size: int = 1, kind: CallKind = PREDICTION, model: str = "digits", cost: float = 0.0) -> Place:
    return Place(model, kind, size, cost)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def taken(admission: Admission, kind: CallKind, attempts: int = 100) -> int:
    for count in range(attempts):
        try:
            admission.take(place_of(kind=kind))
        except ResourceExhaustedError:
            return count
    return attempts


def test_calls_and_bytes_are_bounded() -> None:
    for limits in ({"max_in_flight": 2}, {"max_in_flight_bytes": 20}):
        admission, first = admission_of(**limits), place_of(10)
        admission.take(first)
        admission.take(place_of(10))
        with pytest.raises(ResourceExhaustedError) as caught:
            admission.take(place_of(10))
        assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.0)
        admission.leave(first)
        admission.take(place_of(10))


def test_places_are_counted_per_model_and_bytes_over_all() -> None:
    admission = admission_of(max_in_flight=1, max_in_flight_bytes=20)
    admission.take(place_of(10))
    admission.take(place_of(10, model="letters"))
    with pytest.raises(ResourceExhaustedError):
        admission.take(place_of(10, model="shapes"))


def test_a_refusal_holds_every_value() -> None:
    admission = admission_of(max_in_flight=2, max_in_flight_bytes=25)
    admission.take(place_of(20))
    with pytest.raises(ResourceExhaustedError) as caught:
        admission.take(place_of(10))
    metadata = caught.value.metadata
    assert (metadata["model"], metadata["kind"], metadata["in_flight"], metadata["in_flight_bytes"]) == (
        "digits",
        "prediction",
        "1",
        "20",
    )
    assert (metadata["in_flight_limit"], metadata["in_flight_bytes_limit"]) == ("2", "25")


def test_the_only_call_may_have_any_size() -> None:
    admission = admission_of(max_in_flight_bytes=25)
    admission.take(place_of(1000, EXPLANATION))
    with pytest.raises(ResourceExhaustedError):
        admission.take(place_of(1))


@pytest.mark.parametrize(("places", "explanations", "bulk"), [(1, 1, 1), (2, 1, 1), (4, 3, 2), (8, 6, 4), (64, 48, 36)])
def test_each_kind_leaves_its_share_to_the_kinds_before_it(places: int, explanations: int, bulk: int) -> None:
    admission = admission_of(max_in_flight=places)
    assert taken(admission, BULK) == bulk
    assert taken(admission, EXPLANATION) == explanations - bulk
    assert taken(admission, PREDICTION) == places - explanations


def test_one_worker_has_room_for_three_predictions_or_two_explanations() -> None:
    assert (taken(admission_of(), PREDICTION), taken(admission_of(), EXPLANATION)) == (3, 2)


def test_predictions_may_have_every_place() -> None:
    assert taken(admission_of(max_in_flight=8), PREDICTION) == 8


def test_explanations_leave_bytes_to_predictions() -> None:
    admission = admission_of(max_in_flight_bytes=100)
    admission.take(place_of(40, EXPLANATION))
    with pytest.raises(ResourceExhaustedError):
        admission.take(place_of(40, BULK))
    admission.take(place_of(60, PREDICTION))


def test_who_waits_comes_in_in_order() -> None:
    async def scenario() -> None:
        admission, first = admission_of(max_in_flight=1), place_of()
        entered: list[Place] = [first]

        async def enter(place: Place) -> None:
            await admission.turn(place)
            entered.append(place)

        admission.take(first)
        places = [place_of() for _ in range(3)]
        waiting = [asyncio.create_task(enter(place)) for place in places]
        await settle()
        for count in range(1, 4):
            assert len(entered) == count
            admission.leave(entered[-1])
            # Free room belongs to who waits, before that task has even run.
            with pytest.raises(ResourceExhaustedError):
                admission.take(place_of())
            await settle()
        assert entered == [first, *places]
        await asyncio.gather(*waiting)

    asyncio.run(scenario())


def test_more_than_may_wait_are_refused_and_items_of_streams_never() -> None:
    async def scenario() -> None:
        admission = admission_of(max_in_flight=1, max_queued=2)
        admission.take(place_of())
        waiting = [asyncio.create_task(admission.turn(place_of(kind=kind))) for kind in CallKind for _ in range(2)]
        await settle()
        for kind in (PREDICTION, EXPLANATION):
            with pytest.raises(ResourceExhaustedError) as caught:
                await admission.turn(place_of(kind=kind))
            assert caught.value.metadata["queued"] == "2"
        waiting += [asyncio.create_task(admission.turn(place_of(kind=BULK))) for _ in range(50)]
        await settle()
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    asyncio.run(scenario())


def test_the_bytes_of_those_who_wait_are_bounded() -> None:
    async def scenario() -> None:
        admission = admission_of(max_in_flight=1, max_queued_bytes=20)
        admission.take(place_of())
        alone = asyncio.create_task(admission.turn(place_of(1000)))
        await settle()
        assert not alone.done()
        with pytest.raises(ResourceExhaustedError):
            await admission.turn(place_of(1))
        alone.cancel()
        await asyncio.wait({alone})

    asyncio.run(scenario())


def test_a_large_call_is_not_passed_by_small_ones_that_wait_behind_it() -> None:
    async def scenario() -> None:
        admission, first = admission_of(max_in_flight_bytes=100), place_of(50)
        admission.take(first)
        large = asyncio.create_task(admission.turn(place_of(60)))
        await settle()
        small = [
            asyncio.create_task(admission.turn(place_of(10))),
            asyncio.create_task(admission.turn(place_of(10, EXPLANATION, "letters"))),
        ]
        await settle()
        assert not any(task.done() for task in (large, *small))
        admission.leave(first)
        await asyncio.gather(large, *small)

    asyncio.run(scenario())


def test_who_gives_up_makes_way_for_the_next() -> None:
    async def scenario() -> None:
        admission = admission_of(max_in_flight_bytes=100)
        admission.take(place_of(50))
        large = asyncio.create_task(admission.turn(place_of(60)))
        await settle()
        small = asyncio.create_task(admission.turn(place_of(10)))
        await settle()
        large.cancel()
        await asyncio.wait_for(small, 1.0)

    asyncio.run(scenario())


@pytest.mark.parametrize("leaves_first", [True, False])
def test_who_gives_up_in_the_moment_of_coming_in_keeps_no_room(leaves_first: bool) -> None:
    async def scenario() -> None:
        admission, held = admission_of(max_in_flight=1), place_of()
        admission.take(held)
        places = [place_of(), place_of()]
        first, second = (asyncio.create_task(admission.turn(place)) for place in places)
        await settle()
        if leaves_first:
            admission.leave(held)
            first.cancel()
        else:
            first.cancel()
            admission.leave(held)
        await asyncio.wait_for(second, 1.0)
        assert first.cancelled()
        admission.leave(places[1])
        assert taken(admission, PREDICTION) == 1

    asyncio.run(scenario())


def test_a_full_model_holds_up_no_other() -> None:
    async def scenario() -> None:
        admission = admission_of(max_in_flight=1)
        admission.take(place_of())
        waiting = asyncio.create_task(admission.turn(place_of()))
        await settle()
        await asyncio.wait_for(admission.turn(place_of(kind=EXPLANATION, model="letters")), 1.0)
        waiting.cancel()
        await asyncio.wait({waiting})

    asyncio.run(scenario())


def test_the_work_ahead_is_what_goes_first() -> None:
    async def scenario() -> None:
        admission = admission_of(max_in_flight=2)
        admission.take(place_of(kind=EXPLANATION, cost=1.0))
        admission.take(place_of(kind=PREDICTION, cost=2.0))
        costs = {PREDICTION: 4.0, EXPLANATION: 8.0, BULK: 16.0}
        waiting = [asyncio.create_task(admission.turn(place_of(kind=kind, cost=costs[kind]))) for kind in CallKind]
        await settle()
        assert admission.ahead("digits", PREDICTION) == 7.0
        assert admission.ahead("digits", EXPLANATION) == 31.0
        assert admission.ahead("letters", EXPLANATION) == 0.0
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    asyncio.run(scenario())


@pytest.mark.parametrize("leaves", ["nobody", "before", "after"])
def test_who_is_taken_along_shares_the_place_until_it_is_given_back(leaves: str) -> None:
    async def scenario() -> None:
        admission, held = admission_of(max_in_flight=1, max_in_flight_bytes=100), place_of(40)
        admission.take(held)
        places = [place_of(40), place_of(40), place_of(40)]
        waiting = [asyncio.create_task(admission.turn(place)) for place in places]
        await settle()
        if leaves == "before":
            waiting[0].cancel()
        # There is room for the bytes of one.
        admission.take_along(held, lambda _: True)
        if leaves == "after":
            waiting[0].cancel()
        await settle()
        assert [task.done() for task in waiting] == [True, leaves == "before", False]
        assert waiting[0].cancelled() if leaves != "nobody" else waiting[0].result() is False
        with pytest.raises(ResourceExhaustedError) as caught:
            admission.take(place_of(1))
        assert caught.value.metadata["in_flight_bytes"] == "80"
        admission.leave(held)
        assert await waiting[1] is (leaves != "before")
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    asyncio.run(scenario())
