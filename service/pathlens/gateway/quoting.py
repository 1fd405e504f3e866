"""Text of a client inside our own messages."""

_LONGEST = 80


def shortened(text: str) -> str:
    """Cut a client's text to a length that fits an error message.

    Error details travel in HTTP/2 trailers, for which clients accept about 8 KiB: a longer text would replace the error
    by a transport failure.

    Args:
        text: Any text, of any length.

    Returns:
        The text, or its beginning and an ellipsis.
    """
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
