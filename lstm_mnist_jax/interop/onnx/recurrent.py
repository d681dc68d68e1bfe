"""ONNX's LSTM and GRU operators as layers of the classifier."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.export import ONNX_ACTIVATIONS, ONNX_GATES
from lstm_mnist_jax.interop.onnx.signals import Place, Signal, Unread
from lstm_mnist_jax.interop.weights import GATES, Layer, direction
from lstm_mnist_jax.rnn.weights import reorder_gates

if TYPE_CHECKING:
    from lstm_mnist_jax.interop.onnx.trace import Trace

ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}

DEFAULTS = {"hardsigmoid": (0.2, 0.5), "affine": (1.0, 0.0)}
"""ONNX's activations that have alpha and beta."""

HARD_SIGMOIDS = "hard_sigmoid_keras2", "hard_sigmoid_keras3"
GATE_FUNCTIONS, CELL_FUNCTIONS = ("sigmoid", *HARD_SIGMOIDS), ("tanh", "relu", "linear", *HARD_SIGMOIDS)


class NamedLayer(NamedTuple):
    """A recurrent layer, the name of its node, and its activations of the gates and of the cell, as in a config."""

    weights: Layer
    name: str
    activations: tuple[str, str]


def layer(trace: "Trace", attributes: dict[str, Any], inputs: list[Any], place: Place) -> Any:
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


def _check_options(kind: str, attributes: dict[str, Any]) -> tuple[int, tuple[str, str]]:
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
