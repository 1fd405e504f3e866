"""A port that serves health alone, in plain text: the probes of Kubernetes speak no TLS."""

import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc

from pathlens.errors import ServerStartError
from pathlens.gateway.health import Health
from pathlens.gateway.host_and_port import host_and_port
from pathlens.gateway.listener import Listener, find_methods_by_name
from pathlens.gateway.well_formed import MAX_OPEN_STREAMS, MAX_UNREAD_ANSWERS, WellFormedInterceptor

# A probe's message is the name of a service.
_MAX_MESSAGE_BYTES = 16 * 1024
# The message of a probe comes with its call, and a probe waits for a second at the most: calls without one must be gone
# by then.
_MESSAGE_SECONDS = 0.3
# A probe has a connection of its own. Others share the places of one, however many calls they begin.
_CONNECTION_STREAMS = 10


class HealthServer:
    """Serves `grpc.health.v1` and nothing else from `start` to `stop`.

    Construct it inside a running event loop.

    Args:
        host: Address to listen on.
        port: Port; 0 lets the system choose one.
        setting: Name of the setting that chooses it.
        probes: What answers.

    Raises:
        ServerStartError: The port is taken.
    """

    def __init__(self, host: str, port: int, setting: str, probes: Health) -> None:
        self._host = host
        self._setting = setting
        self._probes = probes
        self._listener = Listener(self._make, self._bind, port)

    @property
    def address(self) -> str:
        """host:port that probes ask."""
        return host_and_port(self._host, self._listener.port)

    async def start(self) -> None:
        """Take calls."""
        await self._listener.start()

    async def stop(self) -> None:
        """Take no more calls, and end those in progress."""
        await self._listener.stop(None)

    def _make(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[WellFormedInterceptor(frozenset({health.SERVICE_NAME}), _MESSAGE_SECONDS)],
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_concurrent_streams", _CONNECTION_STREAMS),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=MAX_OPEN_STREAMS + MAX_UNREAD_ANSWERS,
        )
        find_methods_by_name(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._probes.servicer, server)
        return server

    def _bind(self, server: grpc.aio.Server, port: int) -> int:
        address = host_and_port(self._host, port)
        try:
            return server.add_insecure_port(address)
        except RuntimeError as error:
            raise ServerStartError(
                f"The port for probes, {address}, cannot be listened on: choose another {self._setting}, or 0 for any"
                " free one.",
                reason="PORT_UNAVAILABLE",
                metadata={"host": self._host, "port": port},
            ) from error
