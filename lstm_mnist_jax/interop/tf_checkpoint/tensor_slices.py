"""TensorFlow's oldest checkpoints ("V1"): one file, or several shards, each a table of SavedSlices messages.

The entry of the empty key has the shapes; each other entry is a slice of a variable.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lstm_mnist_jax.interop.tf_checkpoint import tensors
from lstm_mnist_jax.interop.tf_checkpoint.messages import Malformed, parse
from lstm_mnist_jax.interop.tf_checkpoint.sstable import read_table
from lstm_mnist_jax.interop.tf_checkpoint.tensors import Extent, Variable


def read_tensor_slices(shards: list[Path]) -> dict[str, Variable]:
    """The variables of a checkpoint by name; `numpy.asarray` decodes one. Raises Malformed and OSError."""
    entries = [(key, parse("SavedSlices", value)) for shard in shards for key, value in read_table(shard.read_bytes())]
    shapes: dict[str, tuple[tuple[int, ...], int]] = {}
    for key, entry in entries:
        for tensor in () if key else entry.meta.tensor:
            shapes[_name(tensor)] = tensors.shape_of(tensor.shape), tensor.type
    if not any(entry.HasField("meta") for _, entry in entries):
        raise Malformed("it has no list of its variables")
    parts: dict[str, list[tuple[tuple[Extent, ...], Any]]] = {name: [] for name in shapes}
    for _, entry in entries:
        if entry.HasField("data"):
            name = _name(entry.data)
            if name not in shapes:
                raise Malformed(f"it has a slice of {name}, but no shape of it")
            parts[name].append((tensors.extents_of(entry.data.slice, shapes[name][0]), entry.data.data))
    return {
        name: Variable(shape, tensors.dtype_name(number), partial(_read, shape, number, parts[name]))
        for name, (shape, number) in shapes.items()
    }


def _name(message: Any) -> str:
    if not message.name:
        raise Malformed("it has a variable without a name")
    return str(message.name)


def _read(shape: tuple[int, ...], number: int, parts: list[tuple[tuple[Extent, ...], Any]]) -> np.ndarray:
    dtype = tensors.require_dtype(number)
    decoders = [
        (extents, partial(tensors.decode_tensor, dtype, tuple(length for _, length in extents), values))
        for extents, values in parts
    ]
    return tensors.join_slices(shape, dtype, decoders)
