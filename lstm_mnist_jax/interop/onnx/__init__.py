"""ONNX files of any exporter, read: LSTM or GRU operators over the steps of an image, then dense layers.

The nodes on the way from the outputs back to the input are gone through in order. The value of a name is a constant, a
shape, or a `Signal`: what the network computes, with what each of its axes means. A node that is not understood, or
that computes something else than this classifier, is refused by its operator. Nothing is run. `export.to_onnx` writes.
"""

from pathlib import Path

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.files import read_bytes, require
from lstm_mnist_jax.interop.imported import Imported
from lstm_mnist_jax.interop.onnx.graph import Graph
from lstm_mnist_jax.interop.onnx.signals import first_line

OPSETS = range(7, 27)


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
    size = len(read_bytes(path))
    try:
        proto = onnx.load(path)
    except Exception as error:  # of protobuf, of onnx's checks of external data, or of the system
        raise WeightsError(f"{path} cannot be read as an ONNX file: {first_line(error)}.") from error
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
        # Weights of 16 bits that are cast, joined and scaled are 6 times as large.
        return Graph(onnx, graph, opset, 8 * size + 2**20).classifier()
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error.__cause__


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The initializers of an ONNX file by name. Raises WeightsError."""
    onnx = require("onnx")
    read_bytes(path)
    try:
        return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    except Exception as error:
        raise WeightsError(f"{path} cannot be read as an ONNX file: {first_line(error)}.") from error
