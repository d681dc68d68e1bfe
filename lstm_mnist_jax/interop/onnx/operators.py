"""What the operators of an ONNX graph that do more than to move entries make of the images and of layers.

Each function takes the trace, the node's attributes, the values of its inputs, and the node. It returns its outputs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.export import ONNX_ACTIVATIONS, ONNX_GATES
from lstm_mnist_jax.interop.weights import GATES, Layer, direction
from lstm_mnist_jax.rnn.weights import reorder_gates

if TYPE_CHECKING:
    from lstm_mnist_jax.interop.onnx.trace import Trace

ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}

DEFAULTS = {"hardsigmoid": (0.2, 0.5), "affine": (1.0, 0.0)}
"""ONNX's activations that have alpha and beta."""

HARD_SIGMOIDS = "hard_sigmoid_keras2", "hard_sigmoid_keras3"
GATE_FUNCTIONS, CELL_FUNCTIONS = ("sigmoid", *HARD_SIGMOIDS), ("tanh", "relu", "linear", *HARD_SIGMOIDS)


OUTPUTS = ("dense", "bias")


@dataclass(frozen=True, eq=False)
class Source:
    """The entries that a node makes.

    Attributes:
      kind: "images"; "affine" (the images times a number, plus a number); "layer" [time, directions, batch, hidden];
        "mean", "max" or "attention" over time; "dense" (a product with a matrix), "bias" (plus a constant), "relu" or
        "tanh" after it; "weights" (a softmax over time) or "product" (outputs times such weights).
      start: the number of the first entry.
      shape: of the entries.
      place: the operator, for messages.
      below: the numbers of the entries that these are computed from; of pooling over time, those of the first step.
      data: what the operator has of its own, such as a kernel.
    """

    kind: str
    start: int
    shape: tuple[int, ...]
    place: str
    below: np.ndarray
    data: Any = None

    @property
    def entries(self) -> np.ndarray:
        return np.arange(self.start, self.start + math.prod(self.shape)).reshape(self.shape)

    @property
    def by_step(self) -> np.ndarray:
        """Of a layer, [time, batch, features]: the forward direction's features before the backward one's."""
        return np.moveaxis(self.entries, 1, 2).reshape(self.shape[0], self.shape[2], -1)

    def under(self, entries: np.ndarray) -> np.ndarray:
        """Those from which these entries are computed, where it is one for one."""
        return self.below.reshape(-1)[entries - self.start]


@dataclass(frozen=True, eq=False)
class Signal:
    """What the network computes: the numbers of its entries, whether these are integers, the operator after logits."""

    entries: np.ndarray
    integer: bool = False
    end: str = ""


@dataclass(frozen=True)
class Unread:
    """What this classifier does not have, such as the last cell state."""

    what: str


class Place(NamedTuple):
    """A node: its operator, its name, and both as text for messages."""

    kind: str
    name: str
    text: str


Attributes = dict[str, Any]
OPERATORS: dict[str, Callable[["Trace", Attributes, list[Any], Place], Any]] = {}


def operator(names: str) -> Callable[[Any], Any]:
    def register(read: Any) -> Any:
        OPERATORS.update(dict.fromkeys(names.split(), read))
        return read

    return register


class NamedLayer(NamedTuple):
    """A recurrent layer, the name of its node, and its activations of the gates and of the cell, as in a config."""

    weights: Layer
    name: str
    activations: tuple[str, str]


