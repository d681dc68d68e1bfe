"""The two formats of TensorFlow's checkpoints: since 2016 ("V2", tensor bundles) PREFIX.index and
PREFIX.data-00000-of-00001; before ("V1") one file, or several shards.

The index is a table from the names of variables to the places of their bytes (BundleEntryProto); a partitioned
variable has an entry for each slice. From tensorflow/core/protobuf/tensor_bundle.proto and the notes in
tensorflow/core/util/tensor_bundle/tensor_bundle.h.

The older files are tables of SavedSlices messages: the entry of the empty key has the shapes, each other entry is a
slice of a variable.
"""

import glob
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lstm_mnist_jax.interop.tf_checkpoint import messages
from lstm_mnist_jax.interop.tf_checkpoint.messages import (
    Extent,
    Malformed,
    Unsupported,
    extents_of,
    new,
    parse,
    shape_of,
)
from lstm_mnist_jax.interop.tf_checkpoint.sstable import masked_crc32c, read_table, write_table

FORMAT_VERSION = 1

Slices = Sequence[tuple[tuple[Extent, ...], Callable[[np.dtype, tuple[int, ...]], np.ndarray]]]
"""Of each slice of a variable, its place, and what reads it as an array of a type and a shape."""


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


def read_bundle(prefix: Path) -> dict[str, Variable]:
    """The variables of a checkpoint by name. Only the index is read; `numpy.asarray` reads a variable.

    Raises Malformed where the index is damaged or of an unsupported kind, and OSError.
    """
    table = dict(read_table(prefix.with_name(prefix.name + ".index").read_bytes()))
    if b"" not in table:
        raise Malformed("it has no header, so it is no index of a checkpoint")
    header = parse("BundleHeader", table[b""])
    if header.endianness:
        raise Unsupported("it was written on a big-endian machine, which is not supported")
    if (least := header.version.min_consumer) > FORMAT_VERSION:
        raise Unsupported(f"it needs a reader of version {least}, this one reads version {FORMAT_VERSION}")
    shards = header.num_shards
    entries = {key: parse("BundleEntry", value) for key, value in table.items() if key}
    _require_room(prefix, entries, shards)
    variables, slices = {}, _slices(entries)
    for key, entry in entries.items():
        if key[0]:
            try:
                name = key.decode()
            except UnicodeDecodeError as error:
                raise Malformed(f"the name {key[:100]!r} is no text") from error
            try:
                variables[name] = _variable(prefix, entry, slices.get(key, []), shards)
            except Malformed as error:
                raise Malformed(f"{name}: {error}") from error
    return variables


def bundle_of(variables: Mapping[str, np.ndarray]) -> tuple[bytes, bytes]:
    """The index and the data file of a checkpoint of one shard, with these arrays by name."""
    numbers = {dtype: number for number, dtype in messages.DTYPES.items()}
    header = new("BundleHeader", num_shards=1, version=new("Version", producer=FORMAT_VERSION))
    items = [(b"", header.SerializeToString())]
    data = bytearray()
    for name, array in sorted(variables.items(), key=lambda item: item[0].encode()):
        dtype = array.dtype.newbyteorder("<")
        values = array.astype(dtype).tobytes()
        entry = new("BundleEntry", dtype=numbers[dtype], offset=len(data), size=len(values))
        entry.shape.SetInParent()  # written also where there are no axes
        for size in array.shape:
            entry.shape.dim.add(size=size)
        entry.crc32c = masked_crc32c(values)
        items.append((name.encode(), entry.SerializeToString()))
        data += values
    return write_table(items), bytes(data)


