"""The whole service in one process: TorchServe as a child, the gateway in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self

from pathlens.errors import ServerStartError
from pathlens.gateway import Gateway, GatewaySettings, canary
from pathlens.torchserve import TorchServe, TorchServeSettings

Report = Callable[[str], None]


class Service:
    """Starts TorchServe, waits until every model has answered a canary, opens the gateway; stops all of it again.

    Args:
        torchserve: What is served.
        gateway: Where applications reach it.
        report: Is told in words how far the start is.
    """

    def __init__(
        self,
        torchserve: TorchServeSettings,
        gateway: GatewaySettings = GatewaySettings(),
        report: Report = lambda _words: None,
    ) -> None:
        self.torchserve = TorchServe(torchserve)
        self._settings = gateway
        self._report = report
        self._gateway: Gateway | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Host and port of the gRPC endpoint."""
        return self._running.address

    @property
    def metrics_address(self) -> str:
        """Host and port of the Prometheus endpoint."""
        return self._running.metrics_address

    def start(self) -> None:
        """Start everything.

        Raises:
            ServerStartError: If TorchServe, a model or the gateway does not come up; nothing is left running then.
        """
        try:
            self._start()
        except BaseException:
            self.stop(drain_seconds=0)
            raise

    def wait(self, stopped: threading.Event) -> None:
        """Serve until `stopped` is set.

        Raises:
            ServerStartError: If TorchServe ends by itself.
        """
        while not stopped.wait(0.5):
            if not self.torchserve.is_running:
                raise ServerStartError("TorchServe ended by itself; start the service again.", reason="TORCHSERVE_DIED")

    def stop(self, drain_seconds: float | None = None) -> None:
        """Refuse new requests, finish the accepted ones within a bound, and end every process; may be repeated."""
        seconds = self._settings.drain_seconds if drain_seconds is None else drain_seconds
        if self._gateway is not None:
            self._run(self._gateway.stop(seconds))
            self._gateway = None
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        if not self._loop.is_closed():
            self._loop.close()
        self.torchserve.stop(seconds)

    def _start(self) -> None:
        self._report("Starting TorchServe")
        self.torchserve.start()
        check = partial(canary, self.torchserve.inference_address)
        self.torchserve.wait_until_ready(check, progress=self._report)
        self._report("Starting the gateway")
        self._thread.start()
        gateway = Gateway(self._settings, self.torchserve.inference_address, self.torchserve.models)
        self._run(gateway.start())
        self._gateway = gateway

    @property
    def _running(self) -> Gateway:
        if self._gateway is None:
            raise RuntimeError("the service is not running; call start first")
        return self._gateway

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
