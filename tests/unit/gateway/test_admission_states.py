"""Whatever callers do, and in whatever order, admission keeps its promises."""

import asyncio
import itertools
from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pathlens.errors import ResourceExhaustedError
from pathlens.gateway.admission import Admission, Place
from pathlens.gateway.call_kind import CallKind

from .fault_injector import SETTINGS

MODELS = ("digits", "letters")


@dataclass(eq=False)
class Caller:
    place: Place
    task: asyncio.Task[bool]


class Admitting(RuleBasedStateMachine):
    """Callers of two models come, take others along, leave the queue, and give their places back."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.inside: list[Place] = []
        self.waiting: list[Caller] = []
        self.taken_along: dict[Place, list[Place]] = {}

    @initialize(
        places=st.integers(1, 6),
        size=st.integers(1, 40),
        queued=st.integers(0, 3),
        prediction_share=st.floats(0.0, 0.9),
        bulk_share=st.floats(0.0, 1.0),
    )
    def begin(self, places: int, size: int, queued: int, prediction_share: float, bulk_share: float) -> None:
        self.settings = replace(
            SETTINGS,
            max_in_flight=places,
            max_in_flight_bytes=size,
            max_queued=queued,
            prediction_share=prediction_share,
            bulk_share=bulk_share,
        )
        self.admission = Admission(self.settings)

    @rule(model=st.sampled_from(MODELS), kind=st.sampled_from(CallKind), size=st.integers(1, 20))
    def come(self, model: str, kind: CallKind, size: int) -> None:
        place = Place(model, kind, size)
        in_line = sum((caller.place.model, caller.place.kind) == (model, kind) for caller in self.waiting)
        caller = Caller(place, self.loop.create_task(self.admission.turn(place)))
        self.waiting.append(caller)
        entered = self.settle()
        if caller.task.done() and caller.task.exception() is not None:
            self.waiting.remove(caller)
            assert isinstance(caller.task.exception(), ResourceExhaustedError)
            assert kind is not CallKind.BULK
            assert in_line >= self.settings.max_queued
        # Nobody comes in because another one came.
        assert entered in ([], [place])

    @rule(model=st.sampled_from(MODELS), kind=st.sampled_from(CallKind), size=st.integers(1, 20))
    def take(self, model: str, kind: CallKind, size: int) -> None:
        place = Place(model, kind, size)
        try:
            self.admission.take(place)
        except ResourceExhaustedError:
            pass
        else:
            self.inside.append(place)

    @rule(data=st.data(), wanted=st.sets(st.integers(0, 5)), gives_up=st.sampled_from(["nobody", "before", "after"]))
    def take_along(self, data: st.DataObject, wanted: set[int], gives_up: str) -> None:
        if not self.inside:
            return
        place = data.draw(st.sampled_from(self.inside))
        line = [
            caller for caller in self.waiting if (caller.place.model, caller.place.kind) == (place.model, place.kind)
        ]
        leaver = line[0] if gives_up == "before" and line else None
        if leaver is not None:
            leaver.task.cancel()
        asked = itertools.count()
        joined: list[Place] = []

        def joins(other: Place) -> bool:
            assert (other.model, other.kind) == (place.model, place.kind)
            if next(asked) in wanted:
                joined.append(other)
                return True
            return False

        self.admission.take_along(place, joins)
        self.taken_along.setdefault(place, []).extend(joined)
        along = [caller for caller in self.waiting if caller.place in joined]
        self.waiting = [caller for caller in self.waiting if caller not in along]
        if gives_up == "after" and along:
            # Its question goes with the others all the same.
            leaver = along[0]
            leaver.task.cancel()
        self.settle()
        for caller in along:
            assert caller.task.cancelled() if caller is leaver else caller.task.result() is False

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.inside:
            place = data.draw(st.sampled_from(self.inside))
            self.inside.remove(place)
            self.give_back(place)
            self.settle()

    @rule(data=st.data(), in_the_same_moment=st.booleans())
    def give_up(self, data: st.DataObject, in_the_same_moment: bool) -> None:
        if self.waiting:
            caller = data.draw(st.sampled_from(self.waiting))
            # A place may become free just before or just after, when the caller's coroutine has not run yet.
            if in_the_same_moment and self.inside:
                self.give_back(self.inside.pop())
            caller.task.cancel()
            if not in_the_same_moment and self.inside:
                self.give_back(self.inside.pop())
            self.settle()
            assert caller.task.cancelled()

    def give_back(self, place: Place) -> None:
        self.taken_along.pop(place, None)
        self.admission.leave(place)

    def bytes_inside(self) -> int:
        return sum(place.size for place in (*self.inside, *itertools.chain(*self.taken_along.values())))

    def settle(self) -> list[Place]:
        async def rest() -> None:
            for _ in range(6):
                await asyncio.sleep(0)

        self.loop.run_until_complete(rest())
        entered = []
        for caller in list(self.waiting):
            if caller.task.cancelled():
                self.waiting.remove(caller)
            elif caller.task.done() and caller.task.exception() is None:
                self.waiting.remove(caller)
                entered.append(caller)
        for caller in entered:
            self.inside.append(caller.place)
            for other in self.waiting:
                if other.place.model == caller.place.model:
                    self.check_order(other, caller)
        return [caller.place for caller in entered]

    def check_order(self, waiting: Caller, entered: Caller) -> None:
        # `waiting` is in the order of arrival, and whoever came before the one that entered is marked by its number.
        if waiting.place.kind is entered.place.kind:
            assert self.numbers(waiting) > self.numbers(entered), "passed in its own line"
        elif waiting.place.kind is CallKind.PREDICTION:
            assert self.numbers(waiting) > self.numbers(entered), "a prediction waits behind an explanation"

    def numbers(self, caller: Caller) -> int:
        # Tasks are numbered by asyncio in the order in which they were made.
        return int(caller.task.get_name().removeprefix("Task-"))

    @invariant()
    def no_more_are_in_flight_than_allowed(self) -> None:
        for model in MODELS:
            of_model = [place for place in self.inside if place.model == model]
            explanations = [place for place in of_model if place.kind is not CallKind.PREDICTION]
            limit = self.settings.requests_in_flight()
            assert len(of_model) <= limit
            assert len(explanations) <= max(1, limit - 1)
        alone = len(self.inside) == 1 and not any(self.taken_along.values())
        assert self.bytes_inside() <= self.settings.max_in_flight_bytes or alone

    @invariant()
    def somebody_is_in_while_somebody_waits(self) -> None:
        assert self.inside or not self.waiting

    @invariant()
    def a_waiting_prediction_waits_for_a_reason(self) -> None:
        for caller in self.waiting:
            if caller.place.kind is CallKind.PREDICTION:
                full = (
                    sum(place.model == caller.place.model for place in self.inside)
                    >= self.settings.requests_in_flight()
                )
                total = self.bytes_inside()
                earlier = [other.place for other in self.waiting if other.place.kind is CallKind.PREDICTION]
                assert full or any(total + place.size > self.settings.max_in_flight_bytes for place in earlier)

    def teardown(self) -> None:
        # Every waiter ends once the others do, and no place is lost.
        while self.inside:
            self.give_back(self.inside.pop(0))
            self.settle()
        assert not self.waiting
        for model in MODELS if hasattr(self, "admission") else ():
            for _ in range(self.settings.requests_in_flight()):
                self.admission.take(Place(model, CallKind.PREDICTION, 0))
        self.loop.close()


TestAdmitting = Admitting.TestCase
TestAdmitting.settings = settings(max_examples=100, stateful_step_count=40)