@operator("LSTM GRU")
def _layer(trace: "Trace", attributes: Attributes, inputs: list[Any], place: Place) -> Any:
    """The outputs of an LSTM or GRU operator: of all steps, the final ones, and the cell state."""
    kind = place.kind
    sequence, kernel, recurrent_kernel, bias, lengths, *states, peepholes = inputs + [None] * (8 - len(inputs))
    count, functions = _check_options(kind, attributes)
    if not isinstance(sequence, Signal) or sequence.entries.ndim != 3 or sequence.integer:
        raise ValueError("its input is not a sequence of floats")
    by_batch = bool(attributes.get("layout", 0))
    entries = sequence.entries.swapaxes(0, 1) if by_batch else sequence.entries
    steps, batch, features = entries.shape
    if lengths is not None and not np.array_equal(lengths, np.full(batch, steps)):
        raise WeightsError("has sequence_lens, lengths of the sequences; here all images are read to the end.")
    if peepholes is not None and kind == "LSTM":
        raise WeightsError("has peepholes (P), which this classifier does not.")
    for state in states if kind == "LSTM" else states[:1]:
        if state is not None and (isinstance(state, Signal) or state.any()):
            raise WeightsError("does not start from states of zero (initial_h, initial_c), as this classifier does.")
    weights = _weights(kind, count, kernel, recurrent_kernel, bias, place.name)
    if kind == "GRU" and not attributes.get("linear_before_reset", 0):
        raise WeightsError(
            "has linear_before_reset=0: its reset gate multiplies the state before the product, and that of this "
            "classifier multiplies the product."
        )
    if weights.in_features != features:
        raise ValueError(f"it takes {weights.in_features} features, and its input has {features}")
    hidden = attributes.get("hidden_size", weights.hidden)
    if hidden != weights.hidden:
        raise ValueError(f"its hidden_size is {hidden}, and its weights are of {weights.hidden}")
    before = trace.source(entries)
    if before.kind not in ("images", "affine"):
        if before.kind != "layer" or steps != before.shape[0]:
            raise WeightsError("does not read the outputs of the layer before at all steps.")
        if not np.array_equal(entries, before.by_step):
            raise WeightsError("reads the outputs of the layer before in another order.")
    data = NamedLayer(weights, place.name, functions)
    outputs = trace.new("layer", (steps, count, batch, hidden), place.text, entries, data).entries
    final = final_states(outputs)
    if by_batch:
        outputs, final = outputs.transpose(2, 0, 1, 3), final.swapaxes(0, 1)
    return Signal(outputs), Signal(final), *[Unread("the cell state of an LSTM")] * (kind == "LSTM")


def final_states(outputs: np.ndarray) -> np.ndarray:
    """[directions, batch, hidden] of [time, directions, batch, hidden]: each direction's output at its last step."""
    return np.concatenate([outputs[-1, :1], outputs[0, 1:]])


def _check_options(kind: str, attributes: Attributes) -> tuple[int, tuple[str, str]]:
    """The number of directions, and the activations. Refuses cells of another kind."""
    direction = _text(attributes.get("direction", "forward"))
    if direction not in ("forward", "bidirectional"):
        raise WeightsError(f"has the direction {direction}; this classifier reads forward, or in both directions.")
    count, usual = 1 + (direction == "bidirectional"), ACTIVATIONS[kind]
    given = [_text(name).lower() for name in attributes.get("activations", usual * count)]
    functions = _functions(given, *(list(attributes.get(f"activation_{name}", ())) for name in ("alpha", "beta")))
    gates, *cell = functions[: len(usual)] or [""]
    known = gates in GATE_FUNCTIONS and len(set(cell)) == 1 and cell[0] in CELL_FUNCTIONS
    if functions != [gates, *cell] * count or not known or (kind == "GRU" and [gates, *cell] != usual):
        found = ", ".join(functions)[:200]
        raise WeightsError(f"has the activations {found}, expected {', '.join(usual)} in each direction.")
    if attributes.get("clip") is not None:
        raise WeightsError(f"clips its gates at {attributes['clip']:g}, which this classifier does not.")
    if attributes.get("input_forget", 0):
        raise WeightsError("couples input and forget gates (input_forget), which this classifier does not.")
    return count, (gates, cell[0])


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _functions(names: list[str], alphas: list[float], betas: list[float]) -> list[str]:
    """The activations with the names of a `ModelConfig`; others as they are, with their numbers."""
    ours = {(kind.lower(), round(alpha, 6), beta): own for own, (kind, alpha, beta) in ONNX_ACTIVATIONS.items()}
    found = []
    for name in names:
        if name not in DEFAULTS:
            found.append(name)
            continue
        pairs = zip((alphas, betas), DEFAULTS[name], strict=True)
        alpha, beta = (numbers.pop(0) if numbers else usual for numbers, usual in pairs)
        found.append(ours.get((name, round(alpha, 6), beta), f"{name} with {alpha:g} and {beta:g}"))
    return found + [f"a number {number:g} too many" for number in alphas + betas]


