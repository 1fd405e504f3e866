"""Who asks what, how often, and in which manner."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from pathlens.explainer import Explainer
from reliability.abuses import malformed, too_large_to_answer, too_large_to_send
from reliability.case import Case
from reliability.promises import Manner
from reliability.questions import Questions

# Pictures of noise take about three bytes a pixel: 100 KB to 1 MB.
_LARGE_SIDES = (185, 575)


class Pool:
    """Cases of which each is under way once at most, so that an answer that belongs to another request is seen.

    Args:
        cases: The cases.
    """

    def __init__(self, cases: Iterable[Case]) -> None:
        self._idle = list(cases)

    def take(self, rng: random.Random) -> Case | None:
        """Take a case at random; None if all are under way."""
        if not self._idle:
            return None
        index = rng.randrange(len(self._idle))
        self._idle[index], self._idle[-1] = self._idle[-1], self._idle[index]
        return self._idle.pop()

    def put_back(self, case: Case) -> None:
        """Give a case back that has ended."""
        self._idle.append(case)


@dataclass(frozen=True)
class Habit:
    """Something that callers do.

    Attributes:
        weight: How often, in relation to the others.
        pool: What they ask.
        manner: How they behave.
    """

    weight: float
    pool: Pool
    manner: Callable[[random.Random], Manner]


@dataclass(frozen=True)
class Mix:
    """What callers do in all, and while they do nothing but leave.

    Attributes:
        everything: All habits.
        departures: Cancellations, short deadlines, broken connections and abandoned streams alone.
        probe: Predictions for whoever waits for the service to be well again.
    """

    everything: tuple[Habit, ...]
    departures: tuple[Habit, ...]
    probe: Pool


def make_mix(explainer: Explainer, seed: int, max_image_bytes: int, max_message_bytes: int) -> Mix:
    """Make all requests with their right answers; takes some seconds.

    Args:
        explainer: Of the bundle that is served.
        seed: Of all that is random in them.
        max_image_bytes: Largest image that the service takes.
        max_message_bytes: Largest message.

    Returns:
        What callers do.
    """
    rng = np.random.default_rng(seed)
    questions = Questions(explainer, rng)
    sides = np.linspace(*_LARGE_SIDES, 32).astype(int).tolist()
    predictions = Pool(questions.predict() for _ in range(64))
    explanations = Pool(questions.explain() for _ in range(96))
    large = Pool([*map(questions.predict, sides), *map(questions.explain, sides[::4])])
    batches = Pool(questions.batch(int(rng.integers(2, 13))) for _ in range(12))
    streams = Pool(questions.stream(int(rng.integers(4, 16))) for _ in range(12))
    large_streams = Pool(questions.stream(6, side) for side in sides[:8])
    departures = (
        Habit(8, large, _cancels),
        Habit(6, large, _hurries),
        Habit(2, large, _hangs_up),
        Habit(3, large_streams, _leaves_a_stream),
        Habit(1, batches, _cancels),
    )
    everything = (
        Habit(20, predictions, _waits),
        Habit(22, explanations, _waits),
        Habit(5, large, _waits),
        Habit(4, batches, _waits),
        Habit(3, streams, _waits),
        Habit(2, streams, _reads_slowly),
        Habit(
            4,
            Pool(questions.class_pathway(index, frequent) for index in range(5) for frequent in (False, True)),
            _waits,
        ),
        Habit(3, Pool(case for _ in range(8) for case in questions.models()), _waits),
        Habit(10, Pool(malformed(rng)), _waits),
        Habit(2, Pool(too_large_to_send(rng, max_image_bytes, max_message_bytes)), _waits),
        Habit(1, Pool(too_large_to_answer(questions, max_message_bytes)), _waits),
        *departures,
    )
    return Mix(everything, departures, Pool(questions.predict() for _ in range(4)))


def _waits(_: random.Random) -> Manner:
    return Manner()


def _hurries(rng: random.Random) -> Manner:
    return Manner(deadline=rng.choice((0.001, 0.005, 0.02, 0.05, 0.2)))


def _cancels(rng: random.Random) -> Manner:
    return Manner(leaves_after=rng.uniform(0.0, 0.06))


def _hangs_up(rng: random.Random) -> Manner:
    return Manner(leaves_after=rng.uniform(0.0, 0.1), hangs_up=True)


def _reads_slowly(rng: random.Random) -> Manner:
    return Manner(reading_pause=rng.uniform(0.05, 0.4))


def _leaves_a_stream(rng: random.Random) -> Manner:
    if rng.random() < 0.5:
        return Manner(leaves_after_answers=rng.randrange(1, 6), hangs_up=rng.random() < 0.5)
    return Manner(deadline=rng.uniform(0.02, 0.3))
