"""Files that may change while the gateway runs."""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from pathlens.errors import PathlensError, ServerStartError

_Meaning = TypeVar("_Meaning")

# Certificates and lists of tokens; anything larger is another file.
_LARGEST_FILE = 1024 * 1024

_logger = logging.getLogger(__name__)


class Reloaded(Generic[_Meaning]):
    """What some files mean together: looked at again when told to, and the last good meaning while they are broken.

    The contents are compared and not the times of the files, which say nothing where a file is replaced by an older one
    or within a tick of the clock. It may be used from any thread.

    Args:
        what: What the files are, for the log.
        paths: The files.
        parse: Turns their contents, in this order, into their meaning; raises `PathlensError` if they have none.

    Raises:
        ServerStartError: A file cannot be read.
        PathlensError: The files have no meaning; as `parse` raises it.
    """

    def __init__(self, what: str, paths: Sequence[Path], parse: Callable[[Sequence[bytes]], _Meaning]) -> None:
        self._what = what
        self._paths = tuple(paths)
        self._parse = parse
        self._lock = threading.Lock()
        contents = [_content(path) for path in self._paths]
        self._seen = _fingerprint(contents)
        self._meaning = parse(contents)
        self._broken = ""

    def current(self) -> _Meaning:
        """Return what the files meant when they were last looked at and had a meaning, without waiting for anything."""
        return self._meaning

    def look(self) -> _Meaning:
        """Look at the files, for as long as reading them takes.

        Returns:
            What they mean now, or what they meant when they last had a meaning.
        """
        with self._lock:
            self._look()
        return self._meaning

    @contextmanager
    def following(self, interval_seconds: float) -> Iterator[None]:
        """Look at the files again and again.

        Args:
            interval_seconds: The pause between two looks.
        """
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(interval_seconds):
                self.look()

        # Of its own, and never waited for: a network volume may keep whoever reads from it.
        threading.Thread(target=follow, name=f"following {self._what}", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _look(self) -> None:
        try:
            contents = [_content(path) for path in self._paths]
            seen = _fingerprint(contents)
            if seen == self._seen:
                self._mend()
                return
            meaning = self._parse(contents)
        except PathlensError as error:
            # Once for each thing that can be wrong, and not with every connection.
            if error.message != self._broken:
                self._broken = error.message
                _logger.error("%s Going on with the %s read before.", error.message, self._what)
            return
        self._seen, self._meaning, self._broken = seen, meaning, ""
        _logger.info("The changed %s are in use: %s", self._what, ", ".join(map(str, self._paths)))

    def _mend(self) -> None:
        if self._broken:
            self._broken = ""
            _logger.info("The %s are again as they were when last read", self._what)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ServerStartError(
            f"{path} cannot be read ({error.strerror or error}): check the path and its permissions.",
            reason="FILE_UNREADABLE",
            metadata={"path": path},
        ) from error
    if len(content) > _LARGEST_FILE:
        raise ServerStartError(
            f"{path} has more than {_LARGEST_FILE} bytes, as no certificate and no list of tokens has.",
            reason="FILE_UNREADABLE",
            metadata={"path": path, "limit": _LARGEST_FILE},
        )
    return content


def _fingerprint(contents: Sequence[bytes]) -> tuple[bytes, ...]:
    # Not the contents: a private key need not lie in memory once more.
    return tuple(hashlib.sha256(content).digest() for content in contents)
