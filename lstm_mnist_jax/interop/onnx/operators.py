"""What the operators of an ONNX graph that do more than to move entries make of the images and of layers.

Each function takes the trace, the node's attributes, the values of its inputs, and the node. It returns its outputs.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.onnx import recurrent
from lstm_mnist_jax.interop.onnx.signals import Place, Signal, Source, Unread, is_constant

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


def _integers(value: Any) -> list[int]:
    """A constant, or an attribute, as a list of integers."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise ValueError("axes have to be integers that are in the file")
    return [int(item) for item in array.reshape(-1)]


def _from_start(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} of {rank}")
    return axis % rank


@operator("Dropout")
def _dropout(trace: "Trace", attributes: Attributes, inputs: list[Any], place: Place) -> Any:
    training = inputs[2] if len(inputs) > 2 else None
    if training is not None and np.any(training):
        raise WeightsError("is in training mode. Export the network for inference: model.eval().")
    return inputs[0]


@operator("Cast CastLike")
def _cast(trace: "Trace", attributes: Attributes, inputs: list[Any], place: Place) -> Any:
    value, types = inputs[0], trace.onnx.TensorProto
    if place.kind == "CastLike":
        is_float = is_constant(inputs[1]) and "float" in str(inputs[1].dtype)
    else:
        is_float = attributes["to"] in (types.FLOAT, types.DOUBLE, types.FLOAT16, types.BFLOAT16)
    if not isinstance(value, Signal) or not (is_float or value.end):
        raise WeightsError("rounds to another type than floats, which this classifier does not.")
    return Signal(value.entries, False, value.end)


@operator("Add Sub Mul Div")
def _arithmetic(trace: "Trace", attributes: Attributes, inputs: list[Any], place: Place) -> Any:
    left, right = inputs
    signal, constant = (left, right) if isinstance(left, Signal) else (right, left)
    if not is_constant(constant):
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
    entries = dict(zip(("left", "right"), np.broadcast_arrays(left.entries, right.entries), strict=True))
    kinds = {name: trace.source(array).kind for name, array in entries.items()}
    if place.kind != "Mul" or sorted(kinds.values()) != ["layer", "weights"]:
        raise WeightsError("combines two outputs of the network, which this classifier does not.")
    trace.bounded(3 * entries["left"].size, is_moved=True)
    outputs, weights = sorted(entries, key=lambda name: kinds[name])
    source = trace.new("product", entries["left"].shape, place.text, entries[outputs], entries[weights])
    return Signal(source.entries)


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
    if is_constant(kernel):
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
    if not isinstance(features, Signal) or not is_constant(kernel):
        raise WeightsError("multiplies something else than outputs of a layer and a matrix that is in the file.")
    entries = features.entries
    if trace.source(entries).kind in ("images", "affine"):
        raise WeightsError("stands before the LSTM or GRU layers, where this classifier has no dense layer.")
    if kernel.ndim != 2 or not kernel.shape[1] or entries.shape[-1] != len(kernel):
        raise ValueError(f"its matrix is {list(kernel.shape)}, and the layer before gives {entries.shape[-1]} features")
    shape = (*entries.shape[:-1], kernel.shape[1])
    return Signal(trace.new("dense", shape, place.text, entries, (kernel, place.name)).entries)


def rows_below(source: Source, entries: np.ndarray) -> np.ndarray:
    """The inputs of a dense layer, [..., features], of which these are the outputs, [..., out]. Raises WeightsError."""
    width = source.shape[-1]
    rows, columns = np.divmod(entries - source.start, width)
    if entries.shape[-1] != width or (columns != np.arange(width)).any() or (rows != rows[..., :1]).any():
        raise WeightsError(f"it uses a part of the outputs of {source.place}, or in another order.")
    return source.below.reshape(-1, source.below.shape[-1])[rows[..., 0]]


@operator("Softmax LogSoftmax ArgMax")
def _softmax(trace: "Trace", attributes: Attributes, inputs: list[Any], place: Place) -> Any:
    (signal,) = inputs
    source = trace.source(signal.entries)
    if source.kind not in OUTPUTS:
        raise WeightsError("does not stand after the dense layer, as in this classifier.")
    shape, last = signal.entries.shape, signal.entries.ndim - 1
    usual = 0 if place.kind == "ArgMax" else -1 if trace.opset >= 13 else 1
    axis = _from_start(attributes.get("axis", usual), last + 1)
    if place.kind == "Softmax" and shape[last] == 1 and (trace.opset >= 13 or math.prod(shape[axis + 1 :]) == 1):
        # One number a step: the weights of attention over time. A bias is the same for all steps, so it does nothing.
        scores = source.under(signal.entries) if source.kind == "bias" else signal.entries
        below = trace.source(scores)
        if below.kind == "dense" and (source.kind != "bias" or source.data.size == 1):
            features = _steps(trace, rows_below(below, scores), axis)
            data = below.data[0], features
            return Signal(
                trace.new("weights", shape, place.text, np.moveaxis(features, 0, axis)[..., :1], data).entries
            )
    if trace.opset < 13 and place.kind != "ArgMax" and axis < last and math.prod(shape[axis:last]) == 1:
        axis = last  # it works on all axes from this one
    if axis != last:
        raise WeightsError("works along another axis than the classes.")
    return Signal(signal.entries, False, place.kind)


