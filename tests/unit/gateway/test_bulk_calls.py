import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from pathlens.errors import ResourceExhaustedError
from pathlens.gateway.bulk_calls import BulkCalls
from pathlens.gateway.metrics import Metrics
from pathlens.wire.v1 import explanation_service_pb2 as messages

from .fault_injector import SETTINGS

ITEM_BYTES = 100


def calls_of(**limits: Any) -> BulkCalls:
    return BulkCalls(replace(SETTINGS, **limits), Metrics())


async def many() -> AsyncIterator[messages.StreamExplainRequest]:
    while True:
        # A tag and a length go before the text.
        yield messages.StreamExplainRequest(id="x" * (ITEM_BYTES - 2))


def test_what_a_stream_has_read_and_not_answered_is_given_back_at_its_end() -> None:
    async def scenario() -> None:
        calls = calls_of(max_bulk_calls=1, max_queued_bytes=ITEM_BYTES + 1)
        with calls.stream() as stream:
            async with aclosing(stream.items(many())) as items:
                await anext(items)
                with pytest.raises(ResourceExhaustedError), calls.batch(1):
                    pass
        with calls.batch(ITEM_BYTES), pytest.raises(ResourceExhaustedError), calls.batch(1):
            pass

    asyncio.run(scenario())


def test_an_item_beyond_the_room_is_read_when_another_stream_or_batch_has_made_some() -> None:
    async def scenario() -> None:
        calls = calls_of(max_queued_bytes=ITEM_BYTES + 1)
        with calls.stream() as stream:
            async with aclosing(stream.items(many())) as items:
                with calls.batch(1):
                    _, size = await anext(items)
                    assert size == ITEM_BYTES
                    second = asyncio.ensure_future(anext(items))
                    done, _ = await asyncio.wait({second}, timeout=0.05)
                    assert not done
                await asyncio.wait_for(second, 1.0)
                third = asyncio.ensure_future(anext(items))
                done, _ = await asyncio.wait({third}, timeout=0.05)
                assert not done
                for _ in range(2):
                    with stream.answering(ITEM_BYTES):
                        pass
                await asyncio.wait_for(third, 1.0)

    asyncio.run(scenario())


def test_one_item_is_read_in_any_case() -> None:
    async def scenario() -> None:
        calls = calls_of(max_queued_bytes=1)
        with calls.batch(1000), calls.stream() as stream:
            async with aclosing(stream.items(many())) as items:
                for _ in range(3):
                    _, size = await asyncio.wait_for(anext(items), 1.0)
                    with stream.answering(size):
                        pass

    asyncio.run(scenario())
