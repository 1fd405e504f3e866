"""Answering a stream of requests, several at a time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")


async def answered(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Response]], window: int
) -> AsyncGenerator[Response, None]:
    """Answer requests in the order in which their answers are ready.

    At most `window` requests are read and not yet answered. While there are so many, and while the receiver of an
    answer takes its time, the next request stays unread. Leaving early ends everything that was begun.

    Args:
        requests: Where requests come from. An error ends the stream, after the answers to those before it.
        answer: Answers one request. An error ends the stream.
        window: Most requests at a time.

    Yields:
        The answers.
    """
    working: set[asyncio.Task[Response]] = set()
    reading: asyncio.Task[Request | None] | None = None
    exhausted = False
    failure: BaseException | None = None
    try:
        while True:
            if reading is None and not exhausted and len(working) < window:
                reading = asyncio.create_task(_next(requests))
            awaited: set[asyncio.Task[object]] = {*working} if reading is None else {*working, reading}
            if not awaited:
                if failure is not None:
                    raise failure
                return
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if reading is not None and reading.done():
                failure = reading.exception()
                request = None if failure is not None else reading.result()
                reading = None
                if request is None:
                    exhausted = True
                else:
                    working.add(asyncio.create_task(_run(answer, request)))
            for task in [task for task in working if task.done()]:
                working.discard(task)
                yield task.result()
    finally:
        left: list[asyncio.Task[object]] = [*working] if reading is None else [*working, reading]
        for unfinished in left:
            unfinished.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _next(requests: AsyncIterator[Request]) -> Request | None:
    return await anext(requests, None)


async def _run(answer: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
    return await answer(request)
