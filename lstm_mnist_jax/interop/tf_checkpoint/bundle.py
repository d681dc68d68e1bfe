"""TensorFlow's checkpoints since 2016 ("V2", tensor bundles): PREFIX.index and PREFIX.data-00000-of-00001.

The index is a table from the names of variables to the places of their bytes (BundleEntryProto); a partitioned
variable has an entry for each slice. From tensorflow/core/protobuf/tensor_bundle.proto and the notes in
tensorflow/core/util/tensor_bundle/tensor_bundle.h.
"""

import glob
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from lstm_mnist_jax.interop.tf_checkpoint import protobuf
from lstm_mnist_jax.interop.tf_checkpoint.protobuf import (
    DTYPES,
    Field,
    Fields,
    Malformed,
    Unsupported,
    Variable,
    integer,
    messages,
)
from lstm_mnist_jax.interop.tf_checkpoint.sstable import masked_crc32c, read_table, write_table

# BundleHeaderProto
NUM_SHARDS, ENDIANNESS, VERSION = 1, 2, 3
# BundleEntryProto
DTYPE, SHAPE, SHARD, OFFSET, SIZE, CRC32C, SLICES = 1, 2, 3, 4, 5, 6, 7

FORMAT_VERSION = 1


def read_bundle(prefix: Path) -> dict[str, Variable]:
    """The variables of a checkpoint by name. Only the index is read; `numpy.asarray` reads a variable.

    Raises Malformed where the index is damaged or of an unsupported kind, and OSError.
    """
    table = dict(read_table(prefix.with_name(prefix.name + ".index").read_bytes()))
    if b"" not in table:
        raise Malformed("it has no header, so it is no index of a checkpoint")
    header = protobuf.parse(table[b""])
    if integer(header, ENDIANNESS):
        raise Unsupported("it was written on a big-endian machine, which is not supported")
    for version in messages(header, VERSION):
        if (least := integer(protobuf.parse(version), 2)) > FORMAT_VERSION:
            raise Unsupported(f"it needs a reader of version {least}, this one reads version {FORMAT_VERSION}")
    shards = integer(header, NUM_SHARDS)
    entries = {key: protobuf.parse(value) for key, value in table.items() if key}
    _require_room(prefix, entries, shards)
    variables, slices = {}, _slices(entries)
    for key, entry in entries.items():
        if key[0]:
            name = protobuf.decode(key)
            try:
                variables[name] = _variable(prefix, entry, slices.get(key, []), shards)
            except Malformed as error:
                raise Malformed(f"{name}: {error}") from error
    return variables


def bundle_of(variables: Mapping[str, np.ndarray]) -> tuple[bytes, bytes]:
    """The index and the data file of a checkpoint of one shard, with these arrays by name."""
    numbers = {dtype: number for number, dtype in DTYPES.items()}
    header = protobuf.message([(NUM_SHARDS, 1), (VERSION, protobuf.message([(1, FORMAT_VERSION)]))])
    items = [(b"", header)]
    data = bytearray()
    for name, array in sorted(variables.items(), key=lambda item: item[0].encode()):
        dtype = array.dtype.newbyteorder("<")
        values = array.astype(dtype).tobytes()
        shape = protobuf.message((2, protobuf.message([(1, size)])) for size in array.shape)
        entry: list[tuple[int, Field]] = [
            (DTYPE, numbers[dtype]),
            (SHAPE, shape),
            (OFFSET, len(data)),
            (SIZE, len(values)),
        ]
        items.append((name.encode(), protobuf.message(entry) + protobuf.fixed32(CRC32C, masked_crc32c(values))))
        data += values
    return write_table(items), bytes(data)


def _require_room(prefix: Path, entries: dict[bytes, Fields], shards: int) -> None:
    """Raises Malformed where the entries claim more bytes than the data files have."""
    claimed = sum(integer(entry, SIZE) for entry in entries.values())
    files = list(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-?????-of-{shards:05d}"))
    present = sum(file.stat().st_size for file in files)
    if len(files) == shards and claimed > present:
        raise Malformed(f"its variables have {claimed} bytes, its data files {present}; they may be cut short")


def _slices(entries: dict[bytes, Fields]) -> dict[bytes, list[Fields]]:
    """The entries of slices by the key of their variable, in the order of `_position`.

    The key of a slice (saved_tensor_slice_util.cc) is 00, the name with 00 written as 00 ff, 00 01, and the starts and
    lengths in an encoding that preserves their order (OrderedCode); and the table is sorted by key.
    """
    found: dict[bytes, list[Fields]] = {}
    for key, entry in entries.items():
        if not key[0]:
            name, _, _ = key[1:].partition(b"\0\1")
            found.setdefault(name.replace(b"\0\xff", b"\0"), []).append(entry)
    return found


def _position(part: bytes) -> list[tuple[int, int]]:
    """Start and length of a slice along each axis; the length is -1 where the axis is not cut."""
    axes = [protobuf.parse(axis) for axis in messages(protobuf.parse(part), 1)]
    return [(integer(axis, 1), integer(axis, 2, default=-1)) for axis in axes]


def _variable(prefix: Path, entry: Fields, slices: list[Fields], shards: int) -> Variable:
    number = integer(entry, DTYPE)
    shape = protobuf.parse_shape(protobuf.last(entry, SHAPE))
    dtype, read = protobuf.dtype_name(number), partial(_read, prefix, number, shape, entry, shards)
    if not (positions := sorted(messages(entry, SLICES), key=_position)):
        return Variable(shape, dtype, read)
    if len(slices) != len(positions):
        raise Malformed(f"it has {len(positions)} slices, but {len(slices)} entries for them")
    parts = []
    for position, slice_entry in zip(positions, slices, strict=True):
        extents = protobuf.parse_extents(position, shape)
        size = tuple(length for _, length in extents)
        parts.append((extents, partial(_read, prefix, number, size, slice_entry, shards)))
    return Variable(shape, dtype, lambda: protobuf.join_slices(shape, protobuf.require_dtype(number), parts))


def _read(prefix: Path, number: int, shape: tuple[int, ...], entry: Fields, shards: int) -> np.ndarray:
    """The values of a variable, or of a slice of one."""
    dtype = protobuf.require_dtype(number)
    shard, offset, size = (integer(entry, field) for field in (SHARD, OFFSET, SIZE))
    if size != math.prod(shape) * dtype.itemsize:
        raise Malformed(f"it has {size} bytes, but its shape {list(shape)} and type {dtype.name} need others")
    path = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")
    if not path.is_file():
        raise Malformed(f"its file {path.name} is missing")
    with path.open("rb") as file:
        if offset + size > path.stat().st_size:
            raise Malformed(f"{path.name} is too short for it: it may be cut short")
        file.seek(offset)
        data = file.read(size)
    if masked_crc32c(data) != int.from_bytes(protobuf.last(entry, CRC32C), "little"):
        raise Malformed(f"its bytes in {path.name} do not agree with their checksum")
    return np.frombuffer(data, dtype).reshape(shape)
