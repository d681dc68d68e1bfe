"""The classifier that an ONNX graph is: goes through its nodes, and takes the network from its logits."""

import math
from typing import Any

import numpy as np

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.imported import Imported
from lstm_mnist_jax.interop.inputs import fold_cell
from lstm_mnist_jax.interop.onnx import operators, recurrent
from lstm_mnist_jax.interop.onnx.signals import (
    Atom,
    Layer,
    Signal,
    Unread,
    axis_of,
    first_line,
    short,
    size_of,
)
from lstm_mnist_jax.interop.weights import float32

OPERATORS = operators.OPERATORS | recurrent.OPERATORS

AFTER_LOGITS = ("Identity", "Cast", "ArgMax")

RAW, UNIT = 1 / 64, 1 / 16
"""Floats that the graph multiplies by less than RAW are pixels of 0 to 255; those by UNIT or more are 0 to 1."""

OFFSET = 10
"""Floats from which the graph subtracts more are pixels of 0 to 255."""


class Graph:
    """Goes through the nodes of a graph. `most` is the largest number of bytes of the constants that nodes make."""

    def __init__(self, onnx: Any, graph: Any, opset: int, most: int) -> None:
        self.onnx, self.graph, self.opset, self.most = onnx, graph, opset, most
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        if graph.sparse_initializer:
            raise WeightsError("it has sparse initializers, which are not read. Save it with dense ones.")
        self.values: dict[str, Any] = {}
        self.layers: list[Layer] = []
        self.input_kind, self.made = "", 0

    def classifier(self) -> Imported:
        """The network that the outputs belong to."""
        self._read_input()
        for node in self._needed():
            self._take(node)
        found = None
        for output in self.graph.output:
            name, value = short(output.name), self._value(output.name, "the graph's outputs")
            if isinstance(value, Unread) or (isinstance(value, Signal) and value.layer and not value.dense):
                continue  # the states of a layer, beside the logits
            if not isinstance(value, Signal) or not value.dense:
                raise WeightsError(f"its output {name} is not that of a dense layer after LSTM or GRU layers.")
            if found is not None and (found.dense, found.layer, found.steps) != (value.dense, value.layer, value.steps):
                raise WeightsError(f"its output {name} is of another classifier than the outputs before it.")
            self.check_output(name, value)
            found = value
        if found is None:
            raise WeightsError("none of its outputs is that of a dense layer after LSTM or GRU layers.")
        return self._model(found)

    def _read_input(self) -> None:
        inputs = [value for value in self.graph.input if value.name not in self.initializers]
        if len(inputs) != 1:
            names = ", ".join(short(value.name) for value in inputs[:10]) or "none"
            raise WeightsError(
                f"it has {len(inputs)} inputs ({names}), expected one, the images. Export it with initial states of "
                "zero in the graph."
            )
        tensor = inputs[0].type.tensor_type
        types = self.onnx.TensorProto
        integers = (types.UINT8, types.INT8, types.UINT16, types.INT16, types.INT32, types.INT64)
        floats = (types.FLOAT, types.DOUBLE, types.FLOAT16, types.BFLOAT16)
        if tensor.elem_type not in integers + floats or not tensor.HasField("shape"):
            raise WeightsError(f"its input {short(inputs[0].name)} is not an array of numbers with a shape.")
        self.input_kind = "integers" if tensor.elem_type in integers else "floats"
        sizes = [size.dim_value if size.dim_value > 0 else None for size in tensor.shape.dim]
        if not 2 <= len(sizes) <= 4:
            raise WeightsError(f"its input {short(inputs[0].name)} has {len(sizes)} axes, expected images: 2 to 4.")
        axes = tuple(axis_of(Atom(f"axis {number} of the input", 1, size)) for number, size in enumerate(sizes))
        self.input_axes = axes
        self.values[inputs[0].name] = Signal(axes, integer=self.input_kind == "integers")

    def _needed(self) -> list[Any]:
        """The nodes from which the outputs are computed, in the order of the file."""
        maker: dict[str, int] = {}
        for number, node in enumerate(self.graph.node):
            for name in filter(None, node.output):
                if maker.setdefault(name, number) != number or name in self.initializers or name in self.values:
                    raise WeightsError(f"it is damaged: it computes {short(name)} twice.")
        waiting, needed = [output.name for output in self.graph.output], set()
        while waiting:
            made = maker.get(waiting.pop())
            if made is not None and made not in needed:
                needed.add(made)
                waiting += self.graph.node[made].input
        return [self.graph.node[number] for number in sorted(needed)]

    def _value(self, name: str, where: str) -> Any:
        if name not in self.values:
            if name not in self.initializers:
                raise WeightsError(f"{where} use {short(name)}, which nothing before computes.")
            self.values[name] = self.constant(self.initializers[name])
        return self.values[name]

    def constant(self, tensor: Any) -> np.ndarray:
        try:
            array = self.onnx.numpy_helper.to_array(tensor)
        except Exception as error:
            raise WeightsError(f"its constant {short(tensor.name)} is damaged: {first_line(error)}.") from error
        if array.dtype.kind not in "fiub" and "float" not in str(array.dtype):
            raise WeightsError(f"its constant {short(tensor.name)} holds {array.dtype}, expected numbers.")
        return array

    def _take(self, node: Any) -> None:
        """Computes the outputs of a node."""
        operator = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        place = f"the operator {short(operator)}" + (f" (node {short(node.name)})" if node.name else "")
        operation = OPERATORS.get(operator)
        if operation is None:
            raise WeightsError(
                f"it has {place}, which this classifier does not have: LSTM or GRU layers over the rows of an image, "
                "then dense layers."
            )
        attributes = {item.name: self.onnx.helper.get_attribute_value(item) for item in node.attribute}
        if unknown := sorted(short(name) for name in attributes.keys() - set(operation.attributes)):
            raise WeightsError(f"{place} has {', '.join(unknown[:10])}, which is not read.")
        inputs = [self._value(name, f"{place}: its inputs") if name else None for name in node.input]
        if unread := [value.what for value in inputs if isinstance(value, Unread)]:
            raise WeightsError(f"{place} uses {unread[0]}, which this classifier does not.")
        if any(isinstance(value, Signal) and value.end for value in inputs) and operator not in AFTER_LOGITS:
            raise WeightsError(f"{place} stands after the probabilities, where this classifier has nothing.")
        try:
            outputs = operation.read(self, attributes, inputs, node)
        except WeightsError as error:
            raise WeightsError(f"{place} {error}") from error.__cause__
        except (ArithmeticError, AttributeError, IndexError, KeyError, MemoryError, TypeError, ValueError) as error:
            raise WeightsError(f"{place} cannot be understood: {first_line(error)}.") from error
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for name, value in zip(node.output, outputs, strict=False):
            if name:
                self.values[name] = value
        for number, name in enumerate(node.output[len(outputs) :], len(outputs) + 1):
            self.values[name] = Unread(f"output {number} of {place}")

    def bounded(self, size: int, itemsize: int = 8) -> None:
        """Counts a new constant. Refuses those that are, all together, much larger than the file."""
        self.made += size * itemsize
        if self.made > self.most:
            raise WeightsError(
                f"makes a constant of {size:,} numbers; with those before it these are {self.made:,} bytes, more than "
                "the file can need."
            )

    def check_output(self, name: str, logits: Signal) -> None:
        layer = logits.layer
        assert layer is not None
        if logits.steps in ("all", "last", "first"):
            what = {
                "all": "of all time steps, not of one",
                "last": "of the last time step in both directions; the backward one has read a single step there",
                "first": "of the first time step",
            }[logits.steps]
            raise WeightsError(
                f"its output {name} is computed from the output {what}. This classifier uses the final hidden states, "
                "or the mean or maximum over time."
            )
        filled = [axis for axis in logits.axes if axis]
        classes = logits.dense[-1].outputs
        if filled != [axis for axis in (layer.batch, () if logits.end == "ArgMax" else classes) if axis]:
            raise WeightsError(f"its output {name} has other axes than examples and classes.")

    def _model(self, logits: Signal) -> Imported:
        """The network from its logits, with the scaling of the images in the weights of the first layer."""
        layers: list[Layer] = []
        below: Signal = logits
        while below.layer is not None:
            layers.insert(0, below.layer)
            below = below.layer.below
        kinds, directions = {layer.kind for layer in layers}, {len(layer.cells) for layer in layers}
        if len(kinds) > 1 or len(directions) > 1:
            what = "LSTM and GRU layers" if len(kinds) > 1 else "layers in one and in both directions"
            raise WeightsError(f"it has {what}, which this classifier does not have together.")
        if len(functions := {layer.activations for layer in layers}) > 1:
            raise WeightsError(f"it has layers of different activations: {sorted(functions)}.")
        between = {dense.activation or "linear" for dense in logits.dense[:-1]} or {ModelConfig.dense_activation}
        if len(between) > 1 or logits.dense[-1].activation:
            raise WeightsError(
                "it has dense layers with different activations after them, or one after the output layer, which this "
                "classifier does not have."
            )
        task, steps = self._task(layers[0])
        config = ModelConfig(
            task=task,  # type: ignore[arg-type]
            cell=layers[0].kind.lower(),  # type: ignore[arg-type]
            hidden_features=tuple(layer.hidden for layer in layers),
            bidirectional=len(layers[0].cells) == 2,
            pooling={"final": "last", "flat": "all"}.get(logits.steps, logits.steps),  # type: ignore[arg-type]
            recurrent_activation=layers[0].activations[0],  # type: ignore[arg-type]
            activation=layers[0].activations[1],  # type: ignore[arg-type]
            dense_features=tuple(dense.kernel.shape[1] for dense in logits.dense[:-1]),
            dense_activation=between.pop(),  # type: ignore[arg-type]
        )
        cells, note = self._fold_scale(layers[0], below)
        trees = [cells, *(layer.cells for layer in layers[1:])]
        notes = []
        trees_of_dense = []
        for dense in logits.dense:
            if dense.bias is None:
                notes.append(f"{dense.name} has no bias: zeros were taken")
            bias = np.zeros(dense.kernel.shape[1]) if dense.bias is None else dense.bias
            trees_of_dense.append({"kernel": float32(dense.kernel), "bias": float32(bias)})
        *hidden, output = trees_of_dense
        params = {
            "rnn": {"layers": {number: _as_module(tree) for number, tree in enumerate(trees)}},
            "dense": output,
        }
        if hidden:
            params["dense_hidden"] = dict(enumerate(hidden))
        names = (*(layer.name for layer in layers), *(dense.name for dense in logits.dense))
        plain = self.input_kind == "floats" and (below.scale, below.shift) == (1, 0)
        return Imported(
            config, params, names, tuple(notes), time_steps=steps, knows_inputs=not plain, input_note=note
        ).checked()

    def _task(self, first: Layer) -> tuple[str, int | None]:
        """How the images are read, and the number of time steps, if the file has it."""
        features = first.below.axes[-1]
        image = axis_of(*(atom for axis in self.input_axes for atom in axis if axis != first.batch or not axis))
        if axis_of(*first.time, *features) == image:
            return "rows", size_of(first.time)
        if len(first.time) == len(features) == 1 and axis_of(*features, *first.time) == image:
            return "columns", size_of(first.time)
        raise WeightsError(
            f"its first layer, {first.name}, reads the images neither row by row nor column by column: its steps and "
            "features are not the axes of the input in this order."
        )

    def _fold_scale(self, first: Layer, images: Signal) -> tuple[tuple[dict[str, Any], ...], str]:
        """The cells of the first layer for pixels of 0 to 1, and what was assumed."""
        is_offset = abs(images.shift) > OFFSET * abs(images.scale)
        raw = self.input_kind == "integers" or abs(images.scale) < RAW or is_offset
        if not raw and abs(images.scale) < UNIT:
            raise WeightsError(
                f"it multiplies its input by {images.scale:.3g}, so that it is not clear whether the pixels are 0 to 1 "
                "or 0 to 255."
            )
        factor = images.scale * (255 if raw else 1)
        done = "subtracts such a number from them" if is_offset else "divides them"
        known = "" if self.input_kind == "integers" else f", as the graph {done}" if raw else ", as is usual"
        note = f"the input is taken to be {self.input_kind} of 0 to {255 if raw else 1}{known}"
        if images.shift == 0 and math.isclose(factor, 1, rel_tol=1e-6):
            return first.cells, note
        return tuple(fold_cell(cell, factor, images.shift) for cell in first.cells), (
            f"{note}; x * {images.scale:.6g} + {images.shift:.6g} at the graph's beginning is in the weights now"
        )


def _as_module(cells: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    if len(cells) == 1:
        return {"cell": cells[0]}
    return {"forward_rnn": {"cell": cells[0]}, "backward_rnn": {"cell": cells[1]}}
