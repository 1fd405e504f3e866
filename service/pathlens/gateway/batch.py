"""Cutting a batch into chunks, computing them, and cutting the results to the size of one message."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from pathlens.wire.status import error_from_status, response_too_large, status_from_error
from pathlens.wire.v1 import explanation_service_pb2 as messages

# A repeated message field adds a tag of one byte and a length of at most five.
_FIELD_OVERHEAD = 6

Compute: TypeAlias = Callable[[Sequence[int], int], Awaitable[list[messages.ExplainResult]]]
"""Computes the items of a chunk: their positions, and the most bytes that their results may have together."""


def chunks(sizes: Sequence[tuple[int, int]], max_items: int, max_bytes: int) -> Iterator[list[int]]:
    """Cut items into consecutive chunks.

    Args:
        sizes: Position and size in bytes of each item, in order.
        max_items: Most items of a chunk.
        max_bytes: Most bytes of a chunk; an item that is larger makes a chunk of its own.

    Yields:
        The positions of one chunk.
    """
    chunk: list[int] = []
    total = 0
    for position, size in sizes:
        if chunk and (len(chunk) == max_items or total + size > max_bytes):
            yield chunk
            chunk, total = [], 0
        chunk.append(position)
        total += size
    if chunk:
        yield chunk


class Room:
    """The bytes of one message, and the chunks that are computed to fill it.

    Args:
        max_bytes: Largest message.
        window: Most chunks at a time.
        chunks: How many there are.
    """

    def __init__(self, max_bytes: int, window: int, chunks: int) -> None:
        self.left = max_bytes
        self._waiting = chunks
        self._idle = window
        self._window = asyncio.Semaphore(window)

    @asynccontextmanager
    async def share(self) -> AsyncIterator[int]:
        """Wait for a place in the window, and keep a part of what is left for one chunk.

        Yields:
            The most bytes that the results of the chunk may have.
        """
        async with self._window:
            share = max(1, self.left // max(1, min(self._waiting, self._idle)))
            self.left -= share
            self._waiting -= 1
            self._idle -= 1
            try:
                yield share
            finally:
                self.left += share
                self._idle += 1

    def fill(self, results: Sequence[messages.ExplainResult]) -> None:
        """Count results as part of the message."""
        self.left -= sum(result.ByteSize() + _FIELD_OVERHEAD for result in results)


async def computed(chunks: Sequence[Sequence[int]], compute: Compute, room: Room) -> dict[int, messages.ExplainResult]:
    """Compute chunks so that all their results together have no more bytes than one message.

    Chunks that are computed at the same time share what is left of the message. An item whose result was larger than
    its share is computed again when the others are done, as long as the message has room for it.

    Args:
        chunks: The positions of each chunk.
        compute: Computes one chunk.
        room: What the results have to fit into.

    Returns:
        The result of each position; RESPONSE_TOO_LARGE where there was no room.
    """
    results: dict[int, messages.ExplainResult] = {}

    async def compute_in_share(chunk: Sequence[int]) -> None:
        async with room.share() as share:
            answers = await compute(chunk, share)
            room.fill(answers)
        results.update(zip(chunk, answers, strict=True))

    async with asyncio.TaskGroup() as group:
        for chunk in chunks:
            group.create_task(compute_in_share(chunk))
    for chunk in chunks:
        again, size = [], 0
        for position in chunk:
            needed = _refused_bytes(results[position])
            if needed and size + needed <= room.left:
                again.append(position)
                size += needed
        if again:
            await compute_in_share(again)
    return results


def fitted(results: Sequence[messages.ExplainResult], max_bytes: int) -> messages.BatchExplainResponse:
    """Put results into one message, refusing those for which there is no room.

    Args:
        results: One per item of the batch, in order.
        max_bytes: Largest message.

    Returns:
        The response; results that do not fit are replaced by RESOURCE_EXHAUSTED with reason RESPONSE_TOO_LARGE.
    """
    refusals = [_refusal(result.ByteSize(), max_bytes) for result in results]
    least = [
        min(result.ByteSize(), refusal.ByteSize()) + _FIELD_OVERHEAD
        for result, refusal in zip(results, refusals, strict=True)
    ]
    # Room is kept for what the later items need at the least, so that an early item cannot crowd them out.
    reserved = sum(least)
    used = 0
    response = messages.BatchExplainResponse()
    for result, refusal, minimum in zip(results, refusals, least, strict=True):
        reserved -= minimum
        size = result.ByteSize() + _FIELD_OVERHEAD
        kept = result if used + size + reserved <= max_bytes else refusal
        used += kept.ByteSize() + _FIELD_OVERHEAD
        response.results.append(kept)
    return response


def _refused_bytes(result: messages.ExplainResult) -> int:
    error = error_from_status(result.status)
    return int(error.metadata.get("bytes", 0)) if error.reason == "RESPONSE_TOO_LARGE" else 0


def _refusal(size: int, max_bytes: int) -> messages.ExplainResult:
    error = response_too_large(size, max_bytes, "use StreamExplain, or ask for fewer outputs")
    return messages.ExplainResult(status=status_from_error(error))
