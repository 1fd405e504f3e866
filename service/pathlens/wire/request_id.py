"""The id of a call, which its caller, the gateway's log and the handler's log have in common."""

import re
import uuid

REQUEST_ID_KEY = "x-request-id"
"""Metadata that carries the id, both ways."""

# What headers carry unchanged and what no log reads as anything else, at a length that logs bear.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def is_request_id(text: str) -> bool:
    """Tell whether a text is an id: 1 to 128 letters of ASCII, digits, `.`, `_` and `-`.

    Args:
        text: Any text.

    Returns:
        Whether it is one.
    """
    return _REQUEST_ID.fullmatch(text) is not None


def new_request_id() -> str:
    """Make an id that no other call has."""
    return uuid.uuid4().hex
