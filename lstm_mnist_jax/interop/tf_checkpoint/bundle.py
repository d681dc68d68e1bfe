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
from lstm_mnist_jax.interop.tf_checkpoint.protobuf import DTYPES, Extent, Field, Malformed, Variable, integer, messages
from lstm_mnist_jax.interop.tf_checkpoint.sstable import masked_crc32c, read_table, write_table

Entry = dict[int, list[Field]]

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
        raise Malformed("it was written on a big-endian machine, which is not supported")
    for version in messages(header, VERSION):
        if (least := integer(protobuf.parse(version), 2)) > FORMAT_VERSION:
            raise Malformed(f"it needs a reader of version {least}, this one reads version {FORMAT_VERSION}")
    shards = integer(header, NUM_SHARDS)
    entries = {key: protobuf.parse(value) for key, value in table.items() if key}
    _require_room(prefix, entries, shards)
    variables = {}
    for key, entry in entries.items():
        if key[0]:  # the keys of slices begin with a zero
            name = _name(key)
            try:
                variables[name] = _variable(prefix, key, entry, entries, shards)
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


def _require_room(prefix: Path, entries: dict[bytes, Entry], shards: int) -> None:
    """Raises Malformed where the entries claim more bytes than the data files have."""
    claimed = sum(integer(entry, SIZE) for entry in entries.values())
    files = list(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-?????-of-{shards:05d}"))
    present = sum(file.stat().st_size for file in files)
    if len(files) == shards and claimed > present:
        raise Malformed(f"its variables have {claimed} bytes, its data files {present}; they may be cut short")


def _name(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"the name {key!r} is no text") from error


def _variable(prefix: Path, key: bytes, entry: Entry, entries: dict[bytes, Entry], shards: int) -> Variable:
    number = integer(entry, DTYPE)
    shape = protobuf.parse_shape((messages(entry, SHAPE) or [b""])[-1])
    dtype, read = protobuf.dtype_name(number), partial(_read, prefix, number, shape, entry, shards)
    if not (slices := messages(entry, SLICES)):
        return Variable(shape, dtype, read)
    parts = []
    for part in slices:
        extents = protobuf.parse_extents(part, shape)
        slice_key = _slice_key(key, extents, part)
        if slice_key not in entries:
            raise Malformed(f"the slice {list(extents)} is missing")
        size = tuple(length for _, length in extents)
        parts.append((extents, partial(_read, prefix, number, size, entries[slice_key], shards)))
    return Variable(shape, dtype, lambda: protobuf.join_slices(shape, protobuf.require_dtype(number), parts))


def _read(prefix: Path, number: int, shape: tuple[int, ...], entry: Entry, shards: int) -> np.ndarray:
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
    (crc,) = messages(entry, CRC32C)[-1:] or [b"\0\0\0\0"]
    if masked_crc32c(data) != int.from_bytes(crc, "little"):
        raise Malformed(f"its bytes in {path.name} do not agree with their checksum")
    return np.frombuffer(data, dtype).reshape(shape)


def _slice_key(name: bytes, extents: tuple[Extent, ...], part: bytes) -> bytes:
    """The key of a slice (saved_tensor_slice_util.cc): 0, name, number of axes, and each start and length.

    The length along an axis that is not cut is -1.
    """
    cut = [2 in protobuf.parse(axis) for axis in messages(protobuf.parse(part), 1)]
    key = _ordered_number(0) + _ordered_string(name) + _ordered_number(len(extents))
    for (start, length), is_cut in zip(extents, cut, strict=True):
        key += _ordered_signed(start) + _ordered_signed(length if is_cut else -1)
    return key


def _ordered_number(value: int) -> bytes:
    """An unsigned number in TensorFlow's OrderedCode: the number of its bytes, then its bytes, the highest first."""
    digits = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(digits)]) + digits


def _ordered_string(value: bytes) -> bytes:
    """A string in OrderedCode: 00 and ff are escaped, and 00 01 ends it."""
    escaped = {0: b"\0\xff", 255: b"\xff\0"}
    return b"".join(escaped.get(byte, bytes([byte])) for byte in value) + b"\0\1"


def _ordered_signed(value: int) -> bytes:
    """A number from -2^62 to 2^62 - 1 in OrderedCode: 7 bits a byte; as many leading ones as there are bytes."""
    width = 1
    while not -(1 << 7 * width - 1) <= value < 1 << 7 * width - 1:
        width += 1
    bits = 8 * width
    header = ((1 << width) - 1) << (bits - width)
    return (header ^ value & (1 << bits) - 1).to_bytes(width, "big")
