"""Asks callers for a token before anything that they send is read."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from grpc_status import rpc_status

from pathlens.errors import UnauthenticatedError
from pathlens.gateway.call import called_by
from pathlens.gateway.metrics import METHODS, SERVICE
from pathlens.gateway.tokens import TokenFile
from pathlens.wire.status import status_from_error

Context = grpc.aio.ServicerContext[Any, Any]
# Generic in its stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"

# The calls whose errors become statuses elsewhere.
_COUNTED = frozenset(f"/{SERVICE}/{method}" for method in METHODS)
_METADATA_KEY = "authorization"
_SCHEME = "bearer"


class AuthorisationInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a valid token, except to services that are open to everyone.

    A refused call is answered without receiving its message. The token is looked at when a call begins: a stream goes
    on when its token is withdrawn. It belongs after the interceptor that turns errors into statuses and counts them.

    Args:
        tokens: Who may call.
        open_services: Full names of the services that ask for no token.
    """

    def __init__(self, tokens: TokenFile, open_services: frozenset[str]) -> None:
        self._tokens = tokens
        self._open_services = open_services

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Replace the handler of a call that is not allowed, as `grpc.aio.ServerInterceptor` asks."""
        method = handler_call_details.method
        service = method.rpartition("/")[0].removeprefix("/")
        if service in self._open_services or self._allowed(handler_call_details):
            return await continuation(handler_call_details)
        # A handler of streams: grpc receives the message of any other before it calls the handler.
        return grpc.stream_stream_rpc_method_handler(_raise if method in _COUNTED else _abort)

    def _allowed(self, call: grpc.HandlerCallDetails) -> bool:
        sent = [value for key, value in call.invocation_metadata if key == _METADATA_KEY]
        if len(sent) != 1 or not isinstance(sent[0], str):
            return False
        scheme, _, token = sent[0].partition(" ")
        if scheme.lower() != _SCHEME or (holder := self._tokens.holder(token.strip())) is None:
            return False
        called_by(holder)
        return True


async def _raise(_requests: AsyncIterator[bytes], _context: Context) -> AsyncIterator[bytes]:
    # One and the same for all that can be wrong with a token.
    raise UnauthenticatedError(
        "This service answers to those who have a token: send a valid one as metadata, `authorization: Bearer TOKEN`."
    )
    yield b""


async def _abort(requests: AsyncIterator[bytes], context: Context) -> None:
    try:
        async for _ in _raise(requests, context):
            pass
    except UnauthenticatedError as error:
        await context.abort_with_status(rpc_status.to_status(status_from_error(error)))
