"""Loads a service from one event loop: with calls in flight, or with calls that come whether or not it keeps up."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
from google.rpc import error_details_pb2, status_pb2

_CONNECTIONS = 4
_CALL_SECONDS = 60.0
# A refused caller of a closed loop asks again after this; otherwise refusals would be all that it measures.
_REFUSED_SECONDS = 0.05
_STATUS_DETAILS = "grpc-status-details-bin"


@dataclass
class Load:
    """What some seconds of load came to.

    Attributes:
        seconds: From the first call to the last answer.
        latencies: Seconds of each call that was answered with OK; in an open loop from the moment at which it was due.
        outcomes: How many calls ended with each status code and, where the service gave one, reason.
        lags: Seconds by which calls of an open loop were sent later than they were due.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    lags: list[float] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """How many calls were sent."""
        return self.outcomes.total()

    @property
    def codes(self) -> Counter[str]:
        """How many calls ended with each status code."""
        codes: Counter[str] = Counter()
        for (code, _), number in self.outcomes.items():
            codes[code] += number
        return codes

    def summary(self) -> dict[str, Any]:
        """Summarise it for a table: rates per second, times in milliseconds."""
        answered = self.codes["OK"]
        percentiles = np.percentile(self.latencies or [np.nan], (50, 95, 99)).tolist()
        refused = self.codes["RESOURCE_EXHAUSTED"]
        return {
            "calls": self.calls,
            "answered_per_second": round(answered / self.seconds, 1),
            **{f"p{name}_ms": round(1e3 * value, 2) for name, value in zip((50, 95, 99), percentiles, strict=True)},
            "refused_share": round(refused / max(1, self.calls), 4),
            "outcomes": {" ".join(filter(None, key)): number for key, number in sorted(self.outcomes.items())},
            "lag_p99_ms": round(1e3 * float(np.percentile(self.lags, 99)), 2) if self.lags else None,
        }


class LoadClient:
    """Sends one and the same request over a few connections. Use it inside one running event loop.

    Args:
        address: host:port of the service.
        method: Full name of the call.
        request: The serialised request.
    """

    def __init__(self, address: str, method: str, request: bytes) -> None:
        # Otherwise equal channels share one connection.
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
        self._channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(_CONNECTIONS)]
        self._stubs: list[Any] = [channel.unary_unary(method) for channel in self._channels]
        self._request = request
        self._sent = 0

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            await channel.close()

    async def closed_loop(self, in_flight: int, seconds: float) -> Load:
        """Keep a number of calls in flight: each caller waits for its answer before it asks again.

        Args:
            in_flight: How many callers.
            seconds: For how long they begin calls.

        Returns:
            What it came to.
        """
        load = Load()
        started = time.perf_counter()

        async def call_again_and_again() -> None:
            while (due := time.perf_counter()) < started + seconds:
                if await self._call(load, due) != "OK":
                    await asyncio.sleep(_REFUSED_SECONDS)

        await _all([call_again_and_again for _ in range(in_flight)])
        load.seconds = time.perf_counter() - started
        return load

    async def open_loop(self, rate: float, seconds: float, seed: int) -> Load:
        """Send calls at random moments, as independent callers do: nobody waits for the answers of others.

        Latencies count from the moment at which a call was due, so that a client that falls behind does not flatter
        the service.

        Args:
            rate: Calls per second, in the mean; they make a Poisson process.
            seconds: For how long.
            seed: Of the moments.

        Returns:
            What it came to.
        """
        load = Load()
        moments = arrivals(rate, seconds, seed)
        started = time.perf_counter()
        calls: list[asyncio.Task[str]] = []
        for moment in moments:
            due = started + moment
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            load.lags.append(time.perf_counter() - due)
            calls.append(asyncio.create_task(self._call(load, due)))
        await asyncio.gather(*calls)
        load.seconds = time.perf_counter() - started
        return load

    async def _call(self, load: Load, due: float) -> str:
        self._sent += 1
        stub = self._stubs[self._sent % _CONNECTIONS]
        try:
            await stub(self._request, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            load.outcomes[error.code().name, _reason(error)] += 1
            return str(error.code().name)
        load.latencies.append(time.perf_counter() - due)
        load.outcomes["OK", ""] += 1
        return "OK"


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Draw the moments of a Poisson process.

    Args:
        rate: Events per second, in the mean.
        seconds: Its length.
        seed: Equal seeds give equal moments.

    Returns:
        Moments in [0, seconds), in order.
    """
    draw = np.random.default_rng(seed)
    # Given their number, the moments of a Poisson process are independent and uniform.
    return sorted(draw.uniform(0.0, seconds, draw.poisson(rate * seconds)).tolist())


async def _all(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    await asyncio.gather(*(work() for work in works))


def _reason(error: grpc.aio.AioRpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    for key, value in error.trailing_metadata() or ():
        if key == _STATUS_DETAILS:
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    return str(info.reason)
    return ""
