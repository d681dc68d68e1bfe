"""What each operator of an ONNX graph does to constants, to shapes and to what the network computes.

All but the recurrent ones. Each function takes the graph, the node's attributes, the values of its inputs, the node.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.onnx.signals import (
    Dense,
    Fill,
    Pieces,
    Signal,
    Unknown,
    axis_of,
    is_numbers,
    objects,
    reshaped,
    settle_shape,
    shape_of,
    short,
    size_of,
)

if TYPE_CHECKING:
    from lstm_mnist_jax.interop.onnx.graph import Graph


class Operation(NamedTuple):
    """How a node is read: from the graph, its attributes, its inputs and the node."""

    read: Callable[[Any, dict[str, Any], list[Any], Any], Any]
    attributes: tuple[str, ...]


OPERATORS: dict[str, Operation] = {}


def operator(names: str, attributes: str = "") -> Callable[[Any], Any]:
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
    return None if axes is None else [from_start(axis, rank) for axis in _integers(axes)]


def from_start(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} of {rank}")
    return axis % rank


@operator("Identity")
def _identity(graph: "Graph", attributes: Any, inputs: list[Any], node: Any) -> Any:
    return inputs[0]


@operator("Dropout", "ratio seed")
def _dropout(graph: "Graph", attributes: Any, inputs: list[Any], node: Any) -> Any:
    training = inputs[2] if len(inputs) > 2 else None
    if training is not None and np.any(training):
        raise WeightsError("is in training mode. Export the network for inference: model.eval().")
    return inputs[0]


@operator("Cast CastLike", "to saturate round_mode")
def _cast(graph: "Graph", attributes: Any, inputs: list[Any], node: Any) -> Any:
    value = inputs[0]
    types = graph.onnx.TensorProto
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
    kind = np.dtype(graph.onnx.helper.tensor_dtype_to_np_dtype(to))
    graph.bounded(value.size, kind.itemsize)
    return value.astype(kind)


@operator("Constant", "value value_float value_floats value_int value_ints")
def _constant(graph: "Graph", attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    ((name, value),) = attributes.items()
    if name == "value":
        return graph.constant(value)
    return np.array(value, np.float32 if "float" in name else np.int64)


@operator("ConstantOfShape", "value")
def _constant_of_shape(graph: "Graph", attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    value = graph.constant(attributes["value"]) if "value" in attributes else np.zeros(1)
    return Fill(value.item())


@operator("Shape", "start end")
def _shape_of(graph: "Graph", attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    value = inputs[0]
    sizes = shape_of(value) if isinstance(value, Signal) else np.array(value.shape, np.int64)
    return settle_shape(sizes[attributes.get("start", 0) : attributes.get("end")])


@operator("Expand Tile")
def _expand(graph: "Graph", attributes: Any, inputs: list[Any], node: Any) -> Any:
    value = inputs[0]
    if isinstance(value, np.ndarray) and value.dtype != object and value.size and (value == value.flat[0]).all():
        return Fill(value.flat[0].item())
    if isinstance(value, Fill):
        return value
    raise WeightsError("repeats an array, which this classifier does not.")


@operator("Transpose", "perm")
def _transpose(graph: "Graph", attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
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


@operator("Squeeze Unsqueeze", "axes")
def _squeeze(graph: "Graph", attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    value = inputs[0]
    if isinstance(value, Fill):
        return value
    rank = len(value.axes) if isinstance(value, Signal) else value.ndim
    if node.op_type == "Unsqueeze":
        added = _integers(attributes["axes"] if "axes" in attributes else inputs[1])
        rank += len(added)
        if rank > 16:
            raise ValueError(f"{rank} axes")
        where = sorted({from_start(axis, rank) for axis in added})
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


@operator("Reshape Flatten", "allowzero axis")
def _reshape(graph: "Graph", attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
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
        cut = cut if cut == rank else from_start(cut, rank)
        parts = value.axes[:cut], value.axes[cut:]
        return replace(value, axes=tuple(axis_of(*(atom for axis in part for atom in axis)) for part in parts))
    target = inputs[1]
    if not isinstance(target, np.ndarray) or target.ndim != 1 or len(target) > 16:
        raise ValueError("its shape is not a list of sizes in the file")
    sizes: list[Any] = [size if isinstance(size, Unknown) else int(size) for size in target]
    if not attributes.get("allowzero"):
        sizes = [value.axes[number] if size == 0 else size for number, size in enumerate(sizes)]
    return replace(value, axes=reshaped(value.axes, sizes))


def _selected(signal: Signal, axis: int, index: int) -> Signal:
    """One entry along an axis, which remains with size 1."""
    atoms, layer = signal.axes[axis], signal.layer
    size = size_of(atoms)
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
    if layer is not None and atoms == layer.directions and not signal.dense:
        return _settled(replace(kept, direction=index))
    raise WeightsError("selects a part of the images, of the examples or of the features.")


def _settled(signal: Signal) -> Signal:
    """With "final" where a step is the last that its direction reads."""
    layer = signal.layer
    assert layer is not None
    direction = 0 if len(layer.cells) == 1 else signal.direction
    return replace(signal, steps="final") if (direction, signal.steps) in ((0, "last"), (1, "first")) else signal


@operator("Gather", "axis")
def _gather(graph: "Graph", attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    value, indices = inputs
    if isinstance(value, Fill):
        return value
    axis = attributes.get("axis", 0)
    if isinstance(value, np.ndarray):
        indices = np.asarray(indices)
        if indices.dtype.kind not in "iu":
            raise ValueError("its indices are not integers in the file")
        axis = from_start(axis, value.ndim)
        graph.bounded(indices.size * value.size // max(1, value.shape[axis]), value.itemsize)
        taken = np.take(value, indices, axis)
        if value.dtype == object and not isinstance(taken, np.ndarray):
            taken = objects([taken]).reshape(())
        return settle_shape(np.asarray(taken))
    (index,), scalar = _integers(indices), np.ndim(indices) == 0
    if isinstance(value, Pieces):
        if from_start(axis, len(value.parts[0].axes)) != value.axis:
            raise WeightsError("selects from several layers at once.")
        chosen, axis = value.parts[index], value.axis
    else:
        axis = from_start(axis, len(value.axes))
        chosen = _selected(value, axis, index)
    return replace(chosen, axes=chosen.axes[:axis] + chosen.axes[axis + 1 :]) if scalar else chosen


@operator("Slice", "starts ends axes")
def _slice(graph: "Graph", attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
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
        axis = from_start(axis, rank)
        if isinstance(value, np.ndarray):
            places: list[Any] = [slice(None)] * rank
            places[axis] = slice(start, None if step < 0 and stop < -value.shape[axis] else stop, step)
            value = settle_shape(value[tuple(places)])
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
    size = size_of(signal.axes[axis])
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


@operator("Concat", "axis")
def _concat(graph: "Graph", attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    if all(isinstance(value, np.ndarray) for value in inputs):
        graph.bounded(sum(value.size for value in inputs), inputs[0].itemsize)
        return settle_shape(np.concatenate(inputs, attributes["axis"]))
    if all(isinstance(value, Fill) for value in inputs) and len({value.value for value in inputs}) == 1:
        return inputs[0]
    signals = [part for value in inputs for part in (value.parts if isinstance(value, Pieces) else [value])]
    if not all(isinstance(signal, Signal) and signal.layer for signal in signals):
        raise WeightsError("joins the images, or constants, with something else.")
    axis = from_start(attributes["axis"], len(signals[0].axes))
    joined = _both_directions(signals, axis)
    if joined is not None:
        return joined
    entries: list[Signal] = []
    for signal in signals:
        size = size_of(signal.axes[axis])
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


@operator("Add Sub Mul Div")
def _arithmetic(graph: "Graph", attributes: Any, inputs: list[Any], node: Any) -> Any:
    left, right = inputs
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        graph.bounded(math.prod(np.broadcast_shapes(left.shape, right.shape)), left.itemsize)
        return _on_constants(node.op_type, left, right)
    if not isinstance(left, Signal) and not isinstance(right, Signal):
        raise WeightsError("computes with shapes that the file leaves open.")
    signal, constant = (left, right) if isinstance(left, Signal) else (right, left)
    if not (is_numbers(constant) or isinstance(constant, Fill)):
        raise WeightsError("combines two outputs of the network, which this classifier does not.")
    if signal.layer is None:
        return _rescaled(signal, constant, node.op_type, swapped=signal is right)
    if node.op_type == "Add" and signal.dense and isinstance(constant, np.ndarray):
        return _with_bias(signal, constant)
    raise WeightsError("computes with the outputs of a layer, which this classifier does not.")


def _on_constants(kind: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if kind == "Div" and left.dtype.kind in "iu":
        if (left < 0).any() or (right <= 0).any():  # ONNX rounds to zero, NumPy down
            raise ValueError("a division of integers that are not positive")
        return left // right
    operation = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[kind]
    with np.errstate(all="ignore"):
        return settle_shape(operation(left, right))


def _rescaled(images: Signal, constant: np.ndarray | Fill, kind: str, *, swapped: bool) -> Signal:
    """The images times or plus one number."""
    if images.integer:
        raise WeightsError("computes with integers, which overflow or are rounded. Cast the images to floats first.")
    if isinstance(constant, np.ndarray):
        sizes = [1] * len(images.axes) + [size_of(axis) for axis in images.axes]
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


def _with_bias(signal: Signal, bias: np.ndarray) -> Signal:
    *before, dense = signal.dense
    width = dense.kernel.shape[1]
    if bias.size not in (1, width) or bias.ndim > len(signal.axes) or bias.shape[-1:] not in ((), (bias.size,)):
        raise ValueError(f"it adds an array {list(bias.shape)} to {width} outputs")
    if signal.axes[-1] != dense.outputs:
        raise WeightsError("adds to something else than the outputs of the dense layer.")
    if dense.activation:
        raise WeightsError("adds something after an activation, which this classifier does not.")
    whole = np.broadcast_to(bias.reshape(-1), (width,))
    dense = replace(dense, bias=whole if dense.bias is None else dense.bias + whole)
    return replace(signal, dense=(*before, dense))


@operator("Relu Tanh")
def _activation(graph: "Graph", attributes: Any, inputs: list[Any], node: Any) -> Any:
    (signal,) = inputs
    if not isinstance(signal, Signal) or not signal.dense or signal.dense[-1].activation:
        raise WeightsError("stands elsewhere than after a dense layer, where this classifier has no activation.")
    *before, dense = signal.dense
    return replace(signal, dense=(*before, replace(dense, activation=node.op_type.lower())))


@operator("MatMul")
def _matmul(graph: "Graph", attributes: Any, inputs: list[Any], node: Any) -> Any:
    features, kernel = inputs
    return _dense(features, kernel, node)


@operator("Gemm", "alpha beta transA transB")
def _gemm(graph: "Graph", attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    features, kernel, bias = [*inputs, None][:3]
    if attributes.get("transA", 0):
        raise WeightsError("transposes its first factor (transA), which this classifier does not.")
    if isinstance(kernel, np.ndarray) and attributes.get("transB", 0):
        kernel = kernel.T
    if isinstance(kernel, np.ndarray) and (alpha := attributes.get("alpha", 1.0)) != 1:
        graph.bounded(kernel.size)
        kernel = kernel * np.float64(alpha)
    if isinstance(features, Signal) and len(features.axes) != 2:
        raise ValueError("its first factor is not a matrix")
    result = _dense(features, kernel, node)
    beta = attributes.get("beta", 1.0)
    if bias is None or beta == 0:
        return result
    if not is_numbers(bias):
        raise WeightsError("adds something that the network computes, which this classifier does not.")
    return _with_bias(result, bias if beta == 1 else bias * np.float64(beta))


def _dense(features: Any, kernel: Any, node: Any) -> Signal:
    if not isinstance(features, Signal) or not is_numbers(kernel):
        raise WeightsError("multiplies something else than outputs of a layer and a matrix that is in the file.")
    layer = features.layer
    if layer is None:
        raise WeightsError("stands before the LSTM or GRU layers, where this classifier has no dense layer.")
    if features.direction is not None:
        raise WeightsError("uses one direction of a bidirectional layer; this classifier uses both.")
    steps = features.steps
    if features.dense:
        expected, width = features.dense[-1].outputs, features.dense[-1].kernel.shape[1]
    else:
        expected, width = layer.features, layer.hidden * len(layer.cells)
        count = size_of(layer.time)
        if steps == "all" and layer.time and features.axes[-1] == axis_of(*layer.time, *layer.features) and count:
            steps, expected, width = "flat", features.axes[-1], width * count
    if features.axes[-1] != expected:
        raise WeightsError(
            "has other inputs than the features of one step, or of all in their order, the forward direction's before "
            "the backward one's."
        )
    if kernel.ndim != 2 or len(kernel) != width or not kernel.shape[1]:
        raise ValueError(f"its matrix is {list(kernel.shape)}, and the layer before gives {width} features")
    if len(features.dense) > 100:
        raise WeightsError("is the 102nd dense layer, more than are read.")
    dense = Dense(kernel, None, short(node.name or node.op_type), len(features.dense))
    axes = (*features.axes[:-1], dense.outputs)
    return replace(features, axes=axes, steps=steps, dense=(*features.dense, dense))


@operator("Softmax LogSoftmax ArgMax", "axis keepdims select_last_index")
def _softmax(graph: "Graph", attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    (logits,) = inputs
    if not isinstance(logits, Signal) or not logits.dense:
        raise WeightsError("does not stand after the dense layer, as in this classifier.")
    if logits.steps in ("all", "last", "first"):
        graph.check_output(short(node.output[0]), logits)
    rank = len(logits.axes)
    last = rank - 1
    if node.op_type == "ArgMax":
        axis = from_start(attributes.get("axis", 0), rank)
    else:
        axis = from_start(attributes.get("axis", -1 if graph.opset >= 13 else 1), rank)
        if graph.opset < 13 and axis < last and not any(logits.axes[axis:last]):
            axis = last  # it works on all axes from this one
    if axis != last or logits.axes[last] != logits.dense[-1].outputs:
        raise WeightsError("works along another axis than the classes.")
    if node.op_type != "ArgMax":
        return replace(logits, end=node.op_type)
    axes = logits.axes[:-1] + (((),) if attributes.get("keepdims", 1) else ())
    return replace(logits, axes=axes, end="ArgMax")


@operator("ReduceMean ReduceMax", "axes keepdims noop_with_empty_axes")
def _pool(graph: "Graph", attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    signal = inputs[0]
    layer = signal.layer if isinstance(signal, Signal) else None
    if layer is None:
        raise WeightsError("pools something else than the outputs of a layer.")
    axes = _own_axes(attributes, inputs, len(signal.axes))
    if not axes or len(axes) != 1 or not layer.time or signal.axes[axes[0]] != layer.time or signal.steps != "all":
        raise WeightsError("pools along another axis than time.")
    kind = "mean" if node.op_type == "ReduceMean" else "max"
    if any(dense.activation for dense in signal.dense) or (kind == "max" and signal.dense):
        raise WeightsError("pools after the dense layer; this classifier pools before.")
    (axis,) = axes
    kept = ((),) if attributes.get("keepdims", 1) else ()
    return replace(signal, steps=kind, axes=signal.axes[:axis] + kept + signal.axes[axis + 1 :])
