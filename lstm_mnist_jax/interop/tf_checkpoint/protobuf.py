"""The protocol buffers in TensorFlow's checkpoints: the wire format, and the types, shapes and slices of variables.

The protobuf library would need the declarations of a dozen messages, which only TensorFlow has and which are longer
than this parser.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

Field = int | bytes
Fields = dict[int, list[Field]]

DTYPES: dict[int, np.dtype] = {
    number: np.dtype(kind)
    for number, kind in {
        1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 8: "<c8", 9: "<i8", 10: "?",
        14: jnp.bfloat16, 17: "<u2", 18: "<c16", 19: "<f2", 22: "<u4", 23: "<u8",
    }.items()
}  # fmt: skip
"""NumPy's types by the numbers of TensorFlow's (types.proto)."""

STRING = 7

Extent = tuple[int, int]
"""Start and length of a slice along one axis."""


class Malformed(ValueError):
    """Bytes are damaged. `checked` makes it a WeightsError with the file's name."""


class Unsupported(Malformed):
    """Bytes are whole, and of a kind that is not supported."""


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


def parse(data: bytes) -> Fields:
    """The values of each field of a message, varints as unsigned ints, all others as bytes. Raises Malformed."""
    fields: Fields = {}
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


def integer(fields: Fields, number: int, default: int = 0) -> int:
    """A field that is a varint; the last one counts. Raises Malformed where it is of another kind."""
    value = fields.get(number, [default])[-1]
    if not isinstance(value, int):
        raise Malformed(f"field {number} of a message should be a number")
    return value


def messages(fields: Fields, number: int) -> list[bytes]:
    """All values of a field that is a message, a string or bytes. Raises Malformed where one is of another kind."""
    values = fields.get(number, [])
    if not all(isinstance(value, bytes) for value in values):
        raise Malformed(f"field {number} of a message should not be a number")
    return [value for value in values if isinstance(value, bytes)]


def last(fields: Fields, number: int) -> bytes:
    """The last value of a field that is a message, a string or bytes, which counts; empty where it is missing."""
    return (messages(fields, number) or [b""])[-1]


def text(fields: Fields, number: int) -> str:
    """A field that is a string. Raises Malformed where it is no UTF-8."""
    return decode(last(fields, number))


def decode(data: bytes) -> str:
    """A string. Raises Malformed where it is no UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"the name {data[:100]!r} is no text") from error


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


@dataclass(frozen=True)
class Variable:
    """A variable of a checkpoint. `numpy.asarray` reads and checks its values.

    Attributes:
      shape: its shape.
      dtype: NumPy's name of its type, or TensorFlow's where NumPy has none.
      read: returns the values.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray] = field(repr=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self.read()
        return values.astype(dtype or values.dtype, copy=bool(copy))


def dtype_name(number: int) -> str:
    """The name of a type of TensorFlow."""
    return DTYPES[number].name if number in DTYPES else "string" if number == STRING else f"TensorFlow type {number}"


def require_dtype(number: int) -> np.dtype:
    """NumPy's type for TensorFlow's. Raises Malformed where there is none."""
    if number not in DTYPES:
        raise Unsupported(f"it is of the type {dtype_name(number)}, which holds no numbers")
    return DTYPES[number]


def parse_shape(data: bytes) -> tuple[int, ...]:
    """A TensorShapeProto. Raises Malformed where a size is unknown or absurd."""
    shape = tuple(integer(parse(axis), 1) for axis in messages(parse(data), 2))
    if math.prod(max(size, 1) for size in shape) >= 1 << 48 or len(shape) > 32:  # -1 is a very large number here
        raise Malformed(f"its shape {list(shape)} makes no sense")
    return shape


def parse_extents(data: bytes, shape: tuple[int, ...]) -> tuple[Extent, ...]:
    """A TensorSliceProto of a variable of this shape. Raises Malformed where it is outside the shape."""
    axes = [parse(axis) for axis in messages(parse(data), 1)]
    if len(axes) != len(shape):
        raise Malformed(f"it has a slice of {len(axes)} axes, but the shape {list(shape)}")
    extents = tuple(
        (integer(axis, 1), integer(axis, 2, default=size - integer(axis, 1)))
        for axis, size in zip(axes, shape, strict=True)
    )
    if any(length < 0 or start + length > size for (start, length), size in zip(extents, shape, strict=True)):
        raise Malformed(f"it has a slice that lies outside its shape {list(shape)}")
    return extents


def join_slices(
    shape: tuple[int, ...], dtype: np.dtype, slices: Sequence[tuple[tuple[Extent, ...], Callable[[], np.ndarray]]]
) -> np.ndarray:
    """A variable from its slices. Raises Malformed where they do not cover it exactly."""
    if sum(math.prod(length for _, length in extents) for extents, _ in slices) != math.prod(shape):
        raise Malformed("its slices do not cover it")
    parts = [(extents, read()) for extents, read in slices]  # before memory is taken for the whole
    values, missing = np.empty(shape, dtype), np.ones(shape, bool)
    for extents, part in parts:
        place = tuple(slice(start, start + length) for start, length in extents)
        values[place], missing[place] = part, False
    if missing.any():
        raise Malformed("its slices do not cover it")
    return values
