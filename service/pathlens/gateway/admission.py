"""How much TorchServe may hold at one time, who waits for room, and in which order."""

import asyncio
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pathlens.errors import ResourceExhaustedError
from pathlens.gateway.call_kind import CallKind
from pathlens.gateway.settings import GatewaySettings
from pathlens.gateway.upstream_errors import queue_full

_EXPLANATIONS = (CallKind.EXPLANATION, CallKind.BULK)


@dataclass(frozen=True, eq=False)
class Place:
    """What one request takes of TorchServe. Each is its own, whatever it holds.

    Attributes:
        model: Name of the model that is asked.
        kind: The line in which it waits.
        size: Bytes of the request.
        cost: Seconds that the handler is expected to take; 0 while that is unknown.
    """

    model: str
    kind: CallKind
    size: int
    cost: float = 0.0


@dataclass(eq=False)
class _Waiter:
    place: Place
    number: int
    woken: asyncio.Future[None] | None = None
    entered: bool = False
    taken_along: bool = False


@dataclass
class _Line:
    waiters: deque[_Waiter] = field(default_factory=deque)
    size: int = 0


class Admission:
    """Bounds what TorchServe holds and what waits for it, and keeps predictions from waiting behind explanations.

    Places are counted per model, bytes over all models, both from `take` or `turn` to `leave`. Explanations leave a
    share of both to predictions, and the items of streams and batches leave a share of what explanations have to lone
    ones. What becomes free goes to waiting predictions first and then to waiting explanations, each in the order in
    which they came. A request is always let in when TorchServe holds no other.

    Args:
        settings: The limits.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        places = settings.requests_in_flight()
        # One place at the least for either side, as far as there are two.
        reserved = min(max(1, round(places * settings.prediction_share)), places - 1)
        explanations = places - reserved
        self._places = {
            CallKind.PREDICTION: places,
            CallKind.EXPLANATION: explanations,
            CallKind.BULK: min(explanations, max(1, math.floor(explanations * settings.bulk_share))),
        }
        self._explanation_bytes = settings.max_in_flight_bytes * (1.0 - settings.prediction_share)
        # With those that were taken along.
        self._in_flight: dict[str, dict[Place, list[Place]]] = {}
        self._counts: Counter[tuple[str, CallKind]] = Counter()
        self._bytes: Counter[CallKind] = Counter()
        self._lines: dict[tuple[str, CallKind], _Line] = {}
        self._numbers = itertools.count()

    def take(self, place: Place) -> None:
        """Let a request in that does not wait.

        Args:
            place: What it takes.

        Raises:
            ResourceExhaustedError: There is no room.
        """
        waiter = self._line_up(place)
        if not waiter.entered:
            error = self._refusal(place)
            self._remove(waiter)
            raise error

    def enters(self, place: Place) -> bool:
        """Let a request in if there is room for it and nobody goes before it.

        Args:
            place: What it takes.

        Returns:
            Whether it is in; else it may wait for its `turn`.
        """
        waiter = self._line_up(place)
        if not waiter.entered:
            self._remove(waiter)
        return waiter.entered

    async def turn(self, place: Place) -> bool:
        """Let a request in, as soon as there is room and those who go before it are in.

        Args:
            place: What it takes.

        Returns:
            Whether it has a place of its own; False if it was taken along by another one.

        Raises:
            ResourceExhaustedError: As many wait as may; never for items of streams and batches, whose own windows
                bound how many of them wait.
        """
        waiter = self._line_up(place)
        if waiter.entered:
            return True
        if self._is_too_long(place):
            error = self._refusal(place)
            self._remove(waiter)
            raise error
        waiter.woken = asyncio.get_running_loop().create_future()
        try:
            await waiter.woken
        except asyncio.CancelledError:
            if waiter.entered:
                # Let in at the moment in which it gave up.
                self.leave(place)
            elif not waiter.taken_along:
                self._remove(waiter)
                # It may have been the first, too large for the room that the next one fits into.
                self._let_in()
            raise
        return waiter.entered

    def take_along(self, place: Place, joins: Callable[[Place], bool]) -> None:
        """Let those who wait in the line of a request share its place, as far as there is room for their bytes.

        Args:
            place: What the request has taken.
            joins: Asked of everyone in the order of the line; tells whether to take this one along.
        """
        line = self._lines[place.model, place.kind]
        for waiter in list(line.waiters):
            if not self._has_bytes(waiter.place):
                return
            # Who gave up a moment ago stays in line until its coroutine runs.
            if waiter.woken is None or waiter.woken.done() or not joins(waiter.place):
                continue
            self._remove(waiter)
            self._in_flight[place.model][place].append(waiter.place)
            self._bytes[place.kind] += waiter.place.size
            waiter.taken_along = True
            waiter.woken.set_result(None)

    def leave(self, place: Place) -> None:
        """Give back the room of a request, and of those that it took along.

        Args:
            place: What it took.
        """
        companions = self._in_flight[place.model].pop(place)
        self._counts[place.model, place.kind] -= 1
        self._bytes[place.kind] -= place.size + sum(companion.size for companion in companions)
        self._let_in()

    def ahead(self, model: str, kind: CallKind) -> float:
        """Tell how much work a request would find before it.

        Args:
            model: Name of the model that is asked.
            kind: The line in which it would wait.

        Returns:
            Seconds that the handler is expected to take for all of it.
        """
        before = (CallKind.PREDICTION,) if kind is CallKind.PREDICTION else tuple(CallKind)
        waiting = (waiter.place for one in before if (line := self._lines.get((model, one))) for waiter in line.waiters)
        sent = (one for place, others in self._in_flight.get(model, {}).items() for one in (place, *others))
        return math.fsum(place.cost for place in itertools.chain(sent, waiting))

    def _line_up(self, place: Place) -> _Waiter:
        waiter = _Waiter(place, next(self._numbers))
        line = self._lines.setdefault((place.model, place.kind), _Line())
        line.waiters.append(waiter)
        line.size += place.size
        self._let_in()
        return waiter

    def _remove(self, waiter: _Waiter) -> None:
        line = self._lines[waiter.place.model, waiter.place.kind]
        line.waiters.remove(waiter)
        line.size -= waiter.place.size

    def _let_in(self) -> None:
        # Heads of lines, the next one first. A line whose places are taken holds up nobody but itself; a request for
        # whose bytes there is no room holds up everyone after it, or it would wait for ever beside small ones.
        open_lines = {key: line for key, line in self._lines.items() if line.waiters}
        while open_lines:
            key = min(open_lines, key=lambda key: (key[1] in _EXPLANATIONS, open_lines[key].waiters[0].number))
            line = open_lines[key]
            waiter = line.waiters[0]
            if not self._has_place(*key):
                del open_lines[key]
                continue
            if not self._has_bytes(waiter.place):
                return
            self._remove(waiter)
            self._enter(waiter)
            if not line.waiters:
                del open_lines[key]

    def _enter(self, waiter: _Waiter) -> None:
        place = waiter.place
        self._in_flight.setdefault(place.model, {})[place] = []
        self._counts[place.model, place.kind] += 1
        self._bytes[place.kind] += place.size
        waiter.entered = True
        # The coroutine of a cancelled one gives the room back when it runs.
        if waiter.woken is not None and not waiter.woken.cancelled():
            waiter.woken.set_result(None)

    def _has_place(self, model: str, kind: CallKind) -> bool:
        if len(self._in_flight.get(model, ())) >= self._places[CallKind.PREDICTION]:
            return False
        if kind is CallKind.BULK and self._counts[model, kind] >= self._places[kind]:
            return False
        explanations = sum(self._counts[model, one] for one in _EXPLANATIONS)
        return kind is CallKind.PREDICTION or explanations < self._places[CallKind.EXPLANATION]

    def _has_bytes(self, place: Place) -> bool:
        if not any(self._in_flight.values()):
            return True
        if self._bytes.total() + place.size > self._settings.max_in_flight_bytes:
            return False
        explanations = sum(self._bytes[one] for one in _EXPLANATIONS)
        return place.kind is CallKind.PREDICTION or explanations + place.size <= self._explanation_bytes

    def _is_too_long(self, place: Place) -> bool:
        if place.kind is CallKind.BULK:
            return False
        line = self._lines[place.model, place.kind]
        waiting = len(line.waiters)
        # As in flight, the only one that waits may have any size.
        return waiting > self._settings.max_queued or (waiting > 1 and line.size > self._settings.max_queued_bytes)

    def _refusal(self, place: Place) -> ResourceExhaustedError:
        line = self._lines[place.model, place.kind]
        return queue_full(
            place.model,
            {
                "kind": place.kind.value,
                "in_flight": len(self._in_flight.get(place.model, ())),
                "in_flight_limit": self._places[place.kind],
                "in_flight_bytes": self._bytes.total(),
                "in_flight_bytes_limit": self._settings.max_in_flight_bytes,
                "queued": len(line.waiters) - 1,
                "queued_limit": self._settings.max_queued,
                "queued_bytes": line.size - place.size,
                "queued_bytes_limit": self._settings.max_queued_bytes,
            },
        )