def _require_room(prefix: Path, entries: dict[bytes, Any], shards: int) -> None:
    """Raises Malformed where the entries claim more bytes than the data files have."""
    claimed = sum(max(0, entry.size) for entry in entries.values())
    files = list(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-?????-of-{shards:05d}"))
    present = sum(file.stat().st_size for file in files)
    if len(files) == shards and claimed > present:
        raise Malformed(f"its variables have {claimed} bytes, its data files {present}; they may be cut short")


def _slices(entries: dict[bytes, Any]) -> dict[bytes, list[Any]]:
    """The entries of slices by the key of their variable, in the order of `_position`.

    The key of a slice (saved_tensor_slice_util.cc) is 00, the name with 00 written as 00 ff, 00 01, and the starts and
    lengths in an encoding that preserves their order (OrderedCode); and the table is sorted by key.
    """
    found: dict[bytes, list[Any]] = {}
    for key, entry in entries.items():
        if not key[0]:
            name, _, _ = key[1:].partition(b"\0\1")
            found.setdefault(name.replace(b"\0\xff", b"\0"), []).append(entry)
    return found


def _position(part: Any) -> list[tuple[int, int]]:
    """Start and length of a slice along each axis; the length is -1 where the axis is not cut."""
    return [(axis.start, axis.length or -1) for axis in part.extent]


def _variable(prefix: Path, entry: Any, slices: list[Any], shards: int) -> Variable:
    shape = shape_of(entry.shape)
    places = [extents_of(position, shape) for position in sorted(entry.slices, key=_position)]
    if not places:
        places, slices = [tuple((0, size) for size in shape)], [entry]
    if len(slices) != len(places):
        raise Malformed(f"it has {len(places)} slices, but {len(slices)} entries for them")
    reads = (partial(_read, prefix, each, shards) for each in slices)
    return _joined(shape, entry.dtype, [*zip(places, reads, strict=True)])


def _joined(shape: tuple[int, ...], number: int, slices: Slices) -> Variable:
    """A variable of slices. Raises Malformed, when it is read, where they do not cover it exactly."""

    def read() -> np.ndarray:
        dtype, sizes = messages.require_dtype(number), [tuple(length for _, length in extents) for extents, _ in slices]
        if sum(map(math.prod, sizes)) != math.prod(shape):
            raise Malformed("its slices do not cover it")
        # All are read before memory is taken for the whole.
        parts = [part(dtype, size) for (_, part), size in zip(slices, sizes, strict=True)]
        if sizes == [shape]:
            return parts[0]
        values, missing = np.empty(shape, dtype), np.ones(shape, bool)
        for (extents, _), part in zip(slices, parts, strict=True):
            place = tuple(slice(start, start + length) for start, length in extents)
            values[place], missing[place] = part, False
        if missing.any():
            raise Malformed("its slices do not cover it")
        return values

    return Variable(shape, messages.dtype_name(number), read)


def _read(prefix: Path, entry: Any, shards: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a variable, or of a slice of one."""
    size = entry.size
    if size != math.prod(shape) * dtype.itemsize:
        raise Malformed(f"it has {size} bytes, but its shape {list(shape)} and type {dtype.name} need others")
    path = prefix.with_name(f"{prefix.name}.data-{entry.shard:05d}-of-{shards:05d}")
    if not path.is_file():
        raise Malformed(f"its file {path.name} is missing")
    with path.open("rb") as file:
        if entry.offset < 0 or entry.offset + size > path.stat().st_size:
            raise Malformed(f"{path.name} is too short for it: it may be cut short")
        file.seek(entry.offset)
        data = file.read(size)
    if masked_crc32c(data) != entry.crc32c:
        raise Malformed(f"its bytes in {path.name} do not agree with their checksum")
    return np.frombuffer(data, dtype).reshape(shape)


def read_tensor_slices(shards: list[Path]) -> dict[str, Variable]:
    """The variables of an older checkpoint by name; `numpy.asarray` decodes one. Raises Malformed and OSError."""
    entries = [(key, parse("SavedSlices", value)) for shard in shards for key, value in read_table(shard.read_bytes())]
    shapes: dict[str, tuple[tuple[int, ...], int]] = {}
    for key, entry in entries:
        for tensor in () if key else entry.meta.tensor:
            shapes[_name(tensor)] = shape_of(tensor.shape), tensor.type
    if not any(entry.HasField("meta") for _, entry in entries):
        raise Malformed("it has no list of its variables")
    parts: dict[str, list[Any]] = {name: [] for name in shapes}
    for _, entry in entries:
        if entry.HasField("data"):
            name = _name(entry.data)
            if name not in shapes:
                raise Malformed(f"it has a slice of {name}, but no shape of it")
            extents = extents_of(entry.data.slice, shapes[name][0])
            parts[name].append((extents, partial(messages.decode_tensor, tensor=entry.data.data)))
    return {name: _joined(shape, number, parts[name]) for name, (shape, number) in shapes.items()}


def _name(message: Any) -> str:
    if not message.name:
        raise Malformed("it has a variable without a name")
    return str(message.name)
