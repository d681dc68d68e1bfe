"""ONNX files of any exporter, read: LSTM or GRU operators over the steps of an image, then dense layers.

`trace` follows the entries of the images through the nodes: constants and shapes are computed, and of everything else
only where its entries go. The classifier is recognized here, from its logits back to the images. A node that is not
understood, or that computes something else, is refused by its operator. `export.to_onnx` writes such files.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.assembly import check
from lstm_mnist_jax.interop.files import read_bytes, reading_as, require
from lstm_mnist_jax.interop.imported import NETWORK, Imported
from lstm_mnist_jax.interop.inputs import Inputs, are_bytes
from lstm_mnist_jax.interop.onnx.operators import Signal, Source, Unread, final_states, rows_below, short
from lstm_mnist_jax.interop.onnx.trace import Trace
from lstm_mnist_jax.interop.weights import Dense, Weights, to_params, with_recurrent_biases

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
    with reading_as(path, "an ONNX file"):
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
    model, batch = _classifier(trace)
    if not trace.is_open:
        return model
    other, other_batch = _classifier(Trace(onnx, proto, opset, most, SIZES[1]))
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
    with reading_as(path, "an ONNX file"):
        return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def _classifier(trace: Trace) -> tuple[Imported, int]:
    """The network that the outputs belong to, and the number of images that it was followed for."""
    found: np.ndarray | None = None
    for output in trace.graph.output:
        name, value = short(output.name), trace.value(output.name, "the graph's outputs")
        kind = trace.source(value.entries).kind if isinstance(value, Signal) else ""
        if isinstance(value, Unread) or kind == "layer":
            continue  # the states of a layer, beside the logits
        if kind not in ("dense", "bias", "relu", "tanh"):
            raise WeightsError(f"its output {name} is not that of a dense layer after LSTM or GRU layers.")
        logits = value.entries.reshape(-1, value.entries.shape[-1])
        if found is not None and not np.array_equal(found, logits):
            raise WeightsError(f"its output {name} is of another classifier than the outputs before it.")
        model, batch = _model(trace, logits, f"its output {name}")
        if math.prod(value.entries.shape[:-1]) != max(value.entries.shape[:-1], default=1):
            raise WeightsError(f"its output {name} has other axes than examples and classes.")
        found = logits
    if found is None:
        raise WeightsError("none of its outputs is that of a dense layer after LSTM or GRU layers.")
    return model, batch


def _model(trace: Trace, logits: np.ndarray, output: str) -> tuple[Imported, int]:
    dense, activations, features = _dense_layers(trace, logits)
    pooling, source = _pooling(trace, features, output)
    sources = [source]
    while (below := trace.source(sources[0].below)).kind == "layer":
        sources.insert(0, below)
    layers = [source.data for source in sources]
    if len(functions := {layer.activations for layer in layers}) > 1:
        raise WeightsError(f"it has layers of different activations: {sorted(functions)}.")
    between = set(activations[:-1]) or {ModelConfig.dense_activation}
    if len(between) > 1 or activations[-1] != "linear":
        raise WeightsError(
            "it has dense layers with different activations after them, or one after the output layer, which this "
            "classifier does not have."
        )
    images, scale, shift = sources[0].below, 1.0, 0.0
    while (below := trace.source(images)).kind == "affine":
        factor, addend = below.data
        scale, shift, images = scale * factor, shift + scale * addend, below.under(images)
    names = (*(layer.name for layer in layers), *(name for _, _, name in dense))
    weights = Weights(
        with_recurrent_biases([layer.weights for layer in layers]),
        tuple(Dense(kernel, np.zeros(kernel.shape[1]) if bias is None else bias) for kernel, bias, _ in dense),
        trace.source(features).data if pooling == "attention" else None,
    )
    check(weights, names, {})
    config = replace(
        weights.config,
        **_task(images, trace),
        pooling=pooling,  # type: ignore[arg-type]
        recurrent_activation=layers[0].activations[0],
        activation=layers[0].activations[1],
        dense_activation=between.pop(),  # type: ignore[arg-type]
    )
    inputs, note = _inputs(scale, shift, trace.integers)
    model = Imported(
        config,
        inputs.fold(to_params(weights)),
        names,
        tuple(f"{name} has no bias: zeros were taken" for _, bias, name in dense if bias is None),
        known=frozenset(NETWORK),
        time_steps=len(images),
        knows_inputs=trace.integers or (scale, shift) != (1, 0),
        input_note=note,
    )
    return model, images.shape[1]


def _dense_layers(trace: Trace, outputs: np.ndarray) -> tuple[list[tuple[Any, Any, str]], list[str], np.ndarray]:
    """The dense layers of which these are the outputs, [examples, out], their activations, and their inputs.

    A dense layer is its kernel, its bias or None, and its name.
    """
    layers: list[tuple[Any, Any, str]] = []
    activations: list[str] = []
    while True:
        source, activation, bias = trace.source(outputs), "linear", None
        if source.kind in ("relu", "tanh"):
            activation, outputs = source.kind, source.under(outputs)
            source = trace.source(outputs)
        while source.kind == "bias":
            added = np.broadcast_to(source.data, source.shape).reshape(-1)[outputs - source.start]
            if not np.array_equal(added, np.broadcast_to(added[0], added.shape), equal_nan=True):
                raise WeightsError(f"{source.place} adds other numbers to other examples or time steps.")
            bias, outputs = added[0] if bias is None else bias + added[0], source.under(outputs)
            source = trace.source(outputs)
        if source.kind != "dense":
            return layers, activations, outputs
        kernel, name = source.data
        layers.insert(0, (kernel, bias, name))
        activations.insert(0, activation)
        outputs = rows_below(source, outputs, "its output ")


def _pooling(trace: Trace, features: np.ndarray, output: str) -> tuple[str, Source]:
    """How these features [examples, features] come from the outputs of a layer, and the layer. Raises WeightsError."""
    source = trace.source(features)
    if source.kind in ("mean", "max", "attention"):
        layer = trace.source(source.below)
        if np.array_equal(source.under(features), _by_example(layer.entries[0])):
            return source.kind, layer
    elif source.kind == "layer":
        entries = source.entries
        forms = {"last": final_states(entries), "all": entries, "last_step": entries[-1]}
        for pooling, expected in forms.items():
            if np.array_equal(features, _by_example(expected)):
                return pooling, source
        raise WeightsError(f"{output} {_difference(features, source)}")
    raise WeightsError(
        f"{output} is computed from other inputs than the features of one step, or of all in their order, the forward "
        "direction's before the backward one's."
    )


def _by_example(entries: np.ndarray) -> np.ndarray:
    """[batch, features] of [..., batch, hidden]."""
    by_example = np.moveaxis(entries, -2, 0)
    return by_example.reshape(len(by_example), -1)


def _difference(features: np.ndarray, source: Source) -> str:
    """What these outputs of a layer are, where they are not what this classifier uses."""
    time, direction, example, _ = np.unravel_index(features - source.start, source.shape)
    steps, directions, batch, hidden = source.shape
    if len(features) != batch and len(np.unique(time)) == steps and features.size == steps * batch * hidden:
        return "is computed from the output of all time steps, not of one. " + POOLINGS
    if len(features) != batch or (example != np.arange(batch)[:, None]).any() or features.shape[1] < hidden:
        return "is computed from a part of the images, of the examples or of the features."
    if directions == 2 and len(np.unique(direction)) == 1:
        return "uses one direction of a bidirectional layer; this classifier uses both."
    if directions == 2 and np.array_equal(features, _by_example(final_states(source.entries)[::-1])):
        return "puts the backward direction first; this classifier has the forward one first."
    if len(np.unique(time)) == 1 and features.shape[1] == directions * hidden:
        which = f"time step {time.flat[0]}, not of the last one" if time.any() else "the first time step"
        return f"uses the output of {which}. {POOLINGS}"
    return (
        "has other inputs than the features of one step, or of all in their order, the forward direction's before the "
        "backward one's."
    )


POOLINGS = "This classifier uses those of the last step, of all steps, or their mean, maximum or attention over time."


def _task(images: np.ndarray, trace: Trace) -> dict[str, Any]:
    """The fields of the config for how images are read, from the pixels [time, batch, features] of the steps."""
    steps, batch, features = images.shape
    shape = trace.sources[0].shape
    place = np.unravel_index(images, shape)
    numbers = np.arange(batch)[:, None]
    axes = [axis for axis, size in enumerate(shape) if size == batch and (place[axis] == numbers).all()]
    if batch > 1 and not axes:
        raise WeightsError("its first layer has examples that are not an axis of the input.")
    inner = [axis for axis in range(len(shape)) if axis not in axes[:1]]
    own = [shape[axis] for axis in inner]
    orders = np.ravel_multi_index([place[axis] for axis in inner], own)
    order, size = orders[:, 0].reshape(-1), math.prod(own)
    own = own[1:] if len(own) == 3 and own[0] == 1 else own  # one channel, before the rows
    is_flat = len(own) == 1
    # Channels before the rows, as in PyTorch: in this package they come last.
    is_other = len(own) == 3 and own[0] <= 4 < own[2] and not trace.is_own
    if order.size == size and (orders == orders[:, :1]).all() and not is_other:
        pixels = math.prod(own[:2])
        by_column = np.arange(size).reshape([features, steps] if is_flat else own).swapaxes(0, 1).reshape(-1)
        by_pixel = np.arange(size).reshape(pixels, -1)
        tasks: list[tuple[np.ndarray, int, dict[str, Any]]] = [
            (np.arange(size), steps if is_flat else own[0], {"task": "rows"}),
            (by_column, steps if is_flat else own[1], {"task": "columns"}),
        ]
        for seed in trace.seeds:
            permuted = by_pixel[np.random.RandomState(seed).permutation(pixels)].reshape(-1)
            tasks.append((permuted, pixels, {"task": "permuted", "permutation_seed": seed}))
        for expected, natural, task in tasks:
            if np.array_equal(order, expected):
                if task["task"] == "rows" and steps == pixels != natural and own[1] > 1:
                    return {"task": "pixels"}
                return task | {"sequence_length": None if steps == natural else steps}
    raise WeightsError(
        "its first layer reads the steps in another order: neither row by row nor column by column of the images, nor "
        "in the order of a permutation_seed that is in the file."
    )


def _inputs(scale: float, shift: float, integers: bool) -> tuple[Inputs, str]:
    """What the first layer takes of pixels x, scale * x + shift, and what was assumed, as a line of text."""
    raw = integers or are_bytes(scale, -shift / scale if scale else 0.0)
    if raw is None:
        raise WeightsError(
            f"it multiplies its input by {scale:.3g}, so that it is not clear whether the pixels are 0 to 1 or 0 to "
            "255."
        )
    factor = scale * (255 if raw else 1)
    if not 1e-30 < abs(factor) < 1e30:
        raise WeightsError(f"it multiplies its input by {scale:.3g}, so that nothing is left of the images.")
    known = "" if integers else ", as the graph's own scaling shows" if raw else ", as is usual"
    note = f"the input is taken to be {'integers' if integers else 'floats'} of 0 to {255 if raw else 1}{known}"
    if shift == 0 and math.isclose(factor, 1, rel_tol=1e-6):
        return Inputs(), note
    note += f"; x * {scale:.6g} + {shift:.6g} at the graph's beginning is in the weights now"
    return Inputs(-shift / factor, 1 / factor), note
