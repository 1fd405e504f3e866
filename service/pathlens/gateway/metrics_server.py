"""The HTTP endpoint that Prometheus scrapes."""

from prometheus_client import CollectorRegistry, start_http_server

from pathlens.errors import ServerStartError


class MetricsServer:
    """Serves a registry over HTTP from its own thread until it is stopped.

    Args:
        host: Address to listen on.
        port: Port; 0 lets the system choose one.
        registry: What to serve.

    Raises:
        ServerStartError: The port is taken, or the address is not ours.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ServerStartError(
                f"The metrics endpoint cannot listen on {host} port {port} ({error.strerror or error}): choose another"
                " metrics_port, or 0 for any free one.",
                reason="PORT_UNAVAILABLE",
                metadata={"host": host, "port": port},
            ) from error
        self.port: int = self._server.server_port

    def stop(self) -> None:
        """Stop serving and wait for the thread to end."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
