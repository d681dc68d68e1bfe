"""The classifier that an ONNX graph is: from its logits back to the images."""

import math
from typing import Any

import numpy as np

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.inputs import fold_cell
from lstm_mnist_jax.interop.onnx.operators import rows_below
from lstm_mnist_jax.interop.onnx.recurrent import final_states
from lstm_mnist_jax.interop.onnx.signals import Signal, Source, Unread, float32, short
from lstm_mnist_jax.interop.onnx.trace import Trace
from lstm_mnist_jax.interop.weights import ImportedModel

RAW, UNIT = 1 / 64, 1 / 16
"""Floats that the graph multiplies by less than RAW are pixels of 0 to 255; those by UNIT or more are 0 to 1."""

OFFSET = 10
"""Floats from which the graph subtracts more are pixels of 0 to 255."""


def classifier(trace: Trace) -> tuple[ImportedModel, int]:
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


def _model(trace: Trace, logits: np.ndarray, output: str) -> tuple[ImportedModel, int]:
    dense, features = _dense_layers(trace, logits)
    pooling, source = _pooling(trace, features, output)
    sources = [source]
    while (below := trace.source(sources[0].below)).kind == "layer":
        sources.insert(0, below)
    layers = [source.data for source in sources]
    if len(kinds := {layer.kind for layer in layers}) > 1 or len({len(layer.cells) for layer in layers}) > 1:
        what = "LSTM and GRU layers" if len(kinds) > 1 else "layers in one and in both directions"
        raise WeightsError(f"it has {what}, which this classifier does not have together.")
    if len(functions := {layer.activations for layer in layers}) > 1:
        raise WeightsError(f"it has layers of different activations: {sorted(functions)}.")
    between = {layer["activation"] or "linear" for layer in dense[:-1]} or {ModelConfig.dense_activation}
    if len(between) > 1 or dense[-1]["activation"]:
        raise WeightsError(
            "it has dense layers with different activations after them, or one after the output layer, which this "
            "classifier does not have."
        )
    images, scale, shift = sources[0].below, 1.0, 0.0
    while (below := trace.source(images)).kind == "affine":
        factor, addend = below.data
        scale, shift, images = scale * factor, shift + scale * addend, below.under(images)
    config = ModelConfig(
        **_task(images, trace.sources[0].shape, layers[0].name),
        cell=layers[0].kind,
        hidden_features=tuple(source.shape[-1] for source in sources),
        bidirectional=len(layers[0].cells) == 2,
        pooling=pooling,
        recurrent_activation=layers[0].activations[0],
        activation=layers[0].activations[1],
        dense_features=tuple(layer["kernel"].shape[1] for layer in dense[:-1]),
        dense_activation=between.pop(),
    )
    cells, note = _fold_scale(layers[0].cells, scale, shift, trace.integers)
    notes, trees = [note], []
    for layer in dense:
        if layer["bias"] is None:
            notes.append(f"{layer['name']} has no bias: zeros were taken")
        bias = np.zeros(layer["kernel"].shape[1]) if layer["bias"] is None else layer["bias"]
        trees.append({"kernel": float32(layer["kernel"]), "bias": float32(bias)})
    recurrent = [_as_module(cells), *(_as_module(layer.cells) for layer in layers[1:])]
    params = {"rnn": {"layers": dict(enumerate(recurrent))}, "dense": trees[-1]}
    if trees[:-1]:
        params["dense_hidden"] = dict(enumerate(trees[:-1]))
    if pooling == "attention":
        params["attention"] = {"kernel": float32(trace.source(features).data)}
    names = (*(layer.name for layer in layers), *(layer["name"] for layer in dense))
    plain = not trace.integers and (scale, shift) == (1, 0)
    model = ImportedModel(config, params, names, tuple(notes), len(images), knows_inputs=not plain)
    return model.checked(), images.shape[1]


