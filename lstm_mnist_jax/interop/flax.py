"""Flax: the parameter trees of Linen's and NNX's LSTM cells with dense layers, as nested dictionaries.

Linen's LSTMCell and OptimizedLSTMCell, and NNX's LSTMCell, keep a matrix for each gate: ii, if, ig, io for the inputs,
hi, hf, hg, ho with biases for the state (NNX writes if_). NNX's OptimizedLSTMCell keeps them together, in the order
i, f, g, o, as this package does: dense_i, dense_h.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.weights import GATES, Arrays, Imported, Layer, assemble, from_params, to_params
from lstm_mnist_jax.model import Params

Kind = Literal["linen", "nnx"]

FUSED = ("dense_i/kernel", "dense_h/kernel", "dense_h/bias")
PER_GATE = tuple(pattern.format(gate) for pattern in ("i{}/kernel", "h{}/kernel", "h{}/bias") for gate in GATES)


def to_tree(params: Params, kind: Kind = "linen") -> dict[str, Any]:
    """The parameters as a tree of Flax.

    Args:
      params: the model's parameters.
      kind: "linen" gives {"params": {"OptimizedLSTMCell_0": ..., "Dense_0": ...}}, the tree of a compact module of
        `nn.RNN(nn.OptimizedLSTMCell(n))`s (or LSTMCells) and `nn.Dense`s, the output layer last; "nnx" gives {"rnn":
        {"layers": {0: {"cell": ...}}}, "dense": ...}, the tree of `lstm_mnist_jax.model.Classifier`.
    """
    if kind == "nnx":
        return to_params(from_params(params))
    weights = from_params(params)
    tree: dict[str, Any] = {}
    for number, layer in enumerate(weights.layers):
        kernels, recurrent_kernels, biases = (np.split(array, 4, axis=-1) for array in layer)
        cell = {f"i{gate}": {"kernel": kernel} for gate, kernel in zip(GATES, kernels, strict=True)}
        for gate, kernel, bias in zip(GATES, recurrent_kernels, biases, strict=True):
            cell[f"h{gate}"] = {"kernel": kernel, "bias": bias}
        tree[f"OptimizedLSTMCell_{number}"] = cell
    return {"params": tree | {f"Dense_{number}": layer._asdict() for number, layer in enumerate(weights.dense)}}


def from_tree(tree: Any, order: Sequence[str] = (), *, input_activation: str | None = None) -> Params:
    """The model's parameters from a tree of Flax. The modules may have any names.

    Args:
      tree: nested dictionaries of arrays, with LSTM cells of Linen or NNX and dense layers: the result of Linen's
        `init`, or of `nnx.state(module, nnx.Param)`. The layers are in the order of their numbers. The activation of
        hidden dense layers is not in a tree: it is `dense_activation` of the `ModelConfig`.
      order: the names of all layers, where neither names nor widths determine the order of the dense layers.
      input_activation: "linear" confirms that no activation follows a dense layer before the LSTM layers, which is
        folded into the first of them.

    Raises:
      WeightsError: it is of another network.
    """
    leaves = flatten(nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree)
    return to_params(from_arrays(leaves, order, input_activation).weights)


def from_arrays(found: Arrays, order: Sequence[str] = (), input_activation: str | None = None) -> Imported:
    """The classifier in arrays by their keys, joined by "/"; for the arguments see `assemble`. Raises WeightsError."""
    found = {name: array for name, array in found.items() if not name.startswith("opt_state/")}  # of a TrainState
    options: dict[str, Any] = {"order": order, "input_activation": input_activation}
    return assemble(found, _place_of, [FUSED[:2], FUSED, PER_GATE[:8], PER_GATE], _layer, **options)


def _place_of(name: str) -> tuple[str, str] | None:
    """The cell and the part of an array."""
    scope, _, parameter = name.rpartition("/")
    scope, _, module = scope.rpartition("/")
    part = f"{module.rstrip('_')}/{parameter}"
    return (scope, part) if part in FUSED or part in PER_GATE else None


def _layer(name: str, arrays: dict[str, np.ndarray]) -> Layer:
    parts = list(arrays.values())
    if len(parts) > len(FUSED):
        gates = [parts[start : start + 4] for start in range(0, len(parts), 4)]
        if any(len({gate.shape for gate in part}) > 1 or not part[0].ndim for part in gates):
            raise WeightsError(f"The gates of the LSTM layer {name} are of different shapes.")
        parts = [np.concatenate(part, axis=-1) for part in gates]
    kernel, recurrent_kernel, *bias = parts
    return Layer(kernel, recurrent_kernel, bias[0] if bias else np.zeros(kernel.shape[-1:], np.float32))


def flatten(tree: Mapping[Any, Any], separator: str = "/") -> dict[str, Any]:
    """The leaves of nested dictionaries, by their joined keys."""
    return {separator.join(map(str, path)): leaf for path, leaf in flatten_dict(tree).items()}
