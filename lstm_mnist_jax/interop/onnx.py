"""ONNX files of any exporter, read: LSTM or GRU operators over the steps of an image, then one dense layer.

The nodes on the way from the outputs back to the input are gone through in order. The value of a name is a constant, a
shape, or a `Signal`: what the network computes, with what each of its axes means. A node that is not understood, or
that computes something else than this classifier, is refused by its operator. Nothing is run. `export.to_onnx` writes.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.export import ONNX_GATES
from lstm_mnist_jax.interop.files import read_bytes, require
from lstm_mnist_jax.interop.weights import GATES, ImportedModel
from lstm_mnist_jax.rnn.weights import reorder_gates

ONNX_GRU_GATES, GRU_GATES = "zrn", "rzn"
"""The order of the gates of ONNX's GRU, and that of `flax.nnx.GRUCell`."""

OPSETS = range(7, 27)

ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}

RAW, UNIT = 1 / 64, 1 / 16
"""Floats that the graph multiplies by less than RAW are pixels of 0 to 255; those by UNIT or more are 0 to 1."""


class Atom(NamedTuple):
    """A part of an axis of the input, of a layer's outputs, or of the logits.

    Attributes:
      axis: the name of the axis.
      stride: what one step along the atom is, in steps along the axis.
      size: None where the file leaves it open.
    """

    axis: str
    stride: int
    size: int | None


Axis = tuple[Atom, ...]
"""The atoms of an axis, the last one changing fastest. Atoms of size 1 are left out."""


@dataclass(frozen=True)
class Unknown:
    """An open size, in a shape."""

    axis: str


@dataclass(frozen=True)
class Fill:
    """An array of one value, whose shape does not matter."""

    value: float


@dataclass(frozen=True, eq=False)
class Dense:
    """A dense layer: kernel [features, classes], bias [classes] or None."""

    kernel: np.ndarray
    bias: np.ndarray | None
    name: str


@dataclass(frozen=True, eq=False)
class Signal:
    """What the network computes at a place of the graph.

    Attributes:
      axes: what each axis is.
      layer: the recurrent layer that it comes from; None is the images.
      scale, shift: of the images: it is scale * x + shift.
      integer: whether it holds integers.
      steps: of a layer: "all", "last" or "first" (what the layer gives at this time step), "final" (what it gives after
        it has read all), "mean" or "max" over time.
      direction: 0 or 1, where one direction of a bidirectional layer was chosen.
      dense: the dense layer, once it was applied.
      end: the operator after the logits, such as Softmax.
    """

    axes: tuple[Axis, ...]
    layer: "Layer | None" = None
    scale: float = 1.0
    shift: float = 0.0
    integer: bool = False
    steps: str = "all"
    direction: int | None = None
    dense: Dense | None = None
    end: str = ""


@dataclass(frozen=True, eq=False)
class Layer:
    """A recurrent layer.

    Attributes:
      kind: LSTM or GRU.
      name: of the node.
      below: its inputs.
      cells: the parameters of the cell of each direction, with the names of `flax.nnx`.
      hidden: features of a direction.
      time, batch: what its steps and its examples are.
      number: 0 for the first.
    """

    kind: str
    name: str
    below: Signal
    cells: tuple[dict[str, Any], ...]
    hidden: int
    time: Axis
    batch: Axis
    number: int

    @property
    def directions(self) -> Axis:
        return _axis(Atom(f"direction of layer {self.number}", 1, len(self.cells)))

    @property
    def units(self) -> Axis:
        return _axis(Atom(f"features of layer {self.number}", 1, self.hidden))

    @property
    def features(self) -> Axis:
        return self.directions + self.units


@dataclass(frozen=True)
class Pieces:
    """Signals one after another along an axis on which each has one entry."""

    axis: int
    parts: tuple[Signal, ...]


@dataclass(frozen=True)
class Unread:
    """What this classifier does not have, such as the last cell state."""

    what: str


