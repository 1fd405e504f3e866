"""What the served versions of models do with their calls."""

import asyncio
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from google.rpc import code_pb2

from pathlens.gateway.admission import Place
from pathlens.gateway.answer import Answer
from pathlens.model_version import ModelVersion
from pathlens.wire.internal.v1 import worker_pb2

# Everything else is answered from the handler's memory, whatever has become of the network.
_COMPUTED = ("predict", "explain")


@dataclass(eq=False)
class VersionTraffic:
    """The calls of one version, from its first one until it is forgotten.

    Attributes:
        sent: Calls that TorchServe has not answered yet, and their places.
        calls: How many there are, those that wait for room included.
        busy_since: When the first of these was sent.
        answered: When a prediction or an explanation was last answered.
        failed: When one was last answered with INTERNAL.
        given_up: Whether nobody waits for it any more.
    """

    sent: dict[asyncio.Task[Answer], Place] = field(default_factory=dict)
    calls: int = 0
    busy_since: float = -math.inf
    answered: float = -math.inf
    failed: float = -math.inf
    given_up: bool = False

    def begin(self, task: asyncio.Task[Answer], place: Place) -> None:
        """Note that a call was sent.

        Args:
            task: What ends with it.
            place: What it takes.
        """
        if not self.sent:
            self.busy_since = time.monotonic()
        self.sent[task] = place

    def learn(self, calls: Iterable[worker_pb2.WorkerCall], replies: Iterable[worker_pb2.WorkerReply]) -> None:
        """Note what the handler answered.

        Args:
            calls: The questions.
            replies: Its answer to each of them.
        """
        for call, reply in zip(calls, replies, strict=True):
            if call.WhichOneof("call") not in _COMPUTED:
                continue
            # A bad image, or no time left, is a living handler's answer; INTERNAL may be all that a broken one has.
            if reply.status.code == code_pb2.INTERNAL:
                self.failed = time.monotonic()
            else:
                self.answered = time.monotonic()


class Traffic:
    """Knows, of every version that is called, what was sent to it and what it answered."""

    def __init__(self) -> None:
        self._versions: dict[ModelVersion, VersionTraffic] = {}

    def __len__(self) -> int:
        """How many versions something is known of."""
        return len(self._versions)

    def enter(self, version: ModelVersion) -> VersionTraffic:
        """Begin a call, which `leave` ends.

        Args:
            version: Name and version as the call gives them.

        Returns:
            Where the call is noted.
        """
        traffic = self._versions.setdefault(version, VersionTraffic())
        traffic.calls += 1
        return traffic

    def leave(self, version: ModelVersion, traffic: VersionTraffic) -> None:
        """End a call, which may never have been sent.

        Args:
            version: Name and version as the call gave them.
            traffic: What `enter` returned.
        """
        traffic.calls -= 1
        never_heard_of = max(traffic.answered, traffic.failed) == -math.inf
        # Such as one that was unloaded between two chunks of a batch: versions come and go for as long as we run.
        if not traffic.calls and never_heard_of and self._versions.get(version) is traffic:
            del self._versions[version]

    def forget(self, version: ModelVersion) -> dict[asyncio.Task[Answer], Place]:
        """Know nothing of a version any more, whatever still comes from it.

        Args:
            version: Name and version as the calls gave them.

        Returns:
            Its calls without an answer, and their places, which count no more.
        """
        traffic = self._versions.pop(version, VersionTraffic())
        traffic.given_up = True
        sent, traffic.sent = traffic.sent, {}
        return sent

    def in_flight_of(self, version: ModelVersion) -> int:
        """Tell how many calls of a version TorchServe has not answered yet, abandoned ones included.

        Args:
            version: Name and version as the calls gave them.

        Returns:
            How many.
        """
        traffic = self._versions.get(version)
        return 0 if traffic is None else len(traffic.sent)

    def answered_since(self, version: ModelVersion, moment: float) -> bool:
        """Tell whether a prediction or an explanation was answered, with anything but INTERNAL.

        Args:
            version: Name and version as the calls gave them.
            moment: A time of the monotonic clock.

        Returns:
            Whether one was, after this moment.
        """
        traffic = self._versions.get(version)
        return traffic is not None and traffic.answered >= moment

    def failed_since(self, version: ModelVersion, moment: float) -> bool:
        """Tell whether a prediction or an explanation was answered with INTERNAL.

        Args:
            version: Name and version as the calls gave them.
            moment: A time of the monotonic clock.

        Returns:
            Whether one was, after this moment.
        """
        traffic = self._versions.get(version)
        return traffic is not None and traffic.failed >= moment

    def gets_on(self, version: ModelVersion, moment: float) -> bool:
        """Tell whether those before a call of a version are worth waiting for.

        These are the version's own calls. If there are none, those of other versions of the model hold its places, and
        if there are none either, those of other models hold the bytes.

        Args:
            version: Name and version as the calls gave them.
            moment: A time of the monotonic clock.

        Returns:
            Whether one of them began to work, or was answered, after this moment.
        """
        busy = {other: traffic for other, traffic in self._versions.items() if traffic.sent}
        own = [traffic for other, traffic in busy.items() if other == version]
        siblings = [traffic for other, traffic in busy.items() if other.name == version.name]
        before = own or siblings or list(busy.values())
        return any(max(traffic.busy_since, traffic.answered) >= moment for traffic in before)