def _weights(kind: str, count: int, kernel: Any, recurrent_kernel: Any, bias: Any, name: str) -> Layer:
    """The layer of an operator's W [directions, gates, in], R [directions, gates, hidden] and B, or None for B."""
    given = [array for array in (kernel, recurrent_kernel, bias) if array is not None]
    if len(given) < 2 or not all(isinstance(array, np.ndarray) for array in given):
        raise ValueError("its weights are not in the file")
    gates = GATES[kind.lower()]
    hidden = recurrent_kernel.shape[-1] if recurrent_kernel.ndim == 3 else 0
    columns = (count, len(gates) * hidden)
    shapes = [(*columns, kernel.shape[-1]), (*columns, hidden), (count, 2 * columns[1])]
    if kernel.ndim != 3 or not hidden or [array.shape for array in given] != shapes[: len(given)]:
        found = ", ".join(str(list(array.shape)) for array in given)
        raise ValueError(f"its weights W, R and B do not fit together: {found}")
    directions = []
    for number in range(count):
        biases = [] if bias is None else [*bias[number].reshape(2, -1)]
        arrays = [kernel[number].T, recurrent_kernel[number].T, *biases]
        directions.append(direction(name, *(reorder_gates(array, ONNX_GATES[kind], gates) for array in arrays)))
    return Layer(*directions)


@operator("Dropout")
def _dropout(trace: "Trace", attributes: Attributes, inputs: list[Any], place: Place) -> Any:
    if len(inputs) > 2 and np.any(inputs[2] is not None and inputs[2]):
        raise WeightsError("is in training mode. Export the network for inference: model.eval().")
    return inputs[0]


@operator("Cast CastLike")
def _cast(trace: "Trace", attributes: Attributes, inputs: list[Any], place: Place) -> Any:
    value, types = inputs[0], trace.onnx.TensorProto
    if place.kind == "CastLike":
        is_float = isinstance(inputs[1], np.ndarray) and "float" in str(inputs[1].dtype)
    else:
        is_float = attributes["to"] in (types.FLOAT, types.DOUBLE, types.FLOAT16, types.BFLOAT16)
    if not isinstance(value, Signal) or not (is_float or value.end):
        raise WeightsError("rounds to another type than floats, which this classifier does not.")
    return Signal(value.entries, False, value.end)


@operator("Add Sub Mul Div")
def _arithmetic(trace: "Trace", attributes: Attributes, inputs: list[Any], place: Place) -> Any:
    left, right = inputs
    signal, constant = (left, right) if isinstance(left, Signal) else (right, left)
    if not isinstance(constant, np.ndarray):
        return _weighted(trace, left, right, place)
    entries = signal.entries
    if np.broadcast_shapes(entries.shape, constant.shape) != entries.shape:
        raise ValueError(f"an array {list(constant.shape)} does not fit an output {list(entries.shape)}")
    source = trace.source(entries)
    if source.kind in ("images", "affine"):
        data = _rescaled(signal, constant, place.kind, swapped=signal is right)
        return Signal(trace.new("affine", entries.shape, place.text, entries, data).entries)
    if place.kind == "Add" and source.kind in OUTPUTS:
        return Signal(trace.new("bias", entries.shape, place.text, entries, constant).entries)
    raise WeightsError("computes with the outputs of a layer, which this classifier does not.")


def _rescaled(images: Signal, constant: np.ndarray, kind: str, *, swapped: bool) -> tuple[float, float]:
    """What the images are multiplied by, and what is then added."""
    if images.integer:
        raise WeightsError("computes with integers, which overflow or are rounded. Cast the images to floats first.")
    if not constant.size or (constant != constant.flat[0]).any():
        raise WeightsError("changes each pixel by a number of its own, which is not read; one number for all is.")
    number = float(constant.flat[0])
    if not math.isfinite(number) or (kind == "Div" and (number == 0 or swapped)):
        raise WeightsError("divides by zero or by the images, or by a number that is not finite.")
    match kind:
        case "Add":
            return 1.0, number
        case "Sub":
            return (-1.0, number) if swapped else (1.0, -number)
        case "Mul":
            return number, 0.0
    return 1 / number, 0.0


def _weighted(trace: "Trace", left: Signal, right: Signal, place: Place) -> Signal:
    """Outputs times weights over time."""
    trace.bounded(math.prod(np.broadcast_shapes(left.entries.shape, right.entries.shape)), is_moved=True)
    pair = np.broadcast_arrays(left.entries, right.entries)
    outputs, weights = sorted(pair, key=lambda entries: trace.source(entries).kind)
    if place.kind != "Mul" or (trace.source(outputs).kind, trace.source(weights).kind) != ("layer", "weights"):
        raise WeightsError("combines two outputs of the network, which this classifier does not.")
    return Signal(trace.new("product", outputs.shape, place.text, outputs, weights).entries)


