"""HTTP/2 connections as no gRPC client makes them: headers, frames and bytes that a library would not let through."""

import struct
from random import Random

from reliability.fuzz_bytes import damaged
from reliability.fuzz_call import SERVICE

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4
_LARGEST_FRAME = 16_000
_HEADERS_OF_A_CALL = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "",
    ":authority": "localhost",
    "te": "trailers",
    "content-type": "application/grpc",
}

_TIMEOUTS = (
    *(
        "0n",
        "1n",
        "1u",
        "1m",
        "1S",
        "99999999H",
        "99999999n",
        "999999999S",
        "-1S",
        "S",
        "",
        "1",
        "1s",
        "1 S",
        "+1S",
        "1.5S",
    ),
    *("9" * 100 + "H", "\x00S", "\u0661S"),
)
_PATHS = (
    *(
        "",
        "/",
        "//",
        "*",
        "/pathlens.v1.ExplanationService",
        SERVICE,
        SERVICE + "predict",
        SERVICE + "Predict/",
        "/" * 5000,
    ),
    *("/" * 5000, SERVICE + "\x00", "/../../etc", "/é", "/grpc.channelz.v1.Channelz/GetServers"),
)
_CONTENT_TYPES = (
    "application/grpc",
    "application/grpc+json",
    "application/grpc-web",
    "text/html",
    "",
    "application/grpc\x00",
)
_METHODS = ("POST", "GET", "PUT", "CONNECT", "", "POST\x00")
_ODD_HEADERS = (
    *(
        ("X-Upper", "value"),
        ("", "value"),
        ("with space", "value"),
        ("x-request-id", "\r\nx-injected: 1"),
        ("x\x00", "\x00"),
    ),
    *(("x-request-id", "é" * 50), ("x-bin", "!!!not base64!!!"), ("x-bin", "AAAA,BBBB"), ("grpc-status", "0")),
    *(
        ("authorization", "Bearer \x00"),
        ("authorization", "\xff\xfe"),
        ("content-length", "-1"),
        ("connection", "close"),
    ),
    *(
        (":path", "/twice"),
        (":unknown", "1"),
        ("host", "elsewhere"),
        ("grpc-encoding", "gzip"),
        ("grpc-encoding", "none"),
    ),
    *(
        ("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"),
        ("traceparent", "zz" * 500),
        ("grpc-trace-bin", "AAAA"),
    ),
)


def connection(draw: Random, path: str, message: bytes) -> bytes:
    """Write a connection with one call, something about which is wrong.

    Args:
        draw: Where decisions come from.
        path: Full name of the call.
        message: The serialised request.

    Returns:
        All bytes that the client sends.
    """
    headers = _HEADERS_OF_A_CALL | {":path": path}
    extra: list[tuple[str, str]] = []
    body = _framed(message)
    kind = draw.randrange(8)
    match kind:
        case 0 | 1:
            extra.append(("grpc-timeout", draw.choice(_TIMEOUTS)))
        case 2:
            headers[":path"] = draw.choice(_PATHS)
        case 3:
            extra.extend(draw.sample(_ODD_HEADERS, draw.randint(1, 3)))
        case 4:
            name = draw.choice(tuple(headers))
            headers[name] = draw.choice(
                {":method": _METHODS, "content-type": _CONTENT_TYPES}.get(name, ("", "\x00", "é"))
            )
        case 5:
            headers.pop(draw.choice(tuple(headers)))
        case 6:
            body = _wrongly_framed(draw, message)
    fields = b"".join(_literal(name, value) for name, value in [*headers.items(), *extra])
    frames = [_frame(_SETTINGS, 0, 0, b""), _frame(_HEADERS, _END_HEADERS, 1, fields), *_data(body)]
    content = b"".join(frames)
    return _PREFACE + (damaged(draw, content, message) if kind == 7 else content)


def path_that_is_no_text() -> bytes:
    """Write a connection with a call whose path is not UTF-8, and nothing else wrong."""
    fields = b"".join(_literal(name, value) for name, value in _HEADERS_OF_A_CALL.items() if name != ":path")
    fields += b"\x00" + _string(b":path") + _string(b"/pathlens.v1.ExplanationService/Pre\xc1ict")
    frames = [_frame(_SETTINGS, 0, 0, b""), _frame(_HEADERS, _END_HEADERS, 1, fields), *_data(_framed(b""))]
    return _PREFACE + b"".join(frames)


def call_without_a_window(path: str, message: bytes) -> bytes:
    """Write a connection with a call that is right, and whose caller has no room for a single byte of the answer."""
    fields = b"".join(_literal(name, value) for name, value in {**_HEADERS_OF_A_CALL, ":path": path}.items())
    no_window = struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0)
    frames = [_frame(_SETTINGS, 0, 0, no_window), _frame(_HEADERS, _END_HEADERS, 1, fields), *_data(_framed(message))]
    return _PREFACE + b"".join(frames)


def _framed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


def _wrongly_framed(draw: Random, message: bytes) -> bytes:
    match draw.randrange(6):
        case 0:
            # It says that it is compressed, and names no compression.
            return struct.pack(">BI", 1, len(message)) + message
        case 1:
            return struct.pack(">BI", draw.randrange(2, 256), len(message)) + message
        case 2:
            return struct.pack(">BI", 0, draw.choice((len(message) + 1, 2**31, 2**32 - 1))) + message
        case 3:
            return struct.pack(">BI", 0, len(message))[: draw.randrange(5)]
        case 4:
            return _framed(message) * 2
        case _:
            return _framed(message)[: draw.randrange(len(message) + 5)]


def _data(body: bytes) -> list[bytes]:
    parts = [body[start : start + _LARGEST_FRAME] for start in range(0, len(body), _LARGEST_FRAME)] or [b""]
    # A client that sends more than the window allows is another matter; small requests are enough here.
    *first, last = parts[:4]
    return [*(_frame(_DATA, 0, 1, part) for part in first), _frame(_DATA, _END_STREAM, 1, last)]


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def _literal(name: str, value: str) -> bytes:
    # HPACK, a literal field that is not indexed, with a new name.
    return b"\x00" + _string(name.encode()) + _string(value.encode())


def _string(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, encoded = len(text) - 127, bytearray([127])
    while rest > 127:
        encoded.append(rest & 127 | 128)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded) + text