def _steps(trace: "Trace", entries: np.ndarray, axis: int) -> np.ndarray:
    """Outputs of a layer at all time steps, in their order, along this axis, which comes first then."""
    moved = np.moveaxis(entries, axis, 0)
    source = trace.source(moved)
    steps = np.arange(len(moved)).reshape(-1, *[1] * (moved.ndim - 1)) * math.prod(source.shape[1:])
    first = moved[0] - source.start
    if (
        source.kind != "layer"
        or len(moved) != source.shape[0]
        or (moved != moved[:1] + steps).any()
        or (first >= math.prod(source.shape[1:])).any()
    ):
        raise WeightsError("pools along another axis than time.")
    return moved


@operator("ReduceMean ReduceMax ReduceSum")
def _pool(trace: "Trace", attributes: Attributes, inputs: list[Any], place: Place) -> Any:
    signal, axes = inputs[0], attributes.get("axes", inputs[1] if len(inputs) > 1 else None)
    if not isinstance(signal, Signal):
        raise WeightsError("pools something else than the outputs of a layer.")
    axes = [] if axes is None else _integers(axes)
    if len(axes) != 1:
        raise WeightsError("pools along another axis than time.")
    axis = _from_start(axes[0], signal.entries.ndim)
    kind = {"ReduceMean": "mean", "ReduceMax": "max", "ReduceSum": "attention"}[place.kind]
    pooled = _over_time(trace, kind, signal.entries, axis, place)
    return Signal(np.expand_dims(pooled.entries, axis)) if attributes.get("keepdims", 1) else pooled


def _over_time(trace: "Trace", kind: str, entries: np.ndarray, axis: int, place: Place) -> Signal:
    source, data = trace.source(entries), None
    if source.kind in ("dense", "bias", "relu", "tanh"):
        if kind != "mean" or source.kind not in OUTPUTS or axis == entries.ndim - 1:
            raise WeightsError("pools after the dense layer; this classifier pools before.")
        # The mean of a dense layer's outputs is its output for the mean of its inputs.
        if source.kind == "bias":
            bias = np.broadcast_to(source.data, source.shape).reshape(-1)[entries - source.start]
            if (bias != bias.take([0], axis)).any():
                raise WeightsError("pools after the dense layer; this classifier pools before.")
            inner = _over_time(trace, kind, source.under(entries), axis, place)
            return _arithmetic(trace, {}, [inner, bias.take(0, axis)], place._replace(kind="Add"))
        inner = _over_time(trace, kind, rows_below(source, entries), axis, place)
        return _dense(trace, inner, source.data[0], place._replace(name=source.data[1]))
    if (source.kind == "product") != (kind == "attention"):
        raise WeightsError("pools something else than the outputs of a layer.")
    if kind == "attention":
        weights = source.data.reshape(-1)[entries - source.start]
        entries = source.under(entries)
        data = _attention_kernel(trace, entries, weights, axis)
    first = _steps(trace, entries, axis)[0]
    return Signal(trace.new(kind, first.shape, place.text, first, data).entries)


def _attention_kernel(trace: "Trace", entries: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """The kernel [features, 1] of the attention by which outputs are weighted. Raises WeightsError."""
    source, layer = trace.source(weights), trace.source(entries)
    # Each weight belongs to an output's time step and example, and is computed from all features there.
    steps, _, batch, _ = layer.shape
    kernel, features = source.data
    expected = layer.entries.transpose(0, 2, 1, 3).reshape(steps, batch, -1)
    place = np.unravel_index(entries - layer.start, layer.shape)
    own = expected[place[0], place[2], 0]
    if (
        trace.source(features) is not layer
        or (source.under(weights) != own).any()
        or (features.reshape(-1, features.shape[-1]) != expected.reshape(-1, expected.shape[-1])).any()
    ):
        raise WeightsError("weights the outputs of a layer otherwise than attention over time does.")
    return kernel
