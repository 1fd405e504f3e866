"""The slices of a classifier's stored class pathways, cut when they are first asked for."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch

from pathlens.classifier.captured import CapturedClassifier
from pathlens.pathways.bank import ClassPathwayBank
from pathlens.slicing.cutting import cut
from pathlens.slicing.not_sliceable import NotSliceable
from pathlens.slicing.slice import Slice

DEFAULT_BYTES = 256 * 2**20
"""Of all slices of one classifier, unless told otherwise."""

MOST_WORK = 0.75
"""Of the classifier's multiply-accumulates, how many a slice may have to be worth its memory."""

_COST_OF_CALL = {"cpu": 2e6}
_COST_OF_CALL_ELSEWHERE = 1e9
"""How many floating-point operations take as long as the call of an operator, forward and backward.

Chosen so that of eight images of eight classes, ResNet-20 runs masks, and SqueezeNet and MobileNetV2 run the slices
that take less time on one processor. On GPUs it is the launch of a kernel, and was not measured.
"""

_ASKS_BETWEEN_CUTS = 64
"""Once there is no room left, how many classes are asked for between two cuts.

A cut costs as much as some ten masked passes of one image. Were every absent class cut, requests for more classes than
there is room for would cost more than without slices.
"""

_logger = logging.getLogger(__name__)


