import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from pathlens.gateway.stream import answered


class Requests:
    """Counts how many numbers were read of it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[int]:
        for number in range(self.count):
            self.read += 1
            yield number


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def test_every_request_is_answered() -> None:
    async def scenario() -> None:
        async def answer(number: int) -> int:
            return number * 10

        responses = [response async for response in answered(aiter(Requests(20)), answer, window=3)]
        assert sorted(responses) == [number * 10 for number in range(20)]

    asyncio.run(scenario())


def test_answers_come_in_the_order_in_which_they_are_ready() -> None:
    async def scenario() -> None:
        release_first = asyncio.Event()

        async def answer(number: int) -> int:
            if number == 0:
                await release_first.wait()
            return number

        received = []
        async for response in answered(aiter(Requests(2)), answer, window=2):
            received.append(response)
            release_first.set()
        assert received == [1, 0]

    asyncio.run(scenario())


def test_no_more_requests_are_read_than_the_window_holds() -> None:
    async def scenario() -> None:
        requests, never = Requests(20), asyncio.Event()

        async def answer(number: int) -> int:
            await never.wait()
            return number

        consuming = asyncio.ensure_future(anext(aiter(answered(aiter(requests), answer, window=3))))
        await settle()
        assert requests.read == 3
        consuming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consuming

    asyncio.run(scenario())


def test_a_slow_receiver_stops_the_reading() -> None:
    async def scenario() -> None:
        requests = Requests(20)

        async def answer(number: int) -> int:
            return number

        async with aclosing(answered(aiter(requests), answer, window=3)) as responses:
            await anext(responses)
            await settle()
            assert requests.read <= 4

    asyncio.run(scenario())


def test_a_slow_sender_does_not_hold_up_the_answers() -> None:
    async def scenario() -> None:
        async def requests() -> AsyncIterator[int]:
            yield 1
            await asyncio.Event().wait()

        async def answer(number: int) -> int:
            return number

        async with aclosing(answered(requests(), answer, window=3)) as responses:
            assert await asyncio.wait_for(anext(responses), 1.0) == 1

    asyncio.run(scenario())


def test_leaving_early_ends_all_tasks() -> None:
    async def scenario() -> None:
        async def answer(number: int) -> int:
            await asyncio.sleep(0 if number == 0 else 3600)
            return number

        async with aclosing(answered(aiter(Requests(20)), answer, window=5)) as responses:
            await anext(responses)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_an_error_of_an_answer_ends_the_stream() -> None:
    async def scenario() -> None:
        async def answer(number: int) -> int:
            raise ValueError(number)

        with pytest.raises(ValueError, match="0"):
            await anext(answered(aiter(Requests(1)), answer, window=1))

    asyncio.run(scenario())


def test_an_error_of_the_requests_comes_after_the_answers() -> None:
    async def scenario() -> None:
        async def requests() -> AsyncIterator[int]:
            yield 1
            yield 2
            raise ValueError("no more")

        async def answer(number: int) -> int:
            await asyncio.sleep(0.01)
            return number

        async with aclosing(answered(requests(), answer, window=3)) as responses:
            assert {await anext(responses), await anext(responses)} == {1, 2}
            with pytest.raises(ValueError, match="no more"):
                await anext(responses)

    asyncio.run(scenario())
