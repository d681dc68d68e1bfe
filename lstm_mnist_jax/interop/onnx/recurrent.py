"""ONNX's LSTM and GRU operators as layers of the classifier."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.export import ONNX_GATES
from lstm_mnist_jax.interop.onnx.signals import Place, Signal, Unread, float32, is_constant
from lstm_mnist_jax.interop.weights import GATES
from lstm_mnist_jax.rnn.weights import reorder_gates

if TYPE_CHECKING:
    from lstm_mnist_jax.interop.onnx.trace import Trace

ONNX_GRU_GATES, GRU_GATES = "zrn", "rzn"
"""The order of the gates of ONNX's GRU, and that of `flax.nnx.GRUCell`."""

ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}

DEFAULTS = {"hardsigmoid": (0.2, 0.5), "affine": (1.0, 0.0)}
"""ONNX's activations that have alpha and beta."""

GATE_FUNCTIONS, CELL_FUNCTIONS = ("sigmoid", "hard_sigmoid_keras2", "hard_sigmoid_keras3"), ("tanh", "relu", "linear")


@dataclass(frozen=True, eq=False)
class Layer:
    """A recurrent layer.

    Attributes:
      kind: lstm or gru.
      activations: those of the gates and of the cell, with the names of a `ModelConfig`.
      name: of the node.
      cells: the parameters of the cell of each direction, with the names of `flax.nnx`.
    """

    kind: str
    activations: tuple[str, str]
    name: str
    cells: tuple[dict[str, Any], ...]


def layer(trace: "Trace", attributes: dict[str, Any], inputs: list[Any], place: Place) -> Any:
    """The outputs of an LSTM or GRU operator: of all steps, the final ones, and the cell state."""
    kind = place.kind
    sequence, kernel, recurrent_kernel, bias, lengths, *states, peepholes = inputs + [None] * (8 - len(inputs))
    directions, functions = _check_options(kind, attributes)
    if not isinstance(sequence, Signal) or sequence.entries.ndim != 3 or sequence.integer:
        raise ValueError("its input is not a sequence of floats")
    if not all(map(is_constant, [kernel, recurrent_kernel] + [bias] * (bias is not None))):
        raise ValueError("its weights are not in the file")
    by_batch = bool(attributes.get("layout", 0))
    entries = sequence.entries.swapaxes(0, 1) if by_batch else sequence.entries
    steps, batch, features = entries.shape
    if lengths is not None and not (is_constant(lengths) and lengths.shape == (batch,) and (lengths == steps).all()):
        raise WeightsError("has sequence_lens, lengths of the sequences; here all images are read to the end.")
    if peepholes is not None and kind == "LSTM":
        raise WeightsError("has peepholes (P), which this classifier does not.")
    for state in states if kind == "LSTM" else states[:1]:
        if state is not None and (isinstance(state, Signal) or state.any()):
            raise WeightsError("does not start from states of zero (initial_h, initial_c), as this classifier does.")
    cells = _cells(kind, directions, kernel, recurrent_kernel, bias, attributes)
    hidden = recurrent_kernel.shape[-1]
    if kernel.shape[2] != features:
        raise ValueError(f"it takes {kernel.shape[2]} features, and its input has {features}")
    if attributes.get("hidden_size", hidden) != hidden:
        raise ValueError(f"its hidden_size is {attributes['hidden_size']}, and its weights are of {hidden}")
    before = trace.source(entries)
    if before.kind not in ("images", "affine"):
        if before.kind != "layer" or len(entries) != before.shape[0]:
            raise WeightsError("does not read the outputs of the layer before at all steps.")
        expected = before.entries.transpose(0, 2, 1, 3).reshape(before.shape[0], before.shape[2], -1)
        if not np.array_equal(entries, expected):
            raise WeightsError("reads the outputs of the layer before in another order.")
    data = Layer(kind.lower(), functions, place.name, cells)
    outputs = trace.new("layer", (steps, directions, batch, hidden), place.text, entries, data).entries
    final = final_states(outputs)
    if by_batch:
        outputs, final = outputs.transpose(2, 0, 1, 3), final.swapaxes(0, 1)
    return Signal(outputs), Signal(final), *[Unread("the cell state of an LSTM")] * (kind == "LSTM")


def final_states(outputs: np.ndarray) -> np.ndarray:
    """[directions, batch, hidden] of [time, directions, batch, hidden]: what each direction gives when it has read all."""
    return np.concatenate([outputs[-1, :1], outputs[0, 1:]])


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