class SliceCache:
    """Keeps the slices of class pathways, and forgets those that were not asked for longest.

    It may be used from several threads. Nobody waits for a slice that another thread cuts: masks give the same answer
    at once.

    Args:
        classifier: What is sliced.
        bank: The stored class pathways, on the device of the classifier.
        limit_bytes: Of the memory of all slices that are kept; 0 cuts nothing.
        most_work: Slices with more work than this part of the classifier's are not used.
        cost_of_call: Floating-point operations that take as long as the call of an operator; None for what is usual on
            the device of the classifier.
    """

    def __init__(
        self,
        classifier: CapturedClassifier,
        bank: ClassPathwayBank,
        limit_bytes: int,
        most_work: float = MOST_WORK,
        cost_of_call: float | None = None,
    ) -> None:
        self._classifier = classifier
        self._bank = bank
        self._limit_bytes = limit_bytes
        self._most_work = most_work
        usual = _COST_OF_CALL.get(classifier.device.type, _COST_OF_CALL_ELSEWHERE)
        self._cost_of_call = usual if cost_of_call is None else cost_of_call
        self._lock = threading.Lock()
        self._slices: OrderedDict[int, Slice] = OrderedDict()
        self._bytes = 0
        self._being_cut: set[int] = set()
        self._without: set[int] = set()
        self._was_full = False
        self._asks = 0
        self._has_failed = False

    def __contains__(self, label: object) -> bool:
        """Tell whether the slice of a class is kept; that alone keeps it no longer."""
        return label in self._slices

    @property
    def bytes(self) -> int:
        """Of the memory of all slices that are kept."""
        return self._bytes

    def get(self, label: int) -> Slice | None:
        """Return the slice of a class with a stored pathway, cutting it if there is none yet.

        Args:
            label: The class.

        Returns:
            None if the pathway network has to be run with masks: the pathway cannot be sliced, its slice is not worth
            it or larger than the limit, another thread is cutting it, or there is no room for it now.
        """
        return self.get_all({label: 1}).get(label)

    def get_all(self, images: Mapping[int, int]) -> dict[int, Slice]:
        """Return the slices to use for a batch, as far as there are any.

        Every slice is a run of its own, while masks run all that is left at once. So a slice is used where its run
        costs less than its images do among others, and always for a batch of one class.

        Args:
            images: How many there are of each class; the classes have stored pathways. The first of those without a
                slice is cut, and only that one, so that no pass waits for several.
        """
        found = self._find(list(images))
        return {
            label: part
            for label, part in found.items()
            if len(images) == 1 or part.cost(images[label], self._cost_of_call) <= images[label]
        }

    def _find(self, labels: Sequence[int]) -> dict[int, Slice]:
        """Return all slices that there are, and one that is cut for it."""
        with self._lock:
            found = {label: self._slices[label] for label in labels if label in self._slices}
            for label in found:
                self._slices.move_to_end(label)
            self._asks += len(labels)
            absent = next((label for label in labels if self._may_cut(label)), None)
            if absent is None:
                return found
            self._being_cut.add(absent)
            self._asks = 0
        new = self._cut(absent)
        if new is None:
            return found
        with self._lock:
            while self._bytes + new.bytes > self._limit_bytes:
                self._was_full = True
                _, oldest = self._slices.popitem(last=False)
                self._bytes -= oldest.bytes
            self._keep(absent, new)
        return {**found, absent: new}

    def warm(self, seconds: float) -> None:
        """Cut slices before they are asked for, the classes first that the fit saw most often.

        It ends when the time or the room is used up. The other classes get their slices when they are asked for.

        Args:
            seconds: After how long no other cut begins.
        """
        started = time.monotonic()
        frequent = sorted(self._bank.counts, key=lambda label: self._bank.counts[label].images, reverse=True)
        for label in frequent:
            if time.monotonic() - started >= seconds:
                break
            with self._lock:
                if not self._may_cut(label):
                    continue
                self._being_cut.add(label)
            new = self._cut(label)
            if new is None:
                continue
            with self._lock:
                if self._bytes + new.bytes > self._limit_bytes:
                    self._being_cut.remove(label)
                    break
                self._keep(label, new)
                # Of two that were never asked for, the less frequent one goes first.
                self._slices.move_to_end(label, last=False)
        _logger.debug(
            "Cut %d of %d class pathways, %d bytes, in %.2f s",
            len(self._slices),
            len(self._bank),
            self._bytes,
            time.monotonic() - started,
        )

    def give_up(self, label: int) -> None:
        """Forget the slice of a class for ever, because it failed; called while the error is handled."""
        with self._lock:
            self._without.add(label)
            failed = self._slices.pop(label, None)
            self._bytes -= failed.bytes if failed is not None else 0
        self._log_failure("The slice of class %d failed; its pathway is run with masks", label)

    def _log_failure(self, message: str, label: int) -> None:
        # The answer does not depend on it. What fails for one class may fail for all, with the same traceback.
        level = logging.DEBUG if self._has_failed else logging.ERROR
        self._has_failed = True
        _logger.log(level, message, label, exc_info=True)

    def _may_cut(self, label: int) -> bool:
        return (
            self._limit_bytes > 0
            and label in self._bank
            and label not in self._slices
            and label not in self._without
            and label not in self._being_cut
            and (not self._was_full or self._asks > _ASKS_BETWEEN_CUTS)
        )

    def _keep(self, label: int, new: Slice) -> None:
        self._being_cut.remove(label)
        self._slices[label] = new
        self._bytes += new.bytes

    def _cut(self, label: int) -> Slice | None:
        """Cut the slice of a class; None if it is not to be used: for ever, unless there is no memory for it now."""
        try:
            new = self._try_to_cut(label)
        except (MemoryError, torch.OutOfMemoryError):
            _logger.debug("There is no memory now to slice the pathway of class %d", label, exc_info=True)
            with self._lock:
                self._being_cut.remove(label)
                self._was_full = True
            return None
        if new is None:
            with self._lock:
                self._being_cut.remove(label)
                self._without.add(label)
        return new

    def _try_to_cut(self, label: int) -> Slice | None:
        try:
            new = cut(self._classifier, self._bank.transfer([label]))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except NotSliceable as reason:
            _logger.debug("The pathway of class %d is run with masks: %s", label, reason)
            return None
        except Exception:
            self._log_failure("Slicing the pathway of class %d failed; it is run with masks", label)
            return None
        if new.work > self._most_work:
            _logger.debug("The pathway of class %d is run with masks: its slice has %.2f of the work", label, new.work)
            return None
        if new.bytes > self._limit_bytes:
            _logger.debug("The pathway of class %d is run with masks: its slice has %d bytes", label, new.bytes)
            return None
        return new