def read(path: Path) -> ImportedModel:
    """The classifier in an ONNX file, with its external data beside it. Needs the package onnx.

    Raises:
      WeightsError: the file is missing or damaged, or its graph is another network.
    """
    onnx = require("onnx")
    size = len(read_bytes(path))
    try:
        proto = onnx.load(path)
    except Exception as error:  # of protobuf, of onnx's checks of external data, or of the system
        raise WeightsError(f"{path} cannot be read as an ONNX file: {_first_line(error)}.") from error
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
        return _Reader(onnx, graph, opset, 4 * size + 2**20).classifier()
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error.__cause__


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The initializers of an ONNX file by name. Raises WeightsError."""
    onnx = require("onnx")
    read_bytes(path)
    try:
        return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    except Exception as error:
        raise WeightsError(f"{path} cannot be read as an ONNX file: {_first_line(error)}.") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")[:300] or type(error).__name__


def _short(name: Any) -> str:
    """A name of the file for a message; damaged files have names of bytes, or long ones."""
    text = str(name)[:100]
    return text if text.isprintable() else repr(text)


def _axis(*atoms: Atom) -> Axis:
    """An axis of these atoms in its plainest form: no atoms of size 1, and parts of one axis that follow on joined."""
    joined: list[Atom] = []
    for atom in atoms:
        if atom.size == 1:
            continue
        if joined and atom.size is not None and joined[-1].axis == atom.axis:
            outer = joined[-1]
            if outer.size is not None and outer.stride == atom.stride * atom.size:
                joined[-1] = Atom(atom.axis, atom.stride, outer.size * atom.size)
                continue
        joined.append(atom)
    return tuple(joined)


def _size(axis: Axis) -> int | None:
    """The number of entries along an axis; None where it is open."""
    sizes = [atom.size for atom in axis]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def _shape(signal: Signal) -> np.ndarray:
    """The shape, with `Unknown` for open sizes."""
    sizes: list[Any] = []
    for axis in signal.axes:
        if len(axis) == 1 and axis[0].size is None:
            sizes.append(Unknown(axis[0].axis))
        elif (size := _size(axis)) is not None:
            sizes.append(size)
        else:
            raise ValueError("its input has an open size times another size")
    return _settle_shape(_objects(sizes))


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _settle_shape(array: np.ndarray) -> np.ndarray:
    """A shape without open sizes as integers."""
    if array.dtype == object and all(isinstance(item, int | np.integer) for item in array.flat):
        return array.astype(np.int64)
    return array


class _Reader:
    """Goes through the nodes of a graph. `most` is the largest number of bytes of a constant."""

    def __init__(self, onnx: Any, graph: Any, opset: int, most: int) -> None:
        self.onnx, self.graph, self.opset, self.most = onnx, graph, opset, most
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        if graph.sparse_initializer:
            raise WeightsError("it has sparse initializers, which are not read. Save it with dense ones.")
        self.values: dict[str, Any] = {}
        self.layers: list[Layer] = []
        self.input_kind = ""

    def classifier(self) -> ImportedModel:
        """The network that the outputs belong to."""
        self._read_input()
        for node in self._needed():
            self._take(node)
        found = None
        for output in self.graph.output:
            name, value = _short(output.name), self._value(output.name, "the graph's outputs")
            if isinstance(value, Unread) or (isinstance(value, Signal) and value.layer and not value.dense):
                continue  # the states of a layer, beside the logits
            if not isinstance(value, Signal) or value.dense is None:
                raise WeightsError(f"its output {name} is not that of a dense layer after LSTM or GRU layers.")
            if found is not None and (found.dense, found.layer, found.steps) != (value.dense, value.layer, value.steps):
                raise WeightsError(f"its output {name} is of another classifier than the outputs before it.")
            self._check_output(name, value)
            found = value
        if found is None:
            raise WeightsError("none of its outputs is that of a dense layer after LSTM or GRU layers.")
        return self._model(found)

    def _read_input(self) -> None:
        inputs = [value for value in self.graph.input if value.name not in self.initializers]
        if len(inputs) != 1:
            names = ", ".join(_short(value.name) for value in inputs[:10]) or "none"
            raise WeightsError(
                f"it has {len(inputs)} inputs ({names}), expected one, the images. Export it with initial states of "
                "zero in the graph."
            )
        tensor = inputs[0].type.tensor_type
        types = self.onnx.TensorProto
        integers = (types.UINT8, types.INT8, types.UINT16, types.INT16, types.INT32, types.INT64)
        floats = (types.FLOAT, types.DOUBLE, types.FLOAT16, types.BFLOAT16)
        if tensor.elem_type not in integers + floats or not tensor.HasField("shape"):
            raise WeightsError(f"its input {_short(inputs[0].name)} is not an array of numbers with a shape.")
        self.input_kind = "integers" if tensor.elem_type in integers else "floats"
        sizes = [size.dim_value if size.dim_value > 0 else None for size in tensor.shape.dim]
        if not 2 <= len(sizes) <= 4:
            raise WeightsError(f"its input {_short(inputs[0].name)} has {len(sizes)} axes, expected images: 2 to 4.")
        axes = tuple(_axis(Atom(f"axis {number} of the input", 1, size)) for number, size in enumerate(sizes))
        self.input_axes = axes
        self.values[inputs[0].name] = Signal(axes, integer=self.input_kind == "integers")

    def _needed(self) -> list[Any]:
        """The nodes from which the outputs are computed, in the order of the file."""
        maker = {name: number for number, node in enumerate(self.graph.node) for name in node.output if name}
        waiting, needed = [output.name for output in self.graph.output], set()
        while waiting:
            number = maker.get(waiting.pop())
            if number is not None and number not in needed:
                needed.add(number)
                waiting += self.graph.node[number].input
        return [self.graph.node[number] for number in sorted(needed)]

    def _value(self, name: str, where: str) -> Any:
        if name not in self.values:
            if name not in self.initializers:
                raise WeightsError(f"{where} use {_short(name)}, which nothing before computes.")
            self.values[name] = self._constant(self.initializers[name])
        return self.values[name]

    def _constant(self, tensor: Any) -> np.ndarray:
        try:
            array = self.onnx.numpy_helper.to_array(tensor)
        except Exception as error:
            raise WeightsError(f"its constant {_short(tensor.name)} is damaged: {_first_line(error)}.") from error
        if array.dtype.kind not in "fiub" and "float" not in str(array.dtype):
            raise WeightsError(f"its constant {_short(tensor.name)} holds {array.dtype}, expected numbers.")
        return array

    def _take(self, node: Any) -> None:
        """Computes the outputs of a node."""
        operator = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        place = f"the operator {_short(operator)}" + (f" (node {_short(node.name)})" if node.name else "")
        operation = OPERATORS.get(operator)
        if operation is None:
            raise WeightsError(
                f"it has {place}, which this classifier does not have: LSTM or GRU layers over the rows of an image, "
                "then one dense layer."
            )
        attributes = {item.name: self.onnx.helper.get_attribute_value(item) for item in node.attribute}
        if unknown := sorted(_short(name) for name in attributes.keys() - set(operation.attributes)):
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
            raise WeightsError(f"{place} cannot be understood: {_first_line(error)}.") from error
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for name, value in zip(node.output, outputs, strict=False):
            if name:
                self.values[name] = value
        for number, name in enumerate(node.output[len(outputs) :], len(outputs) + 1):
            self.values[name] = Unread(f"output {number} of {place}")

    def bounded(self, size: int, itemsize: int = 8) -> None:
        """Refuses constants that are much larger than the file."""
        if size * itemsize > self.most:
            raise WeightsError(f"makes a constant of {size} numbers, more than the file can need.")

    def _check_output(self, name: str, logits: Signal) -> None:
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
        classes = _axis(Atom("classes", 1, logits.dense.kernel.shape[1])) if logits.dense else ()
        if filled != [axis for axis in (layer.batch, () if logits.end == "ArgMax" else classes) if axis]:
            raise WeightsError(f"its output {name} has other axes than examples and classes.")

    def _model(self, logits: Signal) -> ImportedModel:
        """The network from its logits, with the scaling of the images in the weights of the first layer."""
        assert logits.dense is not None
        layers: list[Layer] = []
        below: Signal = logits
        while below.layer is not None:
            layers.insert(0, below.layer)
            below = below.layer.below
        kinds, directions = {layer.kind for layer in layers}, {len(layer.cells) for layer in layers}
        if len(kinds) > 1 or len(directions) > 1:
            what = "LSTM and GRU layers" if len(kinds) > 1 else "layers in one and in both directions"
            raise WeightsError(f"it has {what}, which this classifier does not have together.")
        task, steps = self._task(layers[0])
        config = ModelConfig(
            task=task,  # type: ignore[arg-type]
            cell=layers[0].kind.lower(),  # type: ignore[arg-type]
            hidden_features=tuple(layer.hidden for layer in layers),
            bidirectional=len(layers[0].cells) == 2,
            pooling="last" if logits.steps == "final" else logits.steps,  # type: ignore[arg-type]
        )
        cells, note = self._fold_scale(layers[0], below)
        trees = [cells, *(layer.cells for layer in layers[1:])]
        bias = logits.dense.bias
        notes = [note]
        if bias is None:
            bias = np.zeros(logits.dense.kernel.shape[1])
            notes.append(f"{logits.dense.name} has no bias: zeros were taken")
        params = {
            "rnn": {"layers": {number: _as_module(tree) for number, tree in enumerate(trees)}},
            "dense": {"kernel": _float32(logits.dense.kernel), "bias": _float32(bias)},
        }
        names = tuple(layer.name for layer in layers)
        return ImportedModel(config, params, (*names, logits.dense.name), tuple(notes), steps).checked()

    def _task(self, first: Layer) -> tuple[str, int | None]:
        """How the images are read, and the number of time steps, if the file has it."""
        features = first.below.axes[-1]
        image = _axis(*(atom for axis in self.input_axes for atom in axis if axis != first.batch or not axis))
        if _axis(*first.time, *features) == image:
            return "rows", _size(first.time)
        if len(first.time) == len(features) == 1 and _axis(*features, *first.time) == image:
            return "columns", _size(first.time)
        raise WeightsError(
            f"its first layer, {first.name}, reads the images neither row by row nor column by column: its steps and "
            "features are not the axes of the input in this order."
        )

    def _fold_scale(self, first: Layer, images: Signal) -> tuple[tuple[dict[str, Any], ...], str]:
        """The cells of the first layer for pixels of 0 to 1, and what was assumed."""
        raw = self.input_kind == "integers" or abs(images.scale) < RAW
        if not raw and abs(images.scale) < UNIT:
            raise WeightsError(
                f"it multiplies its input by {images.scale:.3g}, so that it is not clear whether the pixels are 0 to 1 "
                "or 0 to 255."
            )
        factor = images.scale * (255 if raw else 1)
        known = "" if self.input_kind == "integers" else ", as the graph divides them" if raw else ", as is usual"
        note = f"the input is taken to be {self.input_kind} of 0 to {255 if raw else 1}{known}"
        if images.shift == 0 and math.isclose(factor, 1, rel_tol=1e-6):
            return first.cells, note
        return tuple(_scaled(cell, factor, images.shift) for cell in first.cells), (
            f"{note}; x * {images.scale:.6g} + {images.shift:.6g} at the graph's beginning is in the weights now"
        )


def _scaled(cell: dict[str, Any], factor: float, shift: float) -> dict[str, Any]:
    """A cell that takes x as the given one takes factor * x + shift; computed in float64."""
    kernel = cell["dense_i"]["kernel"].astype(np.float64)
    holder = "dense_i" if "bias" in cell["dense_i"] else "dense_h"
    bias = cell[holder]["bias"] + shift * kernel.sum(axis=0)
    folded = {name: dict(part) for name, part in cell.items()}
    folded["dense_i"]["kernel"], folded[holder]["bias"] = _float32(kernel * factor), _float32(bias)
    return folded


def _as_module(cells: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    if len(cells) == 1:
        return {"cell": cells[0]}
    return {"forward_rnn": {"cell": cells[0]}, "backward_rnn": {"cell": cells[1]}}


def _float32(array: Any) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(np.asarray(array), np.float32)


class Operation(NamedTuple):
    """How a node is read: from the reader, its attributes, its inputs and the node."""

    read: Callable[[_Reader, dict[str, Any], list[Any], Any], Any]
    attributes: tuple[str, ...]


OPERATORS: dict[str, Operation] = {}
AFTER_LOGITS = ("Identity", "Cast", "ArgMax")


def _operator(names: str, attributes: str = "") -> Callable[[Any], Any]:
    def register(read: Any) -> Any:
        OPERATORS.update((name, Operation(read, tuple(attributes.split()))) for name in names.split())
        return read

    return register


def _integers(value: Any) -> list[int]:
    """A constant, or an attribute, as a list of integers."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise ValueError("axes and indices have to be integers that are in the file")
    return [int(item) for item in array.reshape(-1)]


