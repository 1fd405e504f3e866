import asyncio

import pytest

from pathlens.errors import ResourceExhaustedError
from pathlens.gateway.admission import Admission


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_calls_and_bytes_are_bounded() -> None:
    for admission in (Admission(max_calls=2, max_bytes=1000), Admission(max_calls=100, max_bytes=20)):
        admission.take(10)
        admission.take(10)
        with pytest.raises(ResourceExhaustedError) as caught:
            admission.take(10)
        assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.0)
        admission.leave(10)
        admission.take(10)


def test_a_refusal_holds_every_value() -> None:
    admission = Admission(max_calls=2, max_bytes=25)
    admission.take(20)
    with pytest.raises(ResourceExhaustedError) as caught:
        admission.take(10)
    assert caught.value.metadata == {"in_flight": "1", "limit": "2", "bytes": "20", "bytes_limit": "25"}


def test_the_only_call_may_have_any_size() -> None:
    admission = Admission(max_calls=2, max_bytes=25)
    admission.take(1000)
    with pytest.raises(ResourceExhaustedError):
        admission.take(1)


def test_who_waits_comes_in_in_order() -> None:
    async def scenario() -> None:
        admission, entered = Admission(max_calls=1, max_bytes=100), []

        async def enter(number: int) -> None:
            await admission.turn(1)
            entered.append(number)

        admission.take(1)
        waiting = [asyncio.create_task(enter(number)) for number in range(3)]
        await settle()
        for expected in range(3):
            assert len(entered) == expected
            admission.leave(1)
            # Free room belongs to who waits, before that task has even run.
            with pytest.raises(ResourceExhaustedError):
                admission.take(1)
            await settle()
        assert entered == [0, 1, 2]
        await asyncio.gather(*waiting)

    asyncio.run(scenario())


def test_a_large_call_is_not_passed_by_small_ones_that_wait_behind_it() -> None:
    async def scenario() -> None:
        admission = Admission(max_calls=10, max_bytes=100)
        admission.take(50)
        large = asyncio.create_task(admission.turn(60))
        await settle()
        small = asyncio.create_task(admission.turn(10))
        await settle()
        assert not large.done()
        assert not small.done()
        admission.leave(50)
        await asyncio.gather(large, small)

    asyncio.run(scenario())


def test_who_gives_up_makes_way_for_the_next() -> None:
    async def scenario() -> None:
        admission = Admission(max_calls=10, max_bytes=100)
        admission.take(50)
        large = asyncio.create_task(admission.turn(60))
        await settle()
        small = asyncio.create_task(admission.turn(10))
        await settle()
        large.cancel()
        await asyncio.wait_for(small, 1.0)

    asyncio.run(scenario())


@pytest.mark.parametrize("leaves_first", [True, False])
def test_who_gives_up_in_the_moment_of_coming_in_keeps_no_room(leaves_first: bool) -> None:
    async def scenario() -> None:
        admission = Admission(max_calls=1, max_bytes=100)
        admission.take(1)
        first, second = (asyncio.create_task(admission.turn(1)) for _ in range(2))
        await settle()
        if leaves_first:
            admission.leave(1)
            first.cancel()
        else:
            first.cancel()
            admission.leave(1)
        await asyncio.wait_for(second, 1.0)
        assert first.cancelled()
        admission.leave(1)
        admission.take(1)
        with pytest.raises(ResourceExhaustedError):
            admission.take(1)

    asyncio.run(scenario())
