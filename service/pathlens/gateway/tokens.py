"""The tokens of the callers."""

import hashlib
import hmac
import logging
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from pathlens.errors import ServerStartError
from pathlens.gateway.reloading import Reloaded

_RELOAD_SECONDS = 0.5
# What RFC 6750 lets a bearer token be.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")
_HASHED = "sha256="
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_SHORTEST_SAFE = 16

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Token:
    name: str
    sha256: bytes = field(repr=False)


class TokenFile:
    """A file of tokens, read anew within a second of its change while it is followed.

    Each line is `NAME:TOKEN`, or `NAME:sha256=HEX` with the SHA-256 of the token; empty lines and lines that begin
    with # are left out. A name may have several tokens, all of them valid, so that one can replace another without a
    gap. While the file is broken, the tokens that it had before stay valid.

    Args:
        path: The file.

    Raises:
        ServerStartError: The file cannot be read, holds no token, or a line is none; no message quotes a line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokens = Reloaded("tokens", [path], self._parsed)

    def following(self) -> AbstractContextManager[None]:
        """Take changes up, in a thread of its own, until the end of the context."""
        return self._tokens.following(_RELOAD_SECONDS)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of those who have a token, each once, in the order of the file."""
        return tuple(dict.fromkeys(token.name for token in self._tokens.current()))

    def holder(self, token: str) -> str | None:
        """Find out whose token this is, in a time that depends neither on the answer nor on the file's volume.

        Args:
            token: What a caller has sent.

        Returns:
            The name in the file; None if the token is not in it.
        """
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        found = None
        for known in self._tokens.current():
            # Hashes are compared, all of them and each to its end: neither the time of one comparison nor their number
            # tells how near a guess is.
            if hmac.compare_digest(known.sha256, digest):
                found = known.name
        return found

    def _parsed(self, contents: Sequence[bytes]) -> tuple[_Token, ...]:
        try:
            text = contents[0].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            # "from None": the original would quote the bytes.
            raise self._invalid(f"byte {error.start} is not UTF-8") from None
        tokens: dict[bytes, _Token] = {}
        for number, line in enumerate(text.splitlines(), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            token = self._token(number, line)
            if token.sha256 in tokens:
                raise self._invalid(f"line {number} holds a token that an earlier line holds, too")
            tokens[token.sha256] = token
        if not tokens:
            raise self._invalid("it holds no token")
        return tuple(tokens.values())

    def _token(self, number: int, line: str) -> _Token:
        name, colon, secret = line.partition(":")
        if not colon or not _NAME.fullmatch(name):
            raise self._invalid(
                f"line {number} does not begin with a name of letters, digits, '_', '-', '.' and '@', and a colon"
            )
        if secret.startswith(_HASHED):
            digest = secret.removeprefix(_HASHED)
            if not _SHA256.fullmatch(digest):
                raise self._invalid(f"line {number} has no 64 hexadecimal digits after sha256=")
            return _Token(name, bytes.fromhex(digest))
        if not _TOKEN.fullmatch(secret):
            raise self._invalid(f"line {number} has no token of letters, digits and '-._~+/' after its colon")
        if len(secret) < _SHORTEST_SAFE:
            _logger.warning("%s: the token on line %d is short enough to be guessed", self._path, number)
        return _Token(name, hashlib.sha256(secret.encode()).digest())

    def _invalid(self, what: str) -> ServerStartError:
        return ServerStartError(
            f"{self._path} is no file of tokens: {what}; write NAME:TOKEN or NAME:sha256=HEX on each line.",
            reason="TOKENS_INVALID",
            metadata={"path": self._path},
        )
