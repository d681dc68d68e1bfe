"""What the operators of an ONNX graph that do more than to move entries make of the images and of layers.

Each function takes the trace, the node's attributes, the values of its inputs, and the node. It returns its outputs.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.onnx import recurrent
from lstm_mnist_jax.interop.onnx.signals import Place, Signal, Source

if TYPE_CHECKING:
    from lstm_mnist_jax.interop.onnx.trace import Trace

Attributes = dict[str, Any]
OPERATORS: dict[str, Callable[["Trace", Attributes, list[Any], Place], Any]] = dict.fromkeys(
    ("LSTM", "GRU"), recurrent.layer
)

OUTPUTS = ("dense", "bias")


def operator(names: str) -> Callable[[Any], Any]:
    def register(read: Any) -> Any:
        OPERATORS.update(dict.fromkeys(names.split(), read))
        return read

    return register


def _from_start(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} of {rank}")
    return axis % rank


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
    axis = _from_start(attributes.get("axis", usual), last + 1)
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
    axis = _from_start(int(axes[0]), signal.entries.ndim)
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
