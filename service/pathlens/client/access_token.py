"""The token that a caller shows."""

import re
from pathlib import Path

from pathlens.errors import InvalidRequestError

_VISIBLE = re.compile(rb"[\x21-\x7e]+")
_LONGEST = 4096
"""Servers take about 8 KiB of metadata in all."""


def read_token(token: str | Path) -> str:
    """Return a token, or what its file holds now.

    The file is read whenever a token is needed: it has some hundred bytes, and a token that was replaced must not be
    shown again.

    Args:
        token: The token itself, or the path of a file that holds nothing else.

    Raises:
        InvalidRequestError: It is no token; the error does not quote it.
        OSError: The file cannot be read.
    """
    # Bytes, because the error of a decoding that fails would hold the text.
    content = token.read_bytes().strip() if isinstance(token, Path) else token.encode(errors="replace")
    place = f"The token in {token}" if isinstance(token, Path) else "The token"
    if not content:
        raise _refused(f"{place} is empty: write the token that the service expects.")
    if len(content) > _LONGEST:
        raise _refused(f"{place} has {len(content)} bytes: give the token alone, at most {_LONGEST} bytes.")
    if _VISIBLE.fullmatch(content) is None:
        raise _refused(f"{place} contains a space, a line break or a letter outside ASCII: give the token alone.")
    return content.decode("ascii")


def _refused(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="TOKEN_INVALID", field="token")
