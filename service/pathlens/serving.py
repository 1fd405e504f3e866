"""The whole service in one process: TorchServe as a child, the gateway in a thread of its own."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self

from pathlens.errors import ServerStartError
from pathlens.gateway import Gateway, GatewaySettings, canary
from pathlens.torchserve import TorchServe, TorchServeSettings

Report = Callable[[str], None]

# However long the gateway has taken, TorchServe may end as it wants to, without being killed.
_LEAST_DRAIN_SECONDS = 1.0
# How long a gateway may take to put away what it has begun.
_CANCEL_SECONDS = 10.0


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
        self._loop: _LoopThread | None = None

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
        """Refuse new requests, finish the accepted ones, and end every process; may be repeated.

        Args:
            drain_seconds: How long all of this may take, but for a second that TorchServe always has; 0 ends everything
                at once. None means the gateway's settings.
        """
        seconds = self._settings.drain_seconds if drain_seconds is None else drain_seconds
        end = time.monotonic() + seconds
        try:
            self._stop_gateway(seconds)
        finally:
            # Also when the gateway fails to stop or is interrupted: TorchServe is a process and would live on.
            self.torchserve.stop(max(_LEAST_DRAIN_SECONDS, end - time.monotonic()) if seconds > 0 else 0)

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
        self._report("Starting TorchServe")
        self.torchserve.start()
        check = partial(canary, self.torchserve.inference_address)
        self.torchserve.wait_until_ready(check, progress=self._report)
        self._report("Starting the gateway")
        self._loop = _LoopThread()
        # Known before it is started, so that an interrupted start is undone.
        self._gateway = Gateway(self._settings, self.torchserve.inference_address, self.torchserve.models)
        self._loop.run(self._gateway.start())

    @property
    def _running(self) -> Gateway:
        if self._gateway is None:
            raise RuntimeError("the service is not running; call start first")
        return self._gateway


class _LoopThread:
    """An event loop in a thread of its own, from the construction to `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine to its end; whoever interrupts the waiting cancels it and waits for its end, too."""
        tasks: list[asyncio.Task[None]] = []
        ended = threading.Event()

        def begin() -> None:
            tasks.append(self._loop.create_task(coroutine))
            tasks[0].add_done_callback(lambda _: ended.set())

        self._loop.call_soon_threadsafe(begin)
        try:
            ended.wait()
        except BaseException:
            self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            ended.wait(_CANCEL_SECONDS)
            raise
        tasks[0].result()

    def close(self) -> None:
        """End the thread and the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
