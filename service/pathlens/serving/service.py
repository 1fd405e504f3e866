"""The whole service in one process: TorchServe as a child, the gateway in a thread of its own."""

import time
from collections.abc import Sequence

from pathlens.gateway import Gateway, GatewaySettings, Security
from pathlens.observability import TracingSettings
from pathlens.serving.loop_thread import LoopThread
from pathlens.serving.serving import Report, gateway_endpoints
from pathlens.serving.supervised import Supervised
from pathlens.torchserve import TorchServeSettings


class Service(Supervised):
    """Starts TorchServe, waits until every model has answered a canary, opens the gateway; stops all of it again.

    Meanwhile a TorchServe that has ended, or answers nothing, is started again behind the gateway, whose port stays,
    and archives that appear, change or vanish are taken up.

    Args:
        torchserve: What is served.
        gateway: Where applications reach it.
        report: Is told in words how far the start is.
        security: TLS and tokens of the gateway; None means plain text, and that everyone may call.
        tracing: Where the gateway sends spans of its calls.
    """

    def __init__(
        self,
        torchserve: TorchServeSettings,
        gateway: GatewaySettings = GatewaySettings(),
        report: Report = lambda _words: None,
        security: Security | None = None,
        tracing: TracingSettings = TracingSettings(),
    ) -> None:
        super().__init__(torchserve, report)
        self._settings = gateway.for_workers(torchserve.workers)
        self._security = security
        self._tracing = tracing
        self._gateway: Gateway | None = None

    @property
    def address(self) -> str:
        """Host and port of the gRPC endpoint."""
        return self._running.address

    @property
    def metrics_address(self) -> str:
        """Host and port of the Prometheus endpoint."""
        return self._running.metrics_address

    @property
    def endpoints(self) -> Sequence[tuple[str, str]]:
        """What it listens on: a word and an address each, while it runs."""
        return gateway_endpoints(self._running)

    @property
    def _drain_seconds(self) -> float:
        return self._settings.drain_seconds

    def _announce_stop(self) -> None:
        if self._loop is not None and self._gateway is not None:
            self._loop.run(self._gateway.announce_stop())

    def _finish_calls(self, end: float) -> None:
        self._stop_gateway(max(0.0, end - time.monotonic()))

    def _close(self) -> None:
        self._stop_gateway(0)

    def _stop_gateway(self, seconds: float) -> None:
        gateway, self._gateway = self._gateway, None
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            if gateway is not None:
                loop.run(gateway.stop(seconds))
        finally:
            loop.close()

    def _start(self) -> None:
        self._start_torchserve(self._canary)
        self._report("Starting the gateway")
        self._loop = LoopThread()
        # Known before it is started, so that an interrupted start is undone.
        self._gateway = Gateway(
            self._settings,
            self.torchserve.inference_address,
            [archive.version for archive in self.torchserve.served],
            self._security,
            self._tracing,
            [self._collector],
        )
        self._loop.run(self._gateway.start())
        self._supervise(self._gateway.backend, self._loop)

    @property
    def _running(self) -> Gateway:
        if self._gateway is None:
            raise RuntimeError("the service is not running; call start first")
        return self._gateway