@operator("Relu Tanh")
def _activation(trace: "Trace", attributes: Attributes, inputs: list[Any], place: Place) -> Any:
    (signal,) = inputs
    if not isinstance(signal, Signal) or trace.source(signal.entries).kind not in OUTPUTS:
        raise WeightsError("stands elsewhere than after a dense layer, where this classifier has no activation.")
    return Signal(trace.new(place.kind.lower(), signal.entries.shape, place.text, signal.entries).entries)


@operator("MatMul")
def _matmul(trace: "Trace", attributes: Attributes, inputs: list[Any], place: Place) -> Any:
    left, right = inputs
    if isinstance(left, Signal) and isinstance(right, Signal) and left.entries.ndim == right.entries.ndim == 3:
        # Weights [batch, 1, time] times outputs [batch, time, features].
        pair = Signal(left.entries[..., None]), Signal(right.entries[:, None])
        return _over_time(trace, "attention", _weighted(trace, *pair, place._replace(kind="Mul")).entries, 2, place)
    return _dense(trace, left, right, place)


@operator("Gemm")
def _gemm(trace: "Trace", attributes: Attributes, inputs: list[Any], place: Place) -> Any:
    features, kernel, bias = [*inputs, None][:3]
    if attributes.get("transA", 0):
        raise WeightsError("transposes its first factor (transA), which this classifier does not.")
    if isinstance(features, Signal) and features.entries.ndim != 2:
        raise ValueError("its first factor is not a matrix")
    if isinstance(kernel, np.ndarray):
        kernel = kernel.T if attributes.get("transB", 0) else kernel
        if (alpha := attributes.get("alpha", 1.0)) != 1:
            trace.bounded(kernel.size)
            kernel = kernel * np.float64(alpha)
    result = _dense(trace, features, kernel, place)
    beta = attributes.get("beta", 1.0)
    if bias is None or beta == 0:
        return result
    return _arithmetic(trace, {}, [result, bias if beta == 1 else bias * np.float64(beta)], place._replace(kind="Add"))


def _dense(trace: "Trace", features: Any, kernel: Any, place: Place) -> Signal:
    if not isinstance(features, Signal) or not isinstance(kernel, np.ndarray):
        raise WeightsError("multiplies something else than outputs of a layer and a matrix that is in the file.")
    entries = features.entries
    if trace.source(entries).kind in ("images", "affine"):
        raise WeightsError("stands before the LSTM or GRU layers, where this classifier has no dense layer.")
    if kernel.ndim != 2 or not kernel.shape[1] or entries.shape[-1] != len(kernel):
        raise ValueError(f"its matrix is {list(kernel.shape)}, and the layer before gives {entries.shape[-1]} features")
    shape = (*entries.shape[:-1], kernel.shape[1])
    return Signal(trace.new("dense", shape, place.text, entries, (kernel, place.name)).entries)


def rows_below(source: Source, entries: np.ndarray, who: str = "") -> np.ndarray:
    """The inputs of a dense layer, [..., features], of which these are the outputs, [..., out]. Raises WeightsError."""
    width = source.shape[-1]
    rows, columns = np.divmod(entries - source.start, width)
    if entries.shape[-1] != width or (columns != np.arange(width)).any() or (rows != rows[..., :1]).any():
        raise WeightsError(f"{who}uses a part of the outputs of {source.place}, or in another order.")
    return source.below.reshape(-1, source.below.shape[-1])[rows[..., 0]]


@operator("Softmax LogSoftmax ArgMax")
def _softmax(trace: "Trace", attributes: Attributes, inputs: list[Any], place: Place) -> Any:
    (signal,) = inputs
    source, shape = trace.source(signal.entries), signal.entries.shape
    if source.kind not in OUTPUTS:
        raise WeightsError("does not stand after the dense layer, as in this classifier.")
    last = len(shape) - 1
    usual = 0 if place.kind == "ArgMax" else -1 if trace.opset >= 13 else 1
    axis = normalize_axis_index(attributes.get("axis", usual), last + 1)
    if trace.opset < 13 and place.kind != "ArgMax" and math.prod(shape[axis:last]) == 1:
        axis = last  # it works on all axes from this one
    if axis != last and shape[last] == 1 and place.kind == "Softmax" and trace.opset >= 13:
        return _attention(trace, signal.entries, axis, place)
    if axis != last:
        raise WeightsError("works along another axis than the classes.")
    return Signal(signal.entries, False, place.kind)


