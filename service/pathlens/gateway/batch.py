"""Cutting a batch into chunks, and its results to the size of one message."""

from collections.abc import Iterator, Sequence

from pathlens.wire.status import response_too_large, status_from_error
from pathlens.wire.v1 import explanation_service_pb2 as messages

# A repeated message field adds a tag of one byte and a length of at most five.
_FIELD_OVERHEAD = 6


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


def _refusal(size: int, max_bytes: int) -> messages.ExplainResult:
    error = response_too_large(size, max_bytes, "use StreamExplain, or ask for fewer outputs")
    return messages.ExplainResult(status=status_from_error(error))
