"""Damage to bytes that knows nothing of images, and little of messages."""

from random import Random

_INTERESTING = (0x00, 0x01, 0x7F, 0x80, 0xFF, 0x0A, 0x0B, 0x0C, 0x12, 0x1A, 0xFE)
_MAX_DAMAGES = 6
_LONGEST = 300_000


def varint(value: int) -> bytes:
    """Encode an unsigned number as protobuf does."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def damaged(draw: Random, data: bytes, donor: bytes) -> bytes:
    """Damage bytes in a few places.

    Args:
        draw: Where decisions come from.
        data: The bytes.
        donor: Other bytes, of which parts may be put in.

    Returns:
        The damaged bytes.
    """
    for _ in range(draw.randint(1, _MAX_DAMAGES)):
        data = _damaged_once(draw, data, donor)
    return data[:_LONGEST]


def damaged_message(draw: Random, data: bytes, donor: bytes) -> bytes:
    """Damage a serialised message: as `damaged`, or by fields that are repeated, unknown or deeply nested.

    Args:
        draw: Where decisions come from.
        data: The serialised message.
        donor: Another one, of which parts may be put in.

    Returns:
        Bytes that may or may not be a message.
    """
    match draw.randrange(8):
        case 0:
            return data + _unknown_field(draw)
        case 1:
            return _unknown_field(draw) + data
        case 2:
            return data + data
        case 3:
            return data + donor
        case 4:
            return data + _nested(draw)
        case 5:
            # The length of a field, or whatever stands there.
            position = draw.randrange(len(data) + 1)
            return data[:position] + varint(2 ** draw.randrange(64)) + data[position + 1 :]
        case _:
            return damaged(draw, data, donor)


def _damaged_once(draw: Random, data: bytes, donor: bytes) -> bytes:
    position = draw.randrange(len(data) + 1)
    end = min(len(data), position + draw.choice((1, 2, 4, 16, 200)))
    match draw.randrange(9):
        case 0 | 1 if position < len(data):
            return data[:position] + bytes([data[position] ^ 1 << draw.randrange(8)]) + data[position + 1 :]
        case 2:
            return data[:position] + bytes([draw.choice(_INTERESTING)]) + data[position + 1 :]
        case 3:
            return data[:position] + bytes(draw.randrange(256) for _ in range(draw.randint(1, 8))) + data[position:]
        case 4:
            return data[:position] + data[end:]
        case 5:
            return data[:end] + data[position:end] * draw.choice((1, 3, 50)) + data[end:]
        case 6:
            return data[:position]
        case 7 if donor:
            start = draw.randrange(len(donor))
            return data[:position] + donor[start : start + draw.choice((1, 8, 64, 1000))] + data[position:]
        case _:
            return data[:position] + bytes([draw.randrange(256)]) + data[position + 1 :]


def _unknown_field(draw: Random) -> bytes:
    number = draw.choice((0, 15, 16, 19_000, 2**29 - 1, 2**29, 1, 2, 3))
    wire_type = draw.randrange(8)
    payload = {
        0: varint(2**64 - 1),
        1: b"\xff" * 8,
        2: varint(5) + b"\xff\xfe\x00ab",
        3: varint(number << 3 | 4),
        5: b"\x00\x00\xc0\x7f",
    }.get(wire_type, b"\x00")
    return varint(number << 3 | wire_type) + payload


def _nested(draw: Random) -> bytes:
    depth = draw.choice((1, 50, 99, 100, 101, 1000, 20_000))
    if draw.random() < 0.5:
        # Groups, which protobuf 3 knows for unknown fields only.
        opened, closed = varint(30 << 3 | 3), varint(30 << 3 | 4)
        return opened * depth + closed * draw.choice((depth, depth - 1, 0))
    content = b""
    for _ in range(min(depth, 1000)):
        content = varint(draw.choice((1, 2, 3)) << 3 | 2) + varint(len(content)) + content
    return content
