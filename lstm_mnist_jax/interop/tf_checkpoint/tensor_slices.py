"""TensorFlow's oldest checkpoints ("V1"): one file, or several shards, each a table of SavedTensorSlices messages.

The entry of the empty key has the shapes; each other entry is a slice of a variable. From
tensorflow/core/util/saved_tensor_slice.proto.
"""

import math
from functools import partial
from pathlib import Path

import numpy as np

from lstm_mnist_jax.interop.tf_checkpoint import protobuf
from lstm_mnist_jax.interop.tf_checkpoint.protobuf import Extent, Malformed, Variable, integer, messages
from lstm_mnist_jax.interop.tf_checkpoint.sstable import read_table

# SavedTensorSlices, SavedTensorSliceMeta, SavedSliceMeta and SavedSlice
META, DATA = 1, 2
TENSORS = 1
NAME, SHAPE, DTYPE, EXTENTS = 1, 2, 3, 4
SLICE_EXTENTS, SLICE_VALUES = 2, 3

# TensorProto: the field and the encoding of the values of each type
CONTENT = 4
FIXED = {"float32": 5, "complex64": 9, "float64": 6, "complex128": 12}
VARINT = dict.fromkeys(("int32", "int16", "uint16", "int8", "uint8"), 7) | {"int64": 10, "bool": 11}
HALF = {"float16": 13, "bfloat16": 13}
UNSIGNED = {"uint32": 16, "uint64": 17}


def read_tensor_slices(shards: list[Path]) -> dict[str, Variable]:
    """The variables of a checkpoint by name; `numpy.asarray` decodes one. Raises Malformed and OSError."""
    metas: list[bytes] = []
    slices: list[bytes] = []
    for shard in shards:
        for key, value in read_table(shard.read_bytes()):
            fields = protobuf.parse(value)
            metas += messages(fields, META) if not key else []
            slices += messages(fields, DATA)
    if not metas:
        raise Malformed("it has no list of its variables")
    shapes: dict[str, tuple[tuple[int, ...], int]] = {}
    for meta in metas:
        for tensor in messages(protobuf.parse(meta), TENSORS):
            fields = protobuf.parse(tensor)
            name = _name(fields)
            shapes[name] = protobuf.parse_shape(protobuf.last(fields, SHAPE)), integer(fields, DTYPE)
    parts: dict[str, list[tuple[tuple[Extent, ...], bytes]]] = {name: [] for name in shapes}
    for part in slices:
        fields = protobuf.parse(part)
        name = _name(fields)
        if name not in shapes:
            raise Malformed(f"it has a slice of {name}, but no shape of it")
        extents = protobuf.parse_extents(protobuf.last(fields, SLICE_EXTENTS), shapes[name][0])
        parts[name].append((extents, protobuf.last(fields, SLICE_VALUES)))
    return {
        name: Variable(shape, protobuf.dtype_name(number), partial(_read, shape, number, parts[name]))
        for name, (shape, number) in shapes.items()
    }


def _name(fields: protobuf.Fields) -> str:
    if not (name := protobuf.text(fields, NAME)):
        raise Malformed("it has a variable without a name")
    return name


def _read(shape: tuple[int, ...], number: int, parts: list[tuple[tuple[Extent, ...], bytes]]) -> np.ndarray:
    dtype = protobuf.require_dtype(number)
    decoders = [
        (extents, partial(decode_tensor, dtype, tuple(length for _, length in extents), values))
        for extents, values in parts
    ]
    return protobuf.join_slices(shape, dtype, decoders)


def decode_tensor(dtype: np.dtype, shape: tuple[int, ...], tensor: bytes) -> np.ndarray:
    """The values in a TensorProto. Raises Malformed."""
    fields = protobuf.parse(tensor)
    if content := protobuf.last(fields, CONTENT):
        values = _from_bytes(content, dtype)
    elif dtype.name in FIXED:
        field = FIXED[dtype.name]
        values = _from_bytes(b"".join(messages(fields, field)), dtype)
    else:
        field = (VARINT | HALF | UNSIGNED)[dtype.name]
        wide = np.array(_varints(fields.get(field, [])), np.uint64)
        # Negative numbers were widened to 64 bits; the lowest ones are the number.
        values = wide.astype(np.uint16).view(dtype) if dtype.name in HALF else wide.astype(dtype)
    if values.size != math.prod(shape):
        raise Malformed(f"it has {values.size} values, but its shape {list(shape)} needs {math.prod(shape)}")
    return values.reshape(shape)


def _from_bytes(data: bytes, dtype: np.dtype) -> np.ndarray:
    if len(data) % dtype.itemsize:
        raise Malformed(f"its values end within a {dtype.name}")
    return np.frombuffer(data, dtype)


def _varints(values: list[protobuf.Field]) -> list[int]:
    """Repeated numbers, packed or one by one."""
    numbers = []
    for value in values:
        if isinstance(value, int):
            numbers.append(value)
            continue
        position = 0
        while position < len(value):
            number, position = protobuf.read_varint(value, position)
            numbers.append(number)
    return numbers