def _dense_layers(trace: Trace, outputs: np.ndarray) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The dense layers of which these are the outputs, [examples, out], and what the first of them is given."""
    layers: list[dict[str, Any]] = []
    while True:
        source, activation, bias = trace.source(outputs), "", None
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
            return layers, outputs
        kernel, name = source.data
        layers.insert(0, {"kernel": kernel, "bias": bias, "activation": activation, "name": name})
        outputs = rows_below(source, outputs)


def _pooling(trace: Trace, features: np.ndarray, output: str) -> tuple[str, Source]:
    """How these features [examples, features] come from the outputs of a layer, and the layer. Raises WeightsError."""
    source = trace.source(features)
    if source.kind in ("mean", "max", "attention"):
        layer = trace.source(source.below)
        if np.array_equal(source.under(features), _by_example(layer.entries[0])):
            return source.kind, layer
    elif source.kind == "layer":
        entries = source.entries
        forms = {"last": _by_example(final_states(entries)), "all": _by_example(entries)}
        for pooling, expected in forms.items():
            if np.array_equal(features, expected):
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
        step = time.flat[0]
        if step == steps - 1:
            return (
                "uses the output of the last time step in both directions; the backward one has read a single step "
                "there. " + POOLINGS
            )
        which = "the first time step" if step == 0 else f"time step {step}, not of the last one"
        return f"uses the output of {which}. {POOLINGS}"
    return (
        "has other inputs than the features of one step, or of all in their order, the forward direction's before the "
        "backward one's."
    )


POOLINGS = "This classifier uses the final hidden states, all of them, or their mean, maximum or attention over time."


def _task(images: np.ndarray, shape: tuple[int, ...], name: str) -> dict[str, Any]:
    """The fields of the config for how images are read, from the pixels [time, batch, features] of the steps."""
    steps, batch, features = images.shape
    place = np.unravel_index(images, shape)
    numbers = np.arange(batch)[:, None]
    axes = [axis for axis, size in enumerate(shape) if size == batch and (place[axis] == numbers).all()]
    if batch > 1 and not axes:
        raise WeightsError("has examples that are not an axis of the input.")
    axis = axes[0] if axes else None
    own = shape if axis is None else shape[:axis] + shape[axis + 1 :]
    order = np.ravel_multi_index([p for number, p in enumerate(place) if number != axis], own)
    if (order == order[:, :1]).all() and order[:, 0].size == math.prod(own):
        order = order[:, 0]
        if np.array_equal(order.reshape(-1), np.arange(order.size)):
            return {"task": "rows"}
        if np.array_equal(order.T.reshape(-1), np.arange(order.size)):
            return {"task": "columns"}
    raise WeightsError(
        f"its first layer, {name}, reads the steps in another order: neither row by row nor column by column of the "
        "images."
    )


def _fold_scale(
    cells: tuple[dict[str, Any], ...], scale: float, shift: float, integers: bool
) -> tuple[tuple[dict[str, Any], ...], str]:
    """The cells of the first layer for pixels of 0 to 1, and what was assumed."""
    is_offset = abs(shift) > OFFSET * abs(scale)
    raw = integers or abs(scale) < RAW or is_offset
    if not raw and abs(scale) < UNIT:
        raise WeightsError(
            f"it multiplies its input by {scale:.3g}, so that it is not clear whether the pixels are 0 to 1 or 0 to 255."
        )
    factor = scale * (255 if raw else 1)
    done = "subtracts such a number from them" if is_offset else "divides them"
    known = "" if integers else f", as the graph {done}" if raw else ", as is usual"
    note = f"the input is taken to be {'integers' if integers else 'floats'} of 0 to {255 if raw else 1}{known}"
    if shift == 0 and math.isclose(factor, 1, rel_tol=1e-6):
        return cells, note
    return tuple(fold_cell(cell, factor, shift) for cell in cells), (
        f"{note}; x * {scale:.6g} + {shift:.6g} at the graph's beginning is in the weights now"
    )


def _as_module(cells: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    if len(cells) == 1:
        return {"cell": cells[0]}
    return {"forward_rnn": {"cell": cells[0]}, "backward_rnn": {"cell": cells[1]}}
