"""The gateway alone: one of the two containers of a pod, which share their loopback."""

import time
from collections.abc import Sequence

from pathlens.gateway import Gateway, GatewaySettings, Security
from pathlens.observability import TracingSettings
from pathlens.serving.follower import Follower
from pathlens.serving.loop_thread import LoopThread
from pathlens.serving.serving import Report, Serving, gateway_endpoints
from pathlens.torchserve import TorchServeSettings

_LOOPBACK = "127.0.0.1"
_POLL_SECONDS = 0.05


class GatewayService(Serving):
    """Opens the gateway, waits until a TorchServe on loopback serves, and follows that one from then on.

    It is alive whatever becomes of TorchServe, which somebody else starts again. While there is none, it is not ready.

    Args:
        torchserve: Where TorchServe is to be found.
        gateway: Where applications reach the gateway.
        report: Is told in words what is waited for.
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
        self._inference_address = f"{_LOOPBACK}:{torchserve.inference_port}"
        self._management_address = f"{_LOOPBACK}:{torchserve.management_port}"
        self._settings = gateway.for_workers(torchserve.workers)
        self._report = report
        self._security = security
        self._tracing = tracing
        self._gateway: Gateway | None = None
        self._loop: LoopThread | None = None
        self._follower: Follower | None = None

    @property
    def endpoints(self) -> Sequence[tuple[str, str]]:
        """What it listens on: a word and an address each, while it runs."""
        if self._gateway is None:
            raise RuntimeError("the gateway is not running; call start first")
        return gateway_endpoints(self._gateway)

    @property
    def models(self) -> Sequence[str]:
        """Names of the models that are served."""
        served = self._follower.served if self._follower is not None else ()
        return sorted({version.name for version in served})

    def stop(self, drain_seconds: float | None = None) -> None:
        """Refuse new calls and finish the accepted ones, as `Serving` asks."""
        seconds = self._settings.drain_seconds if drain_seconds is None else drain_seconds
        end = time.monotonic() + seconds
        gateway, self._gateway = self._gateway, None
        loop, self._loop = self._loop, None
        follower, self._follower = self._follower, None
        if loop is None:
            return
        try:
            if gateway is not None:
                loop.run(gateway.announce_stop())
            if follower is not None:
                follower.stop()
        except BaseException:
            end = 0.0
            raise
        finally:
            try:
                if gateway is not None:
                    loop.run(gateway.stop(max(0.0, end - time.monotonic())))
            finally:
                loop.close()

    def _break_off_start(self) -> None:
        # It may have become ready, and taken calls, a moment before it is known here.
        self.stop()

    def _start(self) -> None:
        self._report("Starting the gateway")
        self._loop = LoopThread()
        # Known before it is started, so that an interrupted start is undone.
        self._gateway = Gateway(self._settings, self._inference_address, (), self._security, self._tracing)
        self._loop.run(self._gateway.start())
        follower = self._follower = Follower(
            self._gateway.backend, self._loop, self._inference_address, self._management_address, self._report
        )
        follower.start()
        while not follower.connected:
            time.sleep(_POLL_SECONDS)