def _attention(trace: "Trace", scores: np.ndarray, axis: int, place: Place) -> Signal:
    """The weights of attention over time, from one score a step."""
    shape, source = scores.shape, trace.source(scores)
    if source.kind == "bias" and source.data.size == 1:  # the same for all steps, so that it changes no weight
        scores = source.under(scores)
        source = trace.source(scores)
    if source.kind == "dense":
        features = rows_below(source, scores)
        layer, first = trace.source(features), features[..., :1]
        if layer.kind == "layer":
            time, _, example, _ = np.unravel_index(first[..., 0] - layer.start, layer.shape)
            _first_step(trace, first, axis)
            if np.array_equal(features, layer.by_step[time, example]):
                return Signal(trace.new("weights", shape, place.text, first, source.data[0]).entries)
    raise WeightsError("works along another axis than the classes, and is no attention over the outputs of a layer.")


def _first_step(trace: "Trace", entries: np.ndarray, axis: int) -> np.ndarray:
    """The outputs at the first step, of those along this axis. Refuses others than all steps in their order."""
    moved = np.moveaxis(entries, axis, 0)
    source = trace.source(moved)
    size = math.prod(source.shape[1:])
    rest = moved - size * np.arange(len(moved)).reshape(-1, *[1] * (moved.ndim - 1))
    is_layer = source.kind == "layer" and len(moved) == source.shape[0]
    if not is_layer or (rest != rest[0]).any() or rest.max() >= source.start + size:
        raise WeightsError("pools along another axis than time.")
    return moved[0]


@operator("ReduceMean ReduceMax ReduceSum")
def _pool(trace: "Trace", attributes: Attributes, inputs: list[Any], place: Place) -> Any:
    signal, axes = inputs[0], attributes.get("axes", inputs[1] if len(inputs) > 1 else None)
    axes = np.asarray([] if axes is None else axes).reshape(-1)
    if not isinstance(signal, Signal) or len(axes) != 1:
        raise WeightsError("pools along another axis than time.")
    axis = normalize_axis_index(int(axes[0]), signal.entries.ndim)
    kind = {"ReduceMean": "mean", "ReduceMax": "max", "ReduceSum": "attention"}[place.kind]
    pooled = _over_time(trace, kind, signal.entries, axis, place)
    return Signal(np.expand_dims(pooled.entries, axis)) if attributes.get("keepdims", 1) else pooled


def _over_time(trace: "Trace", kind: str, entries: np.ndarray, axis: int, place: Place) -> Signal:
    source, kernel = trace.source(entries), None
    if source.kind in ("dense", "bias", "relu", "tanh"):
        # The mean of a dense layer's outputs is its output for the mean of its inputs.
        if kind == "mean" and source.kind == "dense" and axis < entries.ndim - 1:
            inner = _over_time(trace, kind, rows_below(source, entries), axis, place)
            return _dense(trace, inner, source.data[0], place._replace(name=source.data[1]))
        if kind == "mean" and source.kind == "bias":
            bias = np.broadcast_to(source.data, source.shape).reshape(-1)[entries - source.start]
            if np.array_equal(bias, np.broadcast_to(bias.take([0], axis), bias.shape)):
                inner = _over_time(trace, kind, source.under(entries), axis, place)
                return _arithmetic(trace, {}, [inner, bias.take(0, axis)], place._replace(kind="Add"))
        raise WeightsError("pools after the dense layer; this classifier pools before.")
    if (source.kind == "product") != (kind == "attention"):
        raise WeightsError("pools something else than the outputs of a layer.")
    if kind == "attention":
        weights = source.data.reshape(-1)[entries - source.start]
        entries = source.under(entries)
        layer, source = trace.source(entries), trace.source(weights)
        time, _, example, _ = np.unravel_index(entries - layer.start, layer.shape)
        if not np.array_equal(source.under(weights), layer.by_step[time, example, 0]):
            raise WeightsError("weights outputs by the attention to other steps or other examples.")
        kernel = source.data
    first = _first_step(trace, entries, axis)
    return Signal(trace.new(kind, first.shape, place.text, first, kernel).entries)


def short(name: Any) -> str:
    """A name of the file for a message; damaged files have names of bytes, or long ones."""
    text = str(name)[:100]
    return text if text.isprintable() else repr(text)