def _own_axes(attributes: dict[str, Any], inputs: list[Any], rank: int, place: int = 1) -> list[int] | None:
    """The axes of an operator, of its attribute or of its second input, from 0; None where it has none."""
    axes = attributes.get("axes")
    if axes is None and len(inputs) > place:
        axes = inputs[place]
    return None if axes is None else [_from_start(axis, rank) for axis in _integers(axes)]


def _from_start(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} of {rank}")
    return axis % rank


@_operator("Identity")
def _identity(reader: _Reader, attributes: Any, inputs: list[Any], node: Any) -> Any:
    return inputs[0]


@_operator("Dropout", "ratio seed")
def _dropout(reader: _Reader, attributes: Any, inputs: list[Any], node: Any) -> Any:
    training = inputs[2] if len(inputs) > 2 else None
    if training is not None and np.any(training):
        raise WeightsError("is in training mode. Export the network for inference: model.eval().")
    return inputs[0]


@_operator("Cast CastLike", "to saturate round_mode")
def _cast(reader: _Reader, attributes: Any, inputs: list[Any], node: Any) -> Any:
    value = inputs[0]
    types = reader.onnx.TensorProto
    if node.op_type == "CastLike":
        if not isinstance(value, Signal) or not isinstance(inputs[1], np.ndarray) or inputs[1].dtype.kind != "f":
            raise WeightsError("casts to another type than floats.")
        return replace(value, integer=False)
    to = attributes["to"]
    floats = (types.FLOAT, types.DOUBLE, types.FLOAT16, types.BFLOAT16)
    if isinstance(value, Signal):
        if to not in floats and not value.end:
            raise WeightsError("rounds to another type than floats, which this classifier does not.")
        return replace(value, integer=False)
    if isinstance(value, Fill) or value.dtype == object:
        return value
    return value.astype(reader.onnx.helper.tensor_dtype_to_np_dtype(to))


