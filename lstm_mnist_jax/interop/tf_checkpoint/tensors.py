"""Variables of TensorFlow's checkpoints: types, shapes, slices, and values in messages."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_mnist_jax.interop.tf_checkpoint.messages import Malformed, Unsupported

DTYPES: dict[int, np.dtype] = {
    number: np.dtype(kind)
    for number, kind in {
        1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 8: "<c8", 9: "<i8", 10: "?",
        14: jnp.bfloat16, 17: "<u2", 18: "<c16", 19: "<f2", 22: "<u4", 23: "<u8",
    }.items()
}  # fmt: skip
"""NumPy's types by the numbers of TensorFlow's (types.proto)."""

STRING = 7

FIELDS = dict.fromkeys(("int32", "int16", "uint16", "int8", "uint8"), "int") | {"float16": "half", "bfloat16": "half"}
"""The fields of a Tensor with the values of these types; those of others are called as the types are."""

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
    """NumPy's type for TensorFlow's. Raises Unsupported where there is none."""
    if number not in DTYPES:
        raise Unsupported(f"it is of the type {dtype_name(number)}, which holds no numbers")
    return DTYPES[number]


def shape_of(message: Any) -> tuple[int, ...]:
    """From a Shape. Raises Malformed where a size is unknown or absurd."""
    shape = tuple(axis.size for axis in message.dim)
    if min(shape, default=0) < 0 or math.prod(max(size, 1) for size in shape) >= 1 << 48 or len(shape) > 32:
        raise Malformed(f"its shape {list(shape)} makes no sense")
    return shape


def extents_of(message: Any, shape: tuple[int, ...]) -> tuple[Extent, ...]:
    """From a Slice of a variable of this shape. Raises Malformed where it is outside the shape."""
    if len(message.extent) != len(shape):
        raise Malformed(f"it has a slice of {len(message.extent)} axes, but the shape {list(shape)}")
    axes = list(zip(message.extent, shape, strict=True))  # no length: to the end
    if any(min(axis.start, axis.length) < 0 or axis.start + axis.length > size for axis, size in axes):
        raise Malformed(f"it has a slice that lies outside its shape {list(shape)}")
    return tuple((axis.start, axis.length or size - axis.start) for axis, size in axes)


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


def decode_tensor(dtype: np.dtype, shape: tuple[int, ...], tensor: Any) -> np.ndarray:
    """The values of a Tensor. Raises Malformed."""
    if tensor.content:
        if len(tensor.content) % dtype.itemsize:
            raise Malformed(f"its values end within a {dtype.name}")
        values = np.frombuffer(tensor.content, dtype)
    else:
        numbers = getattr(tensor, FIELDS.get(dtype.name, dtype.name))
        if dtype.kind == "c":  # real and imaginary parts by turns
            numbers = np.array(numbers, f"<f{dtype.itemsize // 2}")
            values = numbers[: len(numbers) // 2 * 2].view(dtype)
        elif FIELDS.get(dtype.name) == "half":
            values = np.array(numbers, np.int64).astype(np.uint16).view(dtype)
        else:
            values = np.array(numbers, dtype if dtype.kind == "f" or dtype.name == "uint64" else np.int64).astype(dtype)
    if values.size != math.prod(shape):
        raise Malformed(f"it has {values.size} values, but its shape {list(shape)} needs {math.prod(shape)}")
    return values.reshape(shape)
