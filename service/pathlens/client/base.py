"""What both clients are made of."""

from pathlens.client.connection import Connection
from pathlens.client.invocation import Invocation, checked_timeout
from pathlens.client.retry import DEFAULT_RETRIES, RetryPolicy
from pathlens.explanation import ModelReference
from pathlens.wire.requests import model_to_message


class BaseClient:
    """Knows the service, the model and how calls are made.

    Args:
        address: Host and port of the gateway, or a `Connection`.
        model: Name of the model to ask.
        version: Its version.
        timeout: Seconds that a call may take.
        retries: How calls are repeated.

    Raises:
        InvalidRequestError: A setting is out of range.
        OSError: A certificate cannot be read.
    """

    def __init__(
        self,
        address: str | Connection,
        model: str = "",
        version: str = "",
        timeout: float = 60.0,
        retries: RetryPolicy | None = DEFAULT_RETRIES,
    ) -> None:
        self._connection = address if isinstance(address, Connection) else Connection(address)
        # Read now, so that a wrong file is an error of the constructor.
        self._credentials = self._connection.channel_credentials()
        self._model = model_to_message(ModelReference(model, version))
        self._timeout = checked_timeout(timeout)
        self._retries = retries

    def _invocation(self, timeout: float | None, request_id: str | None) -> Invocation:
        return Invocation(self._connection, self._timeout if timeout is None else timeout, self._retries, request_id)

    def _stream_invocation(self, timeout: float | None, request_id: str | None) -> Invocation:
        # A stream may take any time, and is never repeated.
        return Invocation(self._connection, timeout, None, request_id)
