"""ONNX files of any exporter, read: LSTM or GRU operators over the steps of an image, then dense layers.

`trace` follows the entries of the images through the nodes: constants and shapes are computed, and of everything else
only where its entries go. `network` recognizes the classifier from its logits back to the images. A node that is not
understood, or that computes something else, is refused by its operator. `export.to_onnx` writes such files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.files import read_bytes, require
from lstm_mnist_jax.interop.imported import Imported
from lstm_mnist_jax.interop.onnx.network import classifier
from lstm_mnist_jax.interop.onnx.operators import first_line
from lstm_mnist_jax.interop.onnx.trace import Trace

OPSETS = range(7, 27)

SIZES = (2, 5, 7, 11), (3, 7, 11, 13)
"""What is taken for the first to fourth axis of an input where their sizes are open; both have to give one network."""


def read(path: Path) -> Imported:
    """The classifier in an ONNX file, with its external data beside it. Needs the package onnx.

    Args:
      path: the file.

    Returns:
      The network and its parameters for pixels of 0 to 1, with what was assumed about the inputs in `input_note`.

    Raises:
      WeightsError: the file is missing or damaged, or its graph is another network.
    """
    onnx = require("onnx")
    require("onnx.reference")
    size = len(read_bytes(path))
    with _naming(path):
        proto = onnx.load(path)
    graph = proto.graph
    if not graph.node:
        raise WeightsError(f"{path} cannot be read as an ONNX file: it has no graph, or one without operators.")
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    if opset not in OPSETS:
        raise WeightsError(
            f"{path} has the operator set {opset}, expected {OPSETS[0]} to {OPSETS[-1]}. Export it with opset_version="
            "17, or convert it with onnx.version_converter."
        )
    size += sum(len(tensor.raw_data) for tensor in graph.initializer if tensor.external_data)
    try:
        # Each number is counted as 8 bytes, for every operator that moves, casts or scales it.
        return _read(onnx, proto, opset, 32 * size + 2**20)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error.__cause__


def _read(onnx: Any, proto: Any, opset: int, most: int) -> Imported:
    trace = Trace(onnx, proto, opset, most, SIZES[0])
    model, batch = classifier(trace)
    if not trace.is_open:
        return model
    other, other_batch = classifier(Trace(onnx, proto, opset, most, SIZES[1]))
    time_steps = model.time_steps
    if other.time_steps != time_steps:
        if batch == other_batch > 1:
            raise WeightsError(
                f"takes its steps along an axis of open size, and {batch} examples along another: has it been given "
                "the images with the batch first, which needs batch_first=True, or layout=1?"
            )
        time_steps = None
    same = jax.tree.map(np.array_equal, model.params, other.params)
    if model.config != other.config or not jax.tree.all(same):
        raise WeightsError("it is another network for another number of images.")
    return replace(model, time_steps=time_steps)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The initializers of an ONNX file by name. Raises WeightsError."""
    onnx = require("onnx")
    read_bytes(path)
    with _naming(path):
        return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of protobuf, of onnx's checks of external data, or of the system
        raise WeightsError(f"{path} cannot be read as an ONNX file: {first_line(error)}.") from error
