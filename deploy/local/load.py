"""Callers of the service, a bounded number for a bounded time."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

from pathlens.client import Client, Connection
from pathlens.errors import PathlensError
from pathlens.explanation import ExplanationOptions, Output, PathwaySource

_NO_IMAGE = b"This is no picture."
_BATCH = 4
_STREAM = 6
_OUTPUTS = frozenset({Output.MAP, Output.FAITHFULNESS})


@dataclass(frozen=True)
class Manner:
    """How callers behave.

    Attributes:
        callers: How many there are, each with one call at a time.
        pause_seconds: How long each of them waits between two calls.
        bad_share: Share of calls with something that is no image.
        timeout_seconds: How long they wait for an answer.
        costly: Whether they ask for nothing but the most expensive explanations.
    """

    callers: int = 3
    pause_seconds: float = 0.2
    bad_share: float = 0.05
    timeout_seconds: float = 20.0
    costly: bool = False


class Load(AbstractContextManager["Load"]):
    """Calls every method of the service, from construction until the time is up or the end of the context.

    Args:
        address: host:port of the gateway; or a connection, for TLS.
        images: Encoded images, of which each call takes some.
        seconds: For how long.
        manner: How the callers behave.

    Attributes:
        ended: How many calls ended with each code.
    """

    def __init__(
        self, address: str | Connection, images: Sequence[bytes], seconds: float, manner: Manner = Manner()
    ) -> None:
        self.ended: Counter[str] = Counter()
        self._images = images
        self._manner = manner
        self._end = time.monotonic() + seconds
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        # What is refused is to be seen, and not repeated.
        self._client = Client(address, timeout=manner.timeout_seconds, retries=None)
        self._threads = [threading.Thread(target=self._call, args=(seed,)) for seed in range(manner.callers)]
        for thread in self._threads:
            thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self.wait()
        self._client.close()

    def wait(self) -> None:
        """Wait until every caller has its last answer."""
        for thread in self._threads:
            thread.join()

    def _call(self, seed: int) -> None:
        rng = random.Random(seed)  # noqa: S311
        habits = [] if self._manner.costly else list(self._habits(rng))
        costly = self._explain(rng, PathwaySource.NEURON_INTGRAD)
        rounds = 0
        while time.monotonic() < self._end and not self._stopping.is_set():
            # In turn, so that each of them comes even in a short time.
            ask = habits[(seed + rounds) % len(habits)] if habits else costly
            rounds += 1
            self._count(self._bad(rng) if rng.random() < self._manner.bad_share else ask)
            self._stopping.wait(self._manner.pause_seconds)

    def _count(self, ask: Callable[[], object]) -> None:
        try:
            ask()
        except PathlensError as error:
            code = error.code
        else:
            code = "OK"
        with self._lock:
            self.ended[code] += 1

    def _habits(self, rng: random.Random) -> Iterable[Callable[[], object]]:
        client = self._client
        yield lambda: client.predict(rng.choice(self._images))
        for source in PathwaySource:
            yield self._explain(rng, source)
        # The default, from which drift is told, comes oftener than the others.
        yield self._explain(rng, PathwaySource.TRANSFERRED)
        yield lambda: client.batch_explain(rng.choices(self._images, k=_BATCH))
        yield lambda: client.predict(rng.choice(self._images))
        yield lambda: list(client.stream_explain(iter(rng.choices(self._images, k=_STREAM)), timeout=60.0))
        yield lambda: client.get_class_pathway(0)
        yield client.list_models
        yield client.get_model

    def _explain(self, rng: random.Random, source: PathwaySource) -> Callable[[], object]:
        options = ExplanationOptions(source=source, outputs=_OUTPUTS)
        return lambda: self._client.explain(rng.choice(self._images), options)

    def _bad(self, rng: random.Random) -> Callable[[], object]:
        if rng.random() < 0.5:
            return lambda: self._client.predict(_NO_IMAGE)
        return lambda: self._client.explain(_NO_IMAGE)
