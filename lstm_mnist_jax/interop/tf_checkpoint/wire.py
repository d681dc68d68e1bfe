"""The wire format of protocol buffers, as far as TensorFlow's checkpoints use it: varints, and messages as fields.

The protobuf library would need the declarations of a dozen messages, which only TensorFlow has and which are longer
than this parser.
"""

from collections.abc import Iterable

Field = int | bytes


class Malformed(ValueError):
    """Bytes are damaged or unsupported. `read_checkpoint` makes it a WeightsError with the file's name."""


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The unsigned number at `position` in base 128, least digit first, and the position after it. Raises Malformed."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise Malformed("the data end within a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, position
    raise Malformed("a number has more than 64 bits")


def varint(value: int) -> bytes:
    """A number from 0 to 2^64 - 1 in base 128, least digit first."""
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(digits) + bytes([value])


def parse(data: bytes) -> dict[int, list[Field]]:
    """The values of each field of a message, varints as unsigned ints, all others as bytes. Raises Malformed."""
    fields: dict[int, list[Field]] = {}
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        value: Field
        if kind == 0:
            value, position = read_varint(data, position)
        else:
            if kind == 2:
                size, position = read_varint(data, position)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise Malformed(f"a message has a field of the unknown wire type {kind}")
            if size > len(data) - position:
                raise Malformed("the data end within a message")
            value = data[position : position + size]
            position += size
        fields.setdefault(number, []).append(value)
    return fields


def integer(fields: dict[int, list[Field]], number: int, default: int = 0) -> int:
    """A field that is a varint; the last one counts. Raises Malformed where it is of another kind."""
    value = fields.get(number, [default])[-1]
    if not isinstance(value, int):
        raise Malformed(f"field {number} of a message should be a number")
    return value


def messages(fields: dict[int, list[Field]], number: int) -> list[bytes]:
    """All values of a field that is a message, a string or bytes. Raises Malformed where one is of another kind."""
    values = fields.get(number, [])
    if not all(isinstance(value, bytes) for value in values):
        raise Malformed(f"field {number} of a message should not be a number")
    return [value for value in values if isinstance(value, bytes)]


def message(fields: Iterable[tuple[int, Field]]) -> bytes:
    """A message of these fields: ints as varints (zeros, the default, left out), bytes as they are."""
    parts = []
    for number, value in fields:
        if isinstance(value, bytes):
            parts += [varint(number << 3 | 2), varint(len(value)), value]
        elif value:
            parts += [varint(number << 3), varint(value)]
    return b"".join(parts)


def fixed32(number: int, value: int) -> bytes:
    """One field of four bytes, as part of a message."""
    return varint(number << 3 | 5) + value.to_bytes(4, "little")
