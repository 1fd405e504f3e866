"""Where questions wait until TorchServe has room for them."""

import asyncio
import math
import time

from pathlens.errors import PathlensError
from pathlens.gateway.admission import Admission, Place
from pathlens.gateway.call_kind import CallKind
from pathlens.gateway.company import Company
from pathlens.gateway.costs import Costs
from pathlens.gateway.errand import Errand
from pathlens.gateway.metrics import Metrics
from pathlens.gateway.settings import GatewaySettings
from pathlens.gateway.upstream_errors import deadline_too_short, time_is_up, upstream_timeout


class ErrandQueue:
    """Lets questions wait for room, refuses those that would wait in vain, and finds those that may go together.

    Args:
        admission: Who has room, and whose turn it is.
        costs: What the handlers are expected to take.
        settings: The limits.
        metrics: Where waiting, leaving and refused questions are counted.
    """

    def __init__(self, admission: Admission, costs: Costs, settings: GatewaySettings, metrics: Metrics) -> None:
        self._admission = admission
        self._costs = costs
        self._settings = settings
        self._metrics = metrics
        self._waiting: dict[Place, Errand] = {}

    async def wait(self, errand: Errand, remaining: float | None) -> None:
        """Return when questions have a place or were sent with others; they have no place after an error.

        Args:
            errand: The questions.
            remaining: Seconds until nobody waits for the answer any more; None without such a limit.

        Raises:
            DeadlineExceededError: The time was up before there was room, or will be before the answer is expected.
            ResourceExhaustedError: As many wait as may.
            UnavailableError: They have waited for as long as the gateway lets anyone wait.
        """
        place = errand.place
        kind = place.kind.value
        own_limit = math.inf if place.kind is CallKind.BULK else self._settings.upstream_timeout_seconds
        patience = min(math.inf if remaining is None else remaining, own_limit)
        probes = False
        try:
            probes = self._probes(errand, remaining)
            # Mostly: what waiting takes of the processor is spared.
            if self._admission.enters(place):
                return
            with self._metrics.queued.labels(kind).track_inprogress():
                self._waiting[place] = errand
                async with asyncio.timeout(None if patience == math.inf else patience):
                    has_place = await self._admission.turn(place)
            if not has_place:
                return
            if remaining is not None and time.monotonic() - errand.began >= remaining:
                # The time was up between the moment in which the room became free and this one.
                self._admission.leave(place)
                raise TimeoutError
        except BaseException as error:
            if errand.dispatch is not None:
                # Sent with others at the moment in which it was given up.
                self._metrics.upstream_abandoned.inc()
            elif probes:
                self._costs.withdraw_probe(errand.work)
            if isinstance(error, PathlensError):
                self._metrics.refused.labels(kind, error.reason).inc()
                raise
            if errand.dispatch is None:
                self._metrics.queue_abandoned.labels(kind).inc()
            if isinstance(error, TimeoutError):
                raise (time_is_up if patience == remaining else upstream_timeout)(place.model) from error
            raise
        finally:
            self._waiting.pop(place, None)

    def company_of(self, errand: Errand) -> list[Errand]:
        """Let those who wait for the same go with questions that have their place.

        Args:
            errand: The questions.

        Returns:
            What goes in one request, these questions first. The others wait no more.
        """
        company = Company(errand, self._costs, self._settings)
        if company.is_open:
            self._admission.take_along(errand.place, lambda place: company.joins(self._waiting[place]))
        return company.errands

    def _probes(self, errand: Errand, remaining: float | None) -> bool:
        """Refuse what will not be answered in time, and tell whether it is tried against all expectation."""
        cost = self._costs.expected(errand.work)
        if remaining is None or cost is None:
            return False
        wait = self._costs.wait(errand.place.model, errand.ahead)
        if remaining >= wait + cost:
            return False
        if not self._costs.may_probe(errand.work):
            raise deadline_too_short(errand.place.model, remaining, wait, cost)
        return True
