"""A variable in a checkpoint: types, shapes and slices, which both of TensorFlow's formats describe alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_mnist_jax.interop.tf_checkpoint.wire import Malformed, integer, messages, parse

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
        raise Malformed(f"it is of the type {dtype_name(number)}, which holds no numbers")
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
