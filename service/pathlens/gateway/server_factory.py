"""How the gRPC server that applications call is made."""

import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from pathlens.errors import ServerStartError
from pathlens.gateway.health import Health
from pathlens.gateway.host_and_port import host_and_port
from pathlens.gateway.interceptor import RequestInterceptor
from pathlens.gateway.listener import find_methods_by_name
from pathlens.gateway.metrics import SERVICE
from pathlens.gateway.security import Security
from pathlens.gateway.servicer import ExplanationServicer
from pathlens.gateway.settings import GatewaySettings
from pathlens.gateway.well_formed import MAX_OPEN_STREAMS, MAX_UNREAD_ANSWERS, WellFormedInterceptor
from pathlens.wire.v1 import explanation_service_pb2_grpc

# gRPC refuses a message without details; so it lets a little more through, which we then refuse with them.
_SPARE_MESSAGE_BYTES = 1024 * 1024
# gRPC refuses calls without saying when to try again; so it lets more through, which we then refuse with that. Streams
# and unread answers of health and reflection, which are open to everyone, have room of their own.
_SPARE_CALLS = 2
_OTHER_SERVICES = (health.SERVICE_NAME, reflection.SERVICE_NAME)
# Of a call of these services, whoever makes it from wherever.
_MESSAGE_SECONDS = 5.0


class ServerFactory:
    """Makes servers that serve the same; a `Listener` needs another one when gRPC has closed its port.

    Args:
        settings: Host and limits.
        security: TLS and tokens, and whether there is reflection.
        servicer: What answers applications.
        probes: What answers probes.
        interceptor: What every call passes first.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        security: Security,
        servicer: ExplanationServicer,
        probes: Health,
        interceptor: RequestInterceptor,
    ) -> None:
        self._settings = settings
        self._security = security
        self._servicer = servicer
        self._probes = probes
        well_formed = WellFormedInterceptor(frozenset(_OTHER_SERVICES), _MESSAGE_SECONDS)
        self._interceptors = [interceptor, *security.interceptors(), well_formed]

    def make(self) -> grpc.aio.Server:
        """Make a server that does not listen yet. Call it inside a running event loop."""
        server = grpc.aio.server(
            interceptors=self._interceptors,
            options=self._options(),
            maximum_concurrent_rpcs=_SPARE_CALLS * self._settings.max_calls + MAX_OPEN_STREAMS + MAX_UNREAD_ANSWERS,
        )
        find_methods_by_name(server)
        explanation_service_pb2_grpc.add_ExplanationServiceServicer_to_server(self._servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._probes.servicer, server)
        if self._security.offers_reflection:
            reflection.enable_server_reflection((SERVICE, *_OTHER_SERVICES), server)
        return server

    def bind(self, server: grpc.aio.Server, port: int) -> int:
        """Let a server listen.

        Args:
            server: The server, not yet started.
            port: The port; 0 lets the system choose one.

        Returns:
            The port.

        Raises:
            ServerStartError: The port is taken.
        """
        address = host_and_port(self._settings.host, port)
        try:
            return self._security.listen(server, address)
        except RuntimeError as error:
            raise ServerStartError(
                f"The gateway cannot listen on {address}: choose another port, or 0 for any free one.",
                reason="PORT_UNAVAILABLE",
                metadata={"host": self._settings.host, "port": port},
            ) from error

    def _options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_receive_message_length", self._settings.max_message_bytes + _SPARE_MESSAGE_BYTES),
            ("grpc.max_send_message_length", self._settings.max_message_bytes),
            # Otherwise a second gateway on the same port would start, and take half of the calls.
            ("grpc.so_reuseport", 0),
            # A client that balances by itself looks for new gateways only when a connection ends. Its calls go on, as
            # there is no limit on the grace.
            ("grpc.max_connection_age_ms", round(self._settings.max_connection_age_seconds * 1000)),
        ]