@_operator("Constant", "value value_float value_floats value_int value_ints")
def _constant(reader: _Reader, attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    ((name, value),) = attributes.items()
    if name == "value":
        return reader._constant(value)
    return np.array(value, np.float32 if "float" in name else np.int64)


@_operator("ConstantOfShape", "value")
def _constant_of_shape(reader: _Reader, attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    value = reader._constant(attributes["value"]) if "value" in attributes else np.zeros(1)
    return Fill(value.item())


@_operator("Shape", "start end")
def _shape_of(reader: _Reader, attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    value = inputs[0]
    sizes = _shape(value) if isinstance(value, Signal) else np.array(value.shape, np.int64)
    return _settle_shape(sizes[attributes.get("start", 0) : attributes.get("end")])


@_operator("Expand Tile")
def _expand(reader: _Reader, attributes: Any, inputs: list[Any], node: Any) -> Any:
    value = inputs[0]
    if isinstance(value, np.ndarray) and value.dtype != object and value.size and (value == value.flat[0]).all():
        return Fill(value.flat[0].item())
    if isinstance(value, Fill):
        return value
    raise WeightsError("repeats an array, which this classifier does not.")


@_operator("Transpose", "perm")
def _transpose(reader: _Reader, attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    value = inputs[0]
    if isinstance(value, Fill):
        return value
    rank = len(value.axes) if isinstance(value, Signal) else value.ndim
    order = attributes.get("perm", range(rank)[::-1])
    if sorted(order) != list(range(rank)):
        raise ValueError(f"it reorders {rank} axes by {list(order)}")
    if isinstance(value, Signal):
        return replace(value, axes=tuple(value.axes[axis] for axis in order))
    return value.transpose(order)


@_operator("Squeeze Unsqueeze", "axes")
def _squeeze(reader: _Reader, attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    value = inputs[0]
    if isinstance(value, Fill):
        return value
    rank = len(value.axes) if isinstance(value, Signal) else value.ndim
    if node.op_type == "Unsqueeze":
        added = _integers(attributes["axes"] if "axes" in attributes else inputs[1])
        rank += len(added)
        if rank > 16:
            raise ValueError(f"{rank} axes")
        where = sorted({_from_start(axis, rank) for axis in added})
        if isinstance(value, np.ndarray):
            return np.expand_dims(value, tuple(where))
        axes = list(value.axes)
        for axis in where:
            axes.insert(axis, ())
        return replace(value, axes=tuple(axes))
    dropped = _own_axes(attributes, inputs, rank)
    if isinstance(value, np.ndarray):
        return np.squeeze(value, None if dropped is None else tuple(dropped))
    if dropped is None:  # an open size is that of more than one image
        dropped = [axis for axis in range(rank) if not value.axes[axis]]
    if any(value.axes[axis] for axis in dropped):
        raise ValueError("an axis that it removes has more than one entry, or an open size")
    return replace(value, axes=tuple(axis for number, axis in enumerate(value.axes) if number not in dropped))


@_operator("Reshape Flatten", "allowzero axis")
def _reshape(reader: _Reader, attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    value = inputs[0]
    if isinstance(value, Fill):
        return value
    if not isinstance(value, Signal):
        if node.op_type == "Flatten":
            raise WeightsError("flattens a constant.")
        return value.reshape([value.shape[n] if size == 0 else size for n, size in enumerate(_integers(inputs[1]))])
    if node.op_type == "Flatten":
        rank = len(value.axes)
        cut = attributes.get("axis", 1)
        cut = cut if cut == rank else _from_start(cut, rank)
        parts = value.axes[:cut], value.axes[cut:]
        return replace(value, axes=tuple(_axis(*(atom for axis in part for atom in axis)) for part in parts))
    target = inputs[1]
    if not isinstance(target, np.ndarray) or target.ndim != 1 or len(target) > 16:
        raise ValueError("its shape is not a list of sizes in the file")
    sizes: list[Any] = [size if isinstance(size, Unknown) else int(size) for size in target]
    if not attributes.get("allowzero"):
        sizes = [value.axes[number] if size == 0 else size for number, size in enumerate(sizes)]
    return replace(value, axes=_reshaped(value.axes, sizes))


def _reshaped(axes: Iterable[Axis], sizes: list[Any]) -> tuple[Axis, ...]:
    """The axes after a reshape to these sizes: integers, -1, `Unknown`, or an axis that is kept."""
    atoms = [atom for axis in axes for atom in axis]
    open_places = [number for number, size in enumerate(sizes) if isinstance(size, int) and size == -1]
    if len(open_places) > 1:
        raise ValueError("it leaves several sizes open")
    cut = open_places[0] if open_places else len(sizes)
    front = [_taken(atoms, size, 0) for size in sizes[:cut]]
    back = [_taken(atoms, size, -1) for size in sizes[cut + 1 :][::-1]][::-1]
    if open_places:
        return (*front, _axis(*atoms), *back)
    if atoms:
        raise ValueError(f"it reshapes to {[str(size) for size in sizes]}, which does not fit its input")
    return tuple(front)


def _taken(atoms: list[Atom], size: Any, end: int) -> Axis:
    """Takes atoms of this size off the front (end 0) or the back (end -1)."""
    taken: list[Atom] = []
    wanted = {Unknown: 1, tuple: 1}.get(type(size), size)
    if isinstance(size, Unknown):
        if not atoms or atoms[end] != Atom(size.axis, 1, None):
            raise ValueError("it moves an open size")
        return (atoms.pop(end),)
    if isinstance(size, tuple):
        for atom in size if end == 0 else size[::-1]:
            if not atoms or atoms[end] != atom:
                raise ValueError("it keeps the size of an axis in another place")
            taken.append(atoms.pop(end))
        return size
    if wanted < 1:
        raise ValueError(f"it makes an axis of size {wanted}")
    while wanted > 1:
        if not atoms or atoms[end].size is None:
            raise ValueError("it joins or splits an open size")
        axis, stride, available = atoms.pop(end)
        assert available is not None
        if wanted % available == 0:
            taken.append(Atom(axis, stride, available))
            wanted //= available
        elif available % wanted == 0:
            rest = available // wanted
            outer, inner = Atom(axis, stride * rest, wanted), Atom(axis, stride, rest)
            if end:
                outer, inner = Atom(axis, stride * wanted, rest), Atom(axis, stride, wanted)
            taken.append(inner if end else outer)
            atoms.insert(len(atoms) if end else 0, outer if end else inner)
            wanted = 1
        else:
            raise ValueError("its sizes do not divide each other")
    return _axis(*(taken[::-1] if end else taken))


def _selected(signal: Signal, axis: int, index: int) -> Signal:
    """One entry along an axis, which remains with size 1."""
    atoms, layer = signal.axes[axis], signal.layer
    size = _size(atoms)
    if size is not None:
        if not -size <= index < size:
            raise ValueError(f"there is no entry {index} of {size}")
        index %= size
    kept = replace(signal, axes=(*signal.axes[:axis], (), *signal.axes[axis + 1 :]))
    if not atoms:
        return signal
    if layer is not None and atoms == layer.time and signal.steps == "all":
        last = index == -1 if size is None else index == size - 1
        if not last and index != 0:
            raise WeightsError(f"uses the output of time step {index}, not of the last one.")
        return _settled(replace(kept, steps="last" if last else "first"))
    if layer is not None and atoms == layer.directions and signal.dense is None:
        return _settled(replace(kept, direction=index))
    raise WeightsError("selects a part of the images, of the examples or of the features.")


def _settled(signal: Signal) -> Signal:
    """With "final" where a step is the last that its direction reads."""
    layer = signal.layer
    assert layer is not None
    direction = 0 if len(layer.cells) == 1 else signal.direction
    return replace(signal, steps="final") if (direction, signal.steps) in ((0, "last"), (1, "first")) else signal


@_operator("Gather", "axis")
def _gather(reader: _Reader, attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    value, indices = inputs
    if isinstance(value, Fill):
        return value
    axis = attributes.get("axis", 0)
    if isinstance(value, np.ndarray):
        indices = np.asarray(indices)
        if indices.dtype.kind not in "iu":
            raise ValueError("its indices are not integers in the file")
        axis = _from_start(axis, value.ndim)
        reader.bounded(indices.size * value.size // max(1, value.shape[axis]), value.itemsize)
        taken = np.take(value, indices, axis)
        if value.dtype == object and not isinstance(taken, np.ndarray):
            taken = _objects([taken]).reshape(())
        return _settle_shape(np.asarray(taken))
    (index,), scalar = _integers(indices), np.ndim(indices) == 0
    if isinstance(value, Pieces):
        if _from_start(axis, len(value.parts[0].axes)) != value.axis:
            raise WeightsError("selects from several layers at once.")
        chosen, axis = value.parts[index], value.axis
    else:
        axis = _from_start(axis, len(value.axes))
        chosen = _selected(value, axis, index)
    return replace(chosen, axes=chosen.axes[:axis] + chosen.axes[axis + 1 :]) if scalar else chosen


@_operator("Slice", "starts ends axes")
def _slice(reader: _Reader, attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    value = inputs[0]
    if isinstance(value, Fill):
        return value
    inputs = inputs + [None] * (5 - len(inputs))
    starts, ends = (_integers(attributes.get(n, inputs[p])) for n, p in (("starts", 1), ("ends", 2)))
    axes = attributes.get("axes", inputs[3])
    axes = list(range(len(starts))) if axes is None else _integers(axes)
    steps = [1] * len(starts) if inputs[4] is None else _integers(inputs[4])
    first = value.parts[0] if isinstance(value, Pieces) else value
    rank = value.ndim if isinstance(value, np.ndarray) else len(first.axes)
    for start, stop, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = _from_start(axis, rank)
        if isinstance(value, np.ndarray):
            places: list[Any] = [slice(None)] * rank
            places[axis] = slice(start, None if step < 0 and stop < -value.shape[axis] else stop, step)
            value = _settle_shape(value[tuple(places)])
        elif step != 1:
            raise WeightsError("reads the steps in another order, or not all of them.")
        elif isinstance(value, Pieces):
            if axis != value.axis:
                raise WeightsError("cuts several layers at once.")
            value = _pieces(axis, value.parts[start:stop])
        else:
            value = _cut(value, axis, start, stop)
    return value


def _cut(signal: Signal, axis: int, start: int, stop: int) -> Signal:
    """The signal where all of an axis is kept, or one entry."""
    size = _size(signal.axes[axis])
    if size is None:
        if start == 0 and stop >= 2**31 - 1:
            return signal
        if (start == -1 and stop >= 2**31 - 1) or (start, stop) == (0, 1):
            return _selected(signal, axis, start)
    else:
        first, last, _ = slice(start, stop).indices(size)
        if (first, last) == (0, size):
            return signal
        if last == first + 1:
            return _selected(signal, axis, first)
    raise WeightsError("uses a part of the images, of the time steps or of the features.")


@_operator("Concat", "axis")
def _concat(reader: _Reader, attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    if all(isinstance(value, np.ndarray) for value in inputs):
        reader.bounded(sum(value.size for value in inputs), inputs[0].itemsize)
        return _settle_shape(np.concatenate(inputs, attributes["axis"]))
    if all(isinstance(value, Fill) for value in inputs) and len({value.value for value in inputs}) == 1:
        return inputs[0]
    signals = [part for value in inputs for part in (value.parts if isinstance(value, Pieces) else [value])]
    if not all(isinstance(signal, Signal) and signal.layer for signal in signals):
        raise WeightsError("joins the images, or constants, with something else.")
    axis = _from_start(attributes["axis"], len(signals[0].axes))
    joined = _both_directions(signals, axis)
    if joined is not None:
        return joined
    entries: list[Signal] = []
    for signal in signals:
        size = _size(signal.axes[axis])
        if len(entries) + (size or 0) > 1000:
            raise ValueError("it joins more than 1000 entries")
        entries += [signal] if size == 1 else [_selected(signal, axis, index) for index in range(size or 0)]
        if not size:
            raise WeightsError("joins time steps or examples.")
    return _pieces(axis, tuple(entries))


def _both_directions(signals: list[Signal], axis: int) -> Signal | None:
    """The features of both directions beside each other, from one signal for each."""
    if len(signals) != 2 or signals[0].layer is not signals[1].layer:
        return None
    forward, backward = signals
    layer = forward.layer
    assert layer is not None
    if forward.axes[axis] != layer.units or (not layer.units and axis != len(forward.axes) - 1):
        return None
    if (forward.direction, backward.direction) == (1, 0):
        raise WeightsError("puts the backward direction first; this classifier has the forward one first.")
    if (forward.direction, backward.direction) != (0, 1):
        return None
    if forward.steps != backward.steps or forward.axes != backward.axes or forward.dense or backward.dense:
        raise WeightsError("joins two directions at different time steps.")
    axes = (*forward.axes[:axis], layer.features, *forward.axes[axis + 1 :])
    return replace(forward, direction=None, axes=axes)


def _pieces(axis: int, parts: tuple[Signal, ...]) -> Any:
    """One signal again where the parts are one, or the directions of one layer; otherwise `Pieces`."""
    if len(parts) == 1:
        return parts[0]
    if not parts or any(len(part.axes) != len(parts[0].axes) for part in parts):
        raise ValueError("its parts do not fit together")
    if [part.direction for part in parts] == [0, 1] and parts[0].layer is parts[1].layer:
        forward, backward = parts
        if forward.steps == backward.steps and forward.layer is not None and not (forward.dense or backward.dense):
            axes = (*forward.axes[:axis], forward.layer.directions, *forward.axes[axis + 1 :])
            return replace(forward, direction=None, axes=axes)
    return Pieces(axis, parts)


@_operator("Add Sub Mul Div")
def _arithmetic(reader: _Reader, attributes: Any, inputs: list[Any], node: Any) -> Any:
    left, right = inputs
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        reader.bounded(math.prod(np.broadcast_shapes(left.shape, right.shape)), left.itemsize)
        return _on_constants(node.op_type, left, right)
    if not isinstance(left, Signal) and not isinstance(right, Signal):
        raise WeightsError("computes with shapes that the file leaves open.")
    signal, constant = (left, right) if isinstance(left, Signal) else (right, left)
    if not (_is_numbers(constant) or isinstance(constant, Fill)):
        raise WeightsError("combines two outputs of the network, which this classifier does not.")
    if signal.layer is None:
        return _rescaled(signal, constant, node.op_type, swapped=signal is right)
    if node.op_type == "Add" and signal.dense is not None and isinstance(constant, np.ndarray):
        return _with_bias(signal, constant)
    raise WeightsError("computes with the outputs of a layer, which this classifier does not.")


def _on_constants(kind: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if kind == "Div" and left.dtype.kind in "iu":
        if (left < 0).any() or (right <= 0).any():  # ONNX rounds to zero, NumPy down
            raise ValueError("a division of integers that are not positive")
        return left // right
    operation = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[kind]
    with np.errstate(all="ignore"):
        return _settle_shape(operation(left, right))


def _rescaled(images: Signal, constant: np.ndarray | Fill, kind: str, *, swapped: bool) -> Signal:
    """The images times or plus one number."""
    if images.integer:
        raise WeightsError("computes with integers, which overflow or are rounded. Cast the images to floats first.")
    if isinstance(constant, np.ndarray):
        sizes = [1] * len(images.axes) + [_size(axis) for axis in images.axes]
        fits = all(size in (1, own) for size, own in zip(constant.shape[::-1], sizes[::-1], strict=False))
        uniform = constant.size > 0 and bool((constant == constant.flat[0]).all())
        if not uniform or constant.ndim > len(images.axes) or not fits:
            raise WeightsError("changes each pixel by a number of its own, which is not read; one number for all is.")
        number = float(constant.flat[0])
    else:
        raise WeightsError("changes the images by an array of open size.")
    if not math.isfinite(number) or (kind == "Div" and (number == 0 or swapped)):
        raise WeightsError("divides by zero or by the images, or by a number that is not finite.")
    scale, shift = images.scale, images.shift
    match kind:
        case "Add":
            shift += number
        case "Sub":
            scale, shift = (-scale, number - shift) if swapped else (scale, shift - number)
        case "Mul":
            scale, shift = scale * number, shift * number
        case "Div":
            scale, shift = scale / number, shift / number
    return replace(images, scale=scale, shift=shift)


def _is_numbers(value: Any) -> bool:
    """Whether it is a constant, and no shape with open sizes."""
    return isinstance(value, np.ndarray) and value.dtype != object


def _with_bias(logits: Signal, bias: np.ndarray) -> Signal:
    dense = logits.dense
    assert dense is not None
    classes = dense.kernel.shape[1]
    if bias.size not in (1, classes) or bias.ndim > len(logits.axes) or bias.shape[-1:] not in ((), (bias.size,)):
        raise ValueError(f"it adds an array {list(bias.shape)} to {classes} classes")
    if logits.axes[-1] != _axis(Atom("classes", 1, classes)):
        raise WeightsError("adds to something else than the classes.")
    whole = np.broadcast_to(bias.reshape(-1), (classes,))
    return replace(logits, dense=replace(dense, bias=whole if dense.bias is None else dense.bias + whole))


@_operator("MatMul")
def _matmul(reader: _Reader, attributes: Any, inputs: list[Any], node: Any) -> Any:
    features, kernel = inputs
    return _dense(features, kernel, node)


@_operator("Gemm", "alpha beta transA transB")
def _gemm(reader: _Reader, attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    features, kernel, bias = [*inputs, None][:3]
    if attributes.get("transA", 0):
        raise WeightsError("transposes its first factor (transA), which this classifier does not.")
    if isinstance(kernel, np.ndarray) and attributes.get("transB", 0):
        kernel = kernel.T
    if isinstance(kernel, np.ndarray) and (alpha := attributes.get("alpha", 1.0)) != 1:
        kernel = kernel * np.float64(alpha)
    if isinstance(features, Signal) and len(features.axes) != 2:
        raise ValueError("its first factor is not a matrix")
    result = _dense(features, kernel, node)
    beta = attributes.get("beta", 1.0)
    if bias is None or beta == 0:
        return result
    if not _is_numbers(bias):
        raise WeightsError("adds something that the network computes, which this classifier does not.")
    return _with_bias(result, bias if beta == 1 else bias * np.float64(beta))


def _dense(features: Any, kernel: Any, node: Any) -> Signal:
    if not isinstance(features, Signal) or not _is_numbers(kernel):
        raise WeightsError("multiplies something else than outputs of a layer and a matrix that is in the file.")
    layer = features.layer
    if layer is None:
        raise WeightsError("stands before the LSTM or GRU layers, where this classifier has no dense layer.")
    if features.dense is not None:
        raise WeightsError("is a second dense layer; this classifier has one.")
    if features.direction is not None:
        raise WeightsError("uses one direction of a bidirectional layer; this classifier uses both.")
    if features.axes[-1] != layer.features:
        raise WeightsError(
            "has other inputs than the features of one step, the forward direction's before the backward one's."
        )
    width = layer.hidden * len(layer.cells)
    if kernel.ndim != 2 or len(kernel) != width or not kernel.shape[1]:
        raise ValueError(f"its matrix is {list(kernel.shape)}, and the layer before gives {width} features")
    classes = _axis(Atom("classes", 1, kernel.shape[1]))
    done = Dense(kernel, None, _short(node.name or node.op_type))
    return replace(features, axes=(*features.axes[:-1], classes), dense=done)


@_operator("Softmax LogSoftmax ArgMax", "axis keepdims select_last_index")
def _softmax(reader: _Reader, attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    (logits,) = inputs
    if not isinstance(logits, Signal) or logits.dense is None:
        raise WeightsError("does not stand after the dense layer, as in this classifier.")
    if logits.steps in ("all", "last", "first"):
        reader._check_output(_short(node.output[0]), logits)
    rank = len(logits.axes)
    last = rank - 1
    if node.op_type == "ArgMax":
        axis = _from_start(attributes.get("axis", 0), rank)
    else:
        axis = _from_start(attributes.get("axis", -1 if reader.opset >= 13 else 1), rank)
        if reader.opset < 13 and axis < last and not any(logits.axes[axis:last]):
            axis = last  # it works on all axes from this one
    if axis != last or logits.axes[last] != _axis(Atom("classes", 1, logits.dense.kernel.shape[1])):
        raise WeightsError("works along another axis than the classes.")
    if node.op_type != "ArgMax":
        return replace(logits, end=node.op_type)
    axes = logits.axes[:-1] + (((),) if attributes.get("keepdims", 1) else ())
    return replace(logits, axes=axes, end="ArgMax")


@_operator("ReduceMean ReduceMax", "axes keepdims noop_with_empty_axes")
def _pool(reader: _Reader, attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    signal = inputs[0]
    layer = signal.layer if isinstance(signal, Signal) else None
    if layer is None:
        raise WeightsError("pools something else than the outputs of a layer.")
    axes = _own_axes(attributes, inputs, len(signal.axes))
    if not axes or len(axes) != 1 or not layer.time or signal.axes[axes[0]] != layer.time or signal.steps != "all":
        raise WeightsError("pools along another axis than time.")
    kind = "mean" if node.op_type == "ReduceMean" else "max"
    if kind == "max" and signal.dense is not None:
        raise WeightsError("takes the maximum after the dense layer; this classifier takes it before.")
    (axis,) = axes
    kept = ((),) if attributes.get("keepdims", 1) else ()
    return replace(signal, steps=kind, axes=signal.axes[:axis] + kept + signal.axes[axis + 1 :])


@_operator(
    "LSTM GRU",
    "activation_alpha activation_beta activations clip direction hidden_size input_forget layout linear_before_reset",
)
def _recurrent(reader: _Reader, attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    kind = node.op_type
    inputs = inputs + [None] * (8 - len(inputs))
    sequence, kernel, recurrent_kernel, bias, lengths, *states, peepholes = inputs
    directions = _check_options(kind, attributes)
    if lengths is not None:
        raise WeightsError("has sequence_lens, lengths of the sequences; here all images are read to the end.")
    if peepholes is not None and kind == "LSTM":
        raise WeightsError("has peepholes (P), which this classifier does not.")
    for state in states if kind == "LSTM" else states[:1]:
        if state is not None and not _is_zero(state):
            raise WeightsError("does not start from states of zero (initial_h, initial_c), as this classifier does.")
    if not isinstance(sequence, Signal) or len(sequence.axes) != 3:
        raise ValueError("its input is not a sequence")
    given = [kernel, recurrent_kernel] + [bias] * (bias is not None)
    if not all(map(_is_numbers, given)):
        raise ValueError("its weights are not in the file")
    order = (1, 0) if attributes.get("layout", 0) else (0, 1)
    time, batch = (sequence.axes[axis] for axis in order)
    layer = Layer(
        kind=kind,
        name=_short(node.name or node.output[0] or node.output[1]),
        below=sequence if order == (0, 1) else replace(sequence, axes=(time, batch, sequence.axes[2])),
        cells=_cells(kind, directions, kernel, recurrent_kernel, bias, attributes),
        hidden=recurrent_kernel.shape[-1],
        time=time,
        batch=batch,
        number=len(reader.layers),
    )
    _check_inputs(layer, sequence.axes[2], kernel.shape[2])
    if attributes.get("hidden_size", layer.hidden) != layer.hidden:
        raise ValueError(f"its hidden_size is {attributes['hidden_size']}, and its weights are of {layer.hidden}")
    reader.layers.append(layer)
    outputs = (time, layer.directions, batch, layer.units)
    final = (layer.directions, batch, layer.units)
    if attributes.get("layout", 0):
        outputs, final = (batch, time, layer.directions, layer.units), (batch, layer.directions, layer.units)
    whole = Signal(outputs, layer)
    if not time:  # one step
        whole = replace(whole, steps="final")
    return whole, Signal(final, layer, steps="final"), *[Unread("the cell state of an LSTM")] * (kind == "LSTM")


def _check_options(kind: str, attributes: dict[str, Any]) -> int:
    """The number of directions. Refuses cells of another kind."""

    def text(value: Any) -> str:
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    direction = text(attributes.get("direction", "forward"))
    if direction not in ("forward", "bidirectional"):
        raise WeightsError(f"has the direction {direction}; this classifier reads forward, or in both directions.")
    count = 2 if direction == "bidirectional" else 1
    activations = [text(name).lower() for name in attributes.get("activations", ACTIVATIONS[kind] * count)]
    parameters = [*attributes.get("activation_alpha", ()), *attributes.get("activation_beta", ())]
    if activations != ACTIVATIONS[kind] * count or parameters:
        raise WeightsError(
            f"has the activations {', '.join(activations)}, expected {', '.join(ACTIVATIONS[kind])} in each direction."
        )
    if attributes.get("clip") is not None:
        raise WeightsError(f"clips its gates at {attributes['clip']:g}, which this classifier does not.")
    if attributes.get("input_forget", 0):
        raise WeightsError("couples input and forget gates (input_forget), which this classifier does not.")
    return count


def _is_zero(state: Any) -> bool:
    return state.value == 0 if isinstance(state, Fill) else isinstance(state, np.ndarray) and not state.any()


def _check_inputs(layer: Layer, features: Axis, width: int) -> None:
    below, time, batch = layer.below, layer.time, layer.batch
    if _size(features) != width:
        raise ValueError(f"it takes {width} features, and its input has {_size(features)}")
    if below.layer is not None:
        before = below.layer
        if below.steps not in ("all",) or (below.dense is not None) or below.direction is not None:
            raise WeightsError("does not read the outputs of the layer before at all steps.")
        if (time, batch, features) != (before.time, before.batch, before.features):
            raise WeightsError("reads the outputs of the layer before in another order.")
        return
    if below.integer:
        raise ValueError("its input is of integers")
    if len(batch) > 1 or any(atom.stride != 1 for atom in batch):
        raise WeightsError("has examples that are not an axis of the input.")
    if _size(time) is None and batch and _size(batch) is not None:
        raise WeightsError(
            f"takes its steps along an axis of open size, and {_size(batch)} examples along another: has it been given "
            "the images with the batch first, which needs batch_first=True, or layout=1?"
        )


def _cells(
    kind: str, directions: int, kernel: np.ndarray, recurrent: np.ndarray, bias: Any, attributes: dict[str, Any]
) -> tuple[dict[str, Any], ...]:
    """The parameters of the cells, with the names of `flax.nnx`."""
    gates = 4 if kind == "LSTM" else 3
    hidden = recurrent.shape[-1] if recurrent.ndim == 3 else 0
    shapes = [kernel.shape[:2], recurrent.shape] + ([] if bias is None else [bias.shape])
    expected = [(directions, gates * hidden), (directions, gates * hidden, hidden), (directions, 2 * gates * hidden)]
    if kernel.ndim != 3 or not hidden or shapes != expected[: len(shapes)]:
        found = ", ".join(str(list(array.shape)) for array in (kernel, recurrent, bias) if array is not None)
        raise ValueError(f"its weights W, R and B do not fit together: {found}")
    own, new = (ONNX_GATES, GATES) if kind == "LSTM" else (ONNX_GRU_GATES, GRU_GATES)
    cells = []
    for number in range(directions):
        columns, recurrent_columns = (
            _float32(reorder_gates(array[number].T, own, new)) for array in (kernel, recurrent)
        )
        both = np.zeros((2, gates * hidden), np.float32) if bias is None else bias[number].reshape(2, -1)
        inner = both[1]
        if kind == "GRU":
            if not attributes.get("linear_before_reset", 0):
                raise WeightsError(
                    "has linear_before_reset=0: its reset gate multiplies the state before the product, and that of "
                    "this classifier multiplies the product."
                )
            if inner[2 * hidden :].any():
                raise WeightsError(
                    "has a recurrent bias of the candidate (the last third of Rb), which flax.nnx.GRUCell, the GRU of "
                    "this classifier, does not have. rnn.GRU has it: see rnn.load_torch."
                )
        # The sum only where it is needed, so that the bits of a bias stay.
        total = _float32(reorder_gates(both[0] + inner if inner.any() else both[0], own, new))
        cell: dict[str, Any] = {"dense_i": {"kernel": columns}, "dense_h": {"kernel": recurrent_columns}}
        cell["dense_h" if kind == "LSTM" else "dense_i"]["bias"] = total
        cells.append(cell)
    return tuple(cells)
