"""Runs one script against both clients: what is true of one must be true of the other."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from pathlens.client import AsyncClient, Client, Connection

both_clients = pytest.mark.parametrize("kind", [Client, AsyncClient])
"""Gives a test the class of a client as `kind`."""

Kind = type[Client] | type[AsyncClient]


def call(kind: Kind, connection: str | Connection, method: str, *arguments: Any, **settings: Any) -> Any:
    """Make one call with a client of its own; a stream is read to its end.

    Args:
        kind: Which client.
        connection: Where to.
        method: Name of the method.
        arguments: Of the method.
        settings: Those of the method if it knows them, else of the client.
    """
    known = inspect.signature(getattr(kind, method)).parameters
    keywords = {name: value for name, value in settings.items() if name in known}
    others = {name: value for name, value in settings.items() if name not in known}
    if issubclass(kind, Client):
        with kind(connection, **others) as client:
            answer = getattr(client, method)(*arguments, **keywords)
            return list(answer) if isinstance(answer, Iterator) else answer
    return asyncio.run(_call(connection, method, arguments, keywords, others))


async def _call(
    connection: str | Connection, method: str, arguments: Any, keywords: dict[str, Any], others: dict[str, Any]
) -> Any:
    async with AsyncClient(connection, **others) as client:
        answer = getattr(client, method)(*arguments, **keywords)
        return [item async for item in answer] if isinstance(answer, AsyncIterator) else await answer
