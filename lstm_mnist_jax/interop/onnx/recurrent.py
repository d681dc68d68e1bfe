"""ONNX's LSTM and GRU operators as layers of the classifier."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.export import ONNX_GATES
from lstm_mnist_jax.interop.onnx.operators import Operation
from lstm_mnist_jax.interop.onnx.signals import Axis, Fill, Layer, Signal, Unread, is_numbers, short, size_of
from lstm_mnist_jax.interop.weights import GATES, float32
from lstm_mnist_jax.rnn.weights import reorder_gates

if TYPE_CHECKING:
    from lstm_mnist_jax.interop.onnx.graph import Graph

ONNX_GRU_GATES = "zrn"
"""The order of the gates of ONNX's GRU."""

ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}

DEFAULTS = {"hardsigmoid": (0.2, 0.5), "affine": (1.0, 0.0)}
"""ONNX's activations that have alpha and beta."""

GATE_FUNCTIONS, CELL_FUNCTIONS = ("sigmoid", "hard_sigmoid_keras2", "hard_sigmoid_keras3"), ("tanh", "relu", "linear")

ATTRIBUTES = (
    "activation_alpha activation_beta activations clip direction hidden_size input_forget layout linear_before_reset"
)


def _recurrent(graph: "Graph", attributes: dict[str, Any], inputs: list[Any], node: Any) -> Any:
    kind = node.op_type
    inputs = inputs + [None] * (8 - len(inputs))
    sequence, kernel, recurrent_kernel, bias, lengths, *states, peepholes = inputs
    directions, functions = _check_options(kind, attributes)
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
    if not all(map(is_numbers, given)):
        raise ValueError("its weights are not in the file")
    graph.bounded(kernel.size + recurrent_kernel.size, 4)  # the cells hold copies
    order = (1, 0) if attributes.get("layout", 0) else (0, 1)
    time, batch = (sequence.axes[axis] for axis in order)
    layer = Layer(
        kind=kind,
        activations=functions,
        name=short(node.name or node.output[0] or node.output[1]),
        below=sequence if order == (0, 1) else replace(sequence, axes=(time, batch, sequence.axes[2])),
        cells=_cells(kind, directions, kernel, recurrent_kernel, bias, attributes),
        hidden=recurrent_kernel.shape[-1],
        time=time,
        batch=batch,
        number=len(graph.layers),
    )
    _check_inputs(layer, sequence.axes[2], kernel.shape[2])
    if attributes.get("hidden_size", layer.hidden) != layer.hidden:
        raise ValueError(f"its hidden_size is {attributes['hidden_size']}, and its weights are of {layer.hidden}")
    graph.layers.append(layer)
    outputs = (time, layer.directions, batch, layer.units)
    final = (layer.directions, batch, layer.units)
    if attributes.get("layout", 0):
        outputs, final = (batch, time, layer.directions, layer.units), (batch, layer.directions, layer.units)
    whole = Signal(outputs, layer)
    if not time:  # one step
        whole = replace(whole, steps="final")
    return whole, Signal(final, layer, steps="final"), *[Unread("the cell state of an LSTM")] * (kind == "LSTM")


def _check_options(kind: str, attributes: dict[str, Any]) -> tuple[int, tuple[str, str]]:
    """The number of directions, and the activations. Refuses cells of another kind."""
    direction = _text(attributes.get("direction", "forward"))
    if direction not in ("forward", "bidirectional"):
        raise WeightsError(f"has the direction {direction}; this classifier reads forward, or in both directions.")
    count = 2 if direction == "bidirectional" else 1
    given = [_text(name).lower() for name in attributes.get("activations", ACTIVATIONS[kind] * count)]
    functions = _functions(given, *(list(attributes.get(f"activation_{name}", ())) for name in ("alpha", "beta")))
    size = len(ACTIVATIONS[kind])
    gates, *cell = functions[:size] or [""]
    known = gates in GATE_FUNCTIONS and set(cell) <= set(CELL_FUNCTIONS) and len(set(cell)) == 1
    if len(functions) != size * count or functions != functions[:size] * count or not known:
        raise WeightsError(
            f"has the activations {', '.join(functions)[:200]}, expected {', '.join(ACTIVATIONS[kind])} in each "
            "direction."
        )
    if kind == "GRU" and functions[:size] != ACTIVATIONS[kind]:
        raise WeightsError(f"has the activations {', '.join(functions)}, expected sigmoid, tanh.")
    if attributes.get("clip") is not None:
        raise WeightsError(f"clips its gates at {attributes['clip']:g}, which this classifier does not.")
    if attributes.get("input_forget", 0):
        raise WeightsError("couples input and forget gates (input_forget), which this classifier does not.")
    return count, (gates, cell[0])


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _functions(names: list[str], alphas: list[float], betas: list[float]) -> list[str]:
    """The activations with the names of a `ModelConfig`; others as they are, with their numbers."""
    found = []
    for name in names:
        if name not in DEFAULTS:
            found.append(name)
            continue
        pairs = zip((alphas, betas), DEFAULTS[name], strict=True)
        alpha, beta = (numbers.pop(0) if numbers else usual for numbers, usual in pairs)
        match name, round(alpha, 6), beta:
            case "affine", 1, 0:
                found.append("linear")
            case "hardsigmoid", 0.2, 0.5:
                found.append("hard_sigmoid_keras2")
            case "hardsigmoid", 0.166667, 0.5:
                found.append("hard_sigmoid_keras3")
            case _:
                found.append(f"{name} with {alpha:g} and {beta:g}")
    return found + [f"a number {number:g} too many" for number in alphas + betas]


def _is_zero(state: Any) -> bool:
    return state.value == 0 if isinstance(state, Fill) else isinstance(state, np.ndarray) and not state.any()


def _check_inputs(layer: Layer, features: Axis, width: int) -> None:
    below, time, batch = layer.below, layer.time, layer.batch
    if size_of(features) != width:
        raise ValueError(f"it takes {width} features, and its input has {size_of(features)}")
    if below.layer is not None:
        before = below.layer
        if below.steps not in ("all",) or below.dense or below.direction is not None:
            raise WeightsError("does not read the outputs of the layer before at all steps.")
        if (time, batch, features) != (before.time, before.batch, before.features):
            raise WeightsError("reads the outputs of the layer before in another order.")
        return
    if below.integer:
        raise ValueError("its input is of integers")
    if len(batch) > 1 or any(atom.stride != 1 for atom in batch):
        raise WeightsError("has examples that are not an axis of the input.")
    if size_of(time) is None and batch and size_of(batch) is not None:
        raise WeightsError(
            f"takes its steps along an axis of open size, and {size_of(batch)} examples along another: has it been "
            "given the images with the batch first, which needs batch_first=True, or layout=1?"
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
    own, new = (ONNX_GATES if kind == "LSTM" else ONNX_GRU_GATES), GATES[kind.lower()]
    cells = []
    for number in range(directions):
        columns, recurrent_columns = (
            float32(reorder_gates(array[number].T, own, new)) for array in (kernel, recurrent)
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
        total = float32(reorder_gates(both[0] + inner if inner.any() else both[0], own, new))
        cell: dict[str, Any] = {"dense_i": {"kernel": columns}, "dense_h": {"kernel": recurrent_columns}}
        cell["dense_h" if kind == "LSTM" else "dense_i"]["bias"] = total
        cells.append(cell)
    return tuple(cells)


OPERATORS = dict.fromkeys(("LSTM", "GRU"), Operation(_recurrent, tuple(ATTRIBUTES.split())))
