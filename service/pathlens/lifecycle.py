"""Serves what lies in the model store while it changes: new versions beside the old ones, the old ones until unused."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from pathlens.errors import BundleError, PathlensError, ServerStartError
from pathlens.model_version import ModelVersion
from pathlens.torchserve import StoredArchive, TorchServe, TorchServeSettings
from pathlens.torchserve.changes import Content, arrivals, departures
from pathlens.torchserve.lookout import Lookout
from pathlens.torchserve.stored_archive import Stamp
from pathlens.wire.v1 import explanation_service_pb2 as messages

_Result = TypeVar("_Result")

_logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.05
# How long a JVM that was killed may take to be seen as ended, when a call to it has failed already.
_NOTICE_SECONDS = 1.0
# An archive that TorchServe has ended with so often is not loaded again: a restart too many ends the service.
_ATTEMPTS = 2


class Stage(Protocol):
    """The gateway, as seen from another thread than its own."""

    def admit(self, model: messages.Model, version: ModelVersion) -> None:
        """Let applications use a version."""

    def retire(self, version: ModelVersion) -> None:
        """Let no further call use a version, and return when no call does."""

    def count_model_change(self, result: str) -> None:
        """Count that a version was loaded, refused or unloaded."""


class _Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """What was waited for has become pointless."""


class Lifecycle:
    """Makes TorchServe and the gateway serve what lies on disk, one `step` after the other.

    The archives on disk say what is served. One that is new, or has a new content, is copied, checked, loaded beside
    what is served, asked for a prediction, and only then shown to applications. What it has replaced gets no further
    calls, is waited for, and unloaded; so is a version whose archive has been removed, unless it is the last one of its
    model. An archive that cannot be served is refused, and not looked at again until it changes; what the file held
    before stays.

    Everything that may take its time is done in a thread of its own, which is left alone when the step is broken off.

    Args:
        torchserve: What is running. Between two steps it may have been restarted, with what was served before.
        settings: Name the archives, and how often to look at them.
        canary: Makes one prediction with a version and returns what it says about itself; raises when it fails.
        stage: The gateway.
    """

    def __init__(
        self,
        torchserve: TorchServe,
        settings: TorchServeSettings,
        canary: Callable[[ModelVersion], messages.Model],
        stage: Stage,
    ) -> None:
        self._torchserve = torchserve
        self._canary = canary
        self._stage = stage
        self._period = settings.poll_seconds
        self._next_look = 0.0
        self._working: Future[Any] | None = None
        self._interrupted: Callable[[], bool] = lambda: False
        # What each archive on disk stands for, and how it looked when it was read last, whatever came of that.
        self._claims = {archive.model.archive: archive.version for archive in torchserve.served}
        self._read = {archive.model.archive: archive.stamp for archive in torchserve.served}
        # Archives that were refused because another one stands for the same version.
        self._twins: dict[Path, ModelVersion] = {}
        self._lookout = Lookout(settings, self._read.copy())
        self._attempts: Counter[tuple[Path, Stamp]] = Counter()
        self._kept: set[ModelVersion] = set()
        self._blind = False

    def step(self, interrupted: Callable[[], bool]) -> None:
        """Look at the archives, if it is time to, and do what is to be done about them.

        Args:
            interrupted: Tells whether to break off at once; what was not finished is done again by a later step.
        """
        if not self._period or time.monotonic() < self._next_look:
            return
        if self._working is not None and not self._working.done():
            # An earlier step was broken off and hangs, perhaps in a disk that does not answer.
            return
        self._interrupted = interrupted
        try:
            self._take_up_changes()
        except _Interrupted:
            return
        except Exception:
            # What is served has to go on whatever happens here.
            _logger.exception("The model archives could not be taken up")
        self._next_look = time.monotonic() + self._period

    def _take_up_changes(self) -> None:
        try:
            sight = self._awaited(self._lookout.look)
        except OSError as error:
            if not self._blind:
                _logger.error("The model store cannot be read (%s); what was served is served on", error)
            self._blind = True
            return
        self._blind = False
        for path in self._read.keys() - sight.settled.keys() - sight.unsettled:
            # Gone, and not only for the moment in which it is replaced.
            self._read.pop(path, None)
            self._claims.pop(path, None)
            self._twins.pop(path, None)
        self._take_up({path: stamp for path, stamp in sight.settled.items() if self._read.get(path) != stamp})
        # What has gone or holds another version by now may have left its version to a copy.
        left = {path for path, version in self._twins.items() if version not in self._claims.values()}
        self._take_up({path: stamp for path, stamp in sight.settled.items() if path in left})
        self._unload_the_unclaimed()

    def _take_up(self, changed: Mapping[Path, Stamp]) -> None:
        copies: dict[Path, StoredArchive] = {}
        try:
            for path, stamp in sorted(changed.items()):
                self._copy(path, stamp, copies)
            contents = {path: Content(copy.version, copy.sha256) for path, copy in copies.items()}
            served = {archive.version: archive.sha256 for archive in self._torchserve.served}
            decided = arrivals(contents, self._claims, served)
            for path, error in decided.refused.items():
                self._refuse(path, changed[path], error)
            self._twins.update({path: copies[path].version for path in decided.twins})
            for path in decided.known:
                self._claim(copies[path])
            for path in decided.load:
                self._load(copies[path])
        finally:
            self._torchserve.store.keep(self._torchserve.served)

    def _copy(self, path: Path, stamp: Stamp, copies: dict[Path, StoredArchive]) -> None:
        store = self._torchserve.store
        try:
            copy = self._awaited(lambda: store.take(path))
        except PathlensError as error:
            if self._awaited(lambda: _looks_like(path, stamp)):
                self._refuse(path, stamp, error)
            return
        except _Interrupted:
            raise
        except Exception as error:
            # One archive shall not keep all others away.
            _logger.exception("%s cannot be read", path)
            damaged = BundleError(f"The model archive {path} cannot be read ({type(error).__name__}).")
            self._refuse(path, stamp, damaged)
            return
        # Else it has changed since the look, and has to settle again.
        if copy.stamp == stamp:
            copies[path] = copy

    def _load(self, archive: StoredArchive) -> None:
        path, attempt = archive.model.archive, (archive.model.archive, archive.stamp)
        _logger.info("Model %s is loaded from %s, SHA-256 %s", archive.version, path, archive.sha256)
        self._attempts[attempt] += 1
        began = time.monotonic()
        try:
            model = self._awaited(lambda: self._torchserve.load(archive, self._canary))
        except PathlensError as error:
            if self._interrupted_soon():
                self._broken_off(archive)
            del self._attempts[attempt]
            self._refuse(path, archive.stamp, error)
            return
        except _Interrupted:
            self._broken_off(archive)
        del self._attempts[attempt]
        # A restart from here on has to bring what the gateway tells applications.
        self._torchserve.adopt(archive)
        try:
            self._stage.admit(model, archive.version)
        except PathlensError as error:
            self._remove(archive)
            self._refuse(path, archive.stamp, error)
            return
        self._claim(archive)
        self._stage.count_model_change("loaded")
        _logger.info("Model %s serves, after %.1f s", archive.version, time.monotonic() - began)

    def _broken_off(self, archive: StoredArchive) -> NoReturn:
        """Forget about a load that will be done again, unless it has been broken off too often."""
        path, stamp = archive.model.archive, archive.stamp
        if self._attempts[path, stamp] >= _ATTEMPTS:
            del self._attempts[path, stamp]
            error = ServerStartError(
                f"TorchServe ended, or answered nothing, {_ATTEMPTS} times while {archive.version} was loaded: see that"
                " there is memory for it beside what is served, and put the archive there again.",
                reason="MODEL_LOAD_FAILED",
                metadata={"archive": path, "model": archive.version.name, "version": archive.version.version},
            )
            self._refuse(path, stamp, error)
        raise _Interrupted

    def _unload_the_unclaimed(self) -> None:
        served = {archive.version: archive for archive in self._torchserve.served}
        decided = departures(set(self._claims.values()), served)
        for version in set(decided.kept) - self._kept:
            _logger.warning(
                "No archive of %s is left, and nothing else of this model is served: it serves on until the service is"
                " started again",
                version,
            )
        self._kept = set(decided.kept)
        for version in decided.unload:
            _logger.info("Model %s gets no further calls and is unloaded when it has answered", version)
            self._awaited(partial(self._stage.retire, version))
            self._remove(served[version])
            self._torchserve.store.keep(self._torchserve.served)

    def _remove(self, archive: StoredArchive) -> None:
        self._torchserve.abandon(archive)
        try:
            self._awaited(lambda: self._torchserve.unload(archive.version))
        except PathlensError as error:
            _logger.error("%s [%s]", error.message, error.reason)
        else:
            self._stage.count_model_change("unloaded")
            _logger.info("Model %s is unloaded", archive.version)

    def _claim(self, archive: StoredArchive) -> None:
        self._read[archive.model.archive] = archive.stamp
        self._claims[archive.model.archive] = archive.version
        self._twins.pop(archive.model.archive, None)

    def _refuse(self, path: Path, stamp: Stamp, error: PathlensError) -> None:
        # The archive goes on to stand for what it held before.
        self._read[path] = stamp
        self._twins.pop(path, None)
        self._stage.count_model_change("refused")
        _logger.error("%s is refused, and what was served is served on: %s [%s]", path, error.message, error.reason)

    def _awaited(self, do: Callable[[], _Result]) -> _Result:
        """Do something in another thread, and wait for its end or for the interruption."""
        self._working = work = _begun(do)
        while not wait([work], timeout=_POLL_SECONDS).done:
            if self._interrupted():
                raise _Interrupted
        return work.result()

    def _interrupted_soon(self) -> bool:
        end = time.monotonic() + _NOTICE_SECONDS
        while not self._interrupted():
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_SECONDS)
        return True


def _begun(do: Callable[[], _Result]) -> Future[_Result]:
    """Begin something in a thread that keeps no process alive, as those of an executor would."""
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(do())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="lifecycle", daemon=True).start()
    return future


def _looks_like(path: Path, stamp: Stamp) -> bool:
    try:
        return Stamp.of(path) == stamp
    except OSError:
        return False
