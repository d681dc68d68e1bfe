"""Flax: the parameter trees of Linen's and NNX's LSTM and GRU cells with dense layers, as nested dictionaries.

Linen's LSTMCell and OptimizedLSTMCell, and NNX's LSTMCell, keep a matrix for each gate: ii, if, ig, io for the inputs,
hi, hf, hg, ho with biases for the state (NNX writes if_). So does Linen's GRUCell: ir, iz, in with biases, hr, hz, and
hn with a bias. NNX's OptimizedLSTMCell and GRUCell keep them together, in the order i, f, g, o and r, z, n, as this
package does: dense_i, dense_h.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.assembly import Arrays, Place, assemble, natural
from lstm_mnist_jax.interop.imported import Imported
from lstm_mnist_jax.interop.weights import GATES, Direction, direction, from_params, to_params
from lstm_mnist_jax.model import Params

Kind = Literal["linen", "nnx"]

FUSED = ("dense_i/kernel", "dense_h/kernel", "dense_h/bias", "dense_i/bias")
LSTM_PARTS = tuple(
    pattern.format(gate) for pattern in ("i{}/kernel", "h{}/kernel", "h{}/bias") for gate in GATES["lstm"]
)
GRU_PARTS = (*(pattern.format(gate) for pattern in ("i{}/kernel", "h{}/kernel", "i{}/bias") for gate in GATES["gru"]),)
GRU_PARTS = (*GRU_PARTS, "hn/bias")
FORMS = (
    *(FUSED[:2], FUSED[:3], (*FUSED[:2], FUSED[3]), FUSED),
    *(LSTM_PARTS[:8], LSTM_PARTS, GRU_PARTS[:6], GRU_PARTS),
)

LINEN_CELLS = {"lstm": "OptimizedLSTMCell", "gru": "GRUCell"}


def to_tree(params: Params, kind: Kind = "linen") -> dict[str, Any]:
    """The parameters as a tree of Flax.

    Args:
      params: the model's parameters.
      kind: "linen" gives {"params": {"OptimizedLSTMCell_0": ..., "Dense_0": ...}}, the tree of a compact module of
        `nn.RNN(nn.OptimizedLSTMCell(n))`s (or LSTMCells, or GRUCells) and `nn.Dense`s, the output layer last; of both
        directions, each layer has two cells, as `nn.Bidirectional(nn.RNN(...), nn.RNN(...))` makes them, and attention
        pooling is the `nn.Dense` called attention. "nnx" gives {"rnn": {"layers": {0: {"cell": ...}}}, "dense": ...},
        the tree of `lstm_mnist_jax.model.Classifier`.
    """
    weights = from_params(params)
    if kind == "nnx":
        return to_params(weights)
    cells = [_linen_cell(direction) for layer in weights.layers for direction in layer.directions]
    tree: dict[str, Any] = {f"{LINEN_CELLS[weights.cell]}_{number}": cell for number, cell in enumerate(cells)}
    if weights.attention is not None:
        tree["attention"] = {"kernel": weights.attention}
    return {"params": tree | {f"Dense_{number}": layer._asdict() for number, layer in enumerate(weights.dense)}}


def _linen_cell(direction: Direction) -> dict[str, Any]:
    gates = GATES[direction.cell]
    kernels, recurrent_kernels, biases = (np.split(array, len(gates), axis=-1) for array in direction[:3])
    cell: dict[str, Any] = {f"i{gate}": {"kernel": kernel} for gate, kernel in zip(gates, kernels, strict=True)}
    cell |= {f"h{gate}": {"kernel": kernel} for gate, kernel in zip(gates, recurrent_kernels, strict=True)}
    if direction.cell == "gru":
        second = np.zeros_like(direction.bias) if direction.recurrent_bias is None else direction.recurrent_bias
        *of_sigmoids, cell["hn"]["bias"] = np.split(second, 3)
        biases = [*(a + b if b.any() else a for a, b in zip(biases, of_sigmoids, strict=False)), biases[2]]
    for gate, bias in zip(gates, biases, strict=True):
        cell[f"{'h' if direction.cell == 'lstm' else 'i'}{gate}"]["bias"] = bias
    return cell


def from_tree(tree: Any, order: Sequence[str] = (), *, input_activation: str | None = None) -> Params:
    """The model's parameters from a tree of Flax. The modules may have any names.

    Args:
      tree: nested dictionaries of arrays, with LSTM or GRU cells of Linen or NNX and dense layers: the result of
        Linen's `init`, or of `nnx.state(module, nnx.Param)`. The layers are in the order of their numbers.
      order: see `lstm_mnist_jax.interop.torch.from_state_dict`, also for what a tree does not hold.
      input_activation: see there.

    Raises:
      WeightsError: it is of another network.
    """
    leaves = flatten(nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree)
    return from_arrays(leaves, order, input_activation).unfolded


def from_arrays(found: Arrays, order: Sequence[str] = (), input_activation: str | None = None) -> Imported:
    """The classifier in arrays by their keys, joined by "/"; for the arguments see `assemble`. Raises WeightsError."""
    found = {name: array for name, array in found.items() if not name.startswith("opt_state/")}  # of a TrainState
    cells = {scope for name in found if (scope := _cell_of(name)[0])}
    pairs = _pairs(found, cells)
    readings: list[Imported] = []
    for directions in [{}, pairs] if pairs else [{}]:
        try:
            readings.append(_assembled(found, directions, order, input_activation))
        except WeightsError as error:
            refusal = error
    if not readings:
        raise refusal
    if len(readings) == 2:  # the widths fit to two layers, and to the two directions of one
        readings = [imported for imported in readings if imported.weights.steps is None]
    if len(readings) == 1:
        return readings[0]
    first, second = pairs
    raise WeightsError(
        f"The cells {first} and {second} may be two layers, or the two directions of one. For two layers, give "
        f"--layer {first} --layer {second}; for one, give --layer '{pairs[first][0]}'."
    )


def _assembled(
    found: Arrays,
    pairs: Mapping[str, tuple[str, bool]],
    order: Sequence[str],
    input_activation: str | None,
) -> Imported:
    def place_of(name: str) -> Place | None:
        cell, part = _cell_of(name)
        layer, backward = pairs.get(cell) or _direction_of(cell)
        return Place(layer, part, backward) if cell else None

    imported = assemble(found, place_of, FORMS, _direction, order=order, input_activation=input_activation)
    notes = [f"{layer} are taken for the two directions of one layer" for layer, backward in pairs.values() if backward]
    return replace(imported, notes=(*imported.notes, *notes))


def _cell_of(name: str) -> tuple[str, str]:
    """The cell and the part of an array; ("", "") of others."""
    scope, _, parameter = name.rpartition("/")
    scope, _, module = scope.rpartition("/")
    part = f"{module.rstrip('_')}/{parameter}"
    return (scope, part) if any(part in form for form in FORMS) else ("", "")


def _direction_of(cell: str) -> tuple[str, bool]:
    """The layer of a cell, and whether it reads backwards, where the tree names the directions as `Bidirectional`."""
    match = re.fullmatch(r"(.*?)/?\b(forward|backward)_rnn(/.*|)", cell)
    return (cell, False) if match is None else (match[1] or "rnn", match[2] == "backward")


def _pairs(found: Arrays, cells: set[str]) -> dict[str, tuple[str, bool]]:
    """The layers and directions of numbered cells of Linen that are two to a layer, by their widths; else none."""
    names = sorted(cells, key=natural)
    if not names or len(names) % 2 or len({re.sub(r"\d+", "", name) for name in names}) > 1:
        return {}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in names}
    for name, array in found.items():
        cell, part = _cell_of(name)
        if cell and part.endswith("kernel") and len(array.shape) == 2:
            shapes[cell][part[0]] = array.shape  # of any gate: i, h; or d of cells of NNX, whose trees name directions
    if not all(parts.keys() == {"i", "h"} for parts in shapes.values()):
        return {}
    widths = [(parts["i"][0], parts["h"][0]) for parts in shapes.values()]
    first, second = widths[::2], widths[1::2]
    if first != second or any(2 * below[1] != above[0] for below, above in itertools.pairwise(first)):
        return {}
    layers = [f"{forward} and {backward}" for forward, backward in zip(names[::2], names[1::2], strict=True)]
    return {name: (layers[number // 2], bool(number % 2)) for number, name in enumerate(names)}


def _direction(name: str, arrays: dict[str, np.ndarray]) -> Direction:
    if "dense_i/kernel" in arrays:
        found = direction(name, *(arrays.get(part) for part in (*FUSED[:2], FUSED[3], FUSED[2])))  # type: ignore[arg-type]
        if "dense_i/bias" in arrays and found.recurrent_kernel.shape[-1] == 4 * len(found.recurrent_kernel):
            raise WeightsError(
                f"The layer {name} has the biases of another cell than nnx.OptimizedLSTMCell, such as a UR-LSTM."
            )
        return found
    gates = GATES["gru" if "ir/kernel" in arrays else "lstm"]
    joined: list[Any] = []
    for kind, parameter in (("i", "kernel"), ("h", "kernel"), ("i", "bias"), ("h", "bias")):
        of_kind = [arrays[part] for gate in gates if (part := f"{kind}{gate}/{parameter}") in arrays]
        if len({gate.shape for gate in of_kind}) > 1 or (of_kind and not of_kind[0].ndim):
            raise WeightsError(f"The gates of the layer {name} are of different shapes.")
        if len(of_kind) == 1:  # the second bias of a GRU's candidate alone
            of_kind = [*2 * [np.zeros_like(of_kind[0])], *of_kind]
        joined.append(np.concatenate(of_kind, axis=-1) if of_kind else None)
    return direction(name, *joined)


def flatten(tree: Mapping[Any, Any], separator: str = "/") -> dict[str, Any]:
    """The leaves of nested dictionaries, by their joined keys."""
    return {separator.join(map(str, path)): leaf for path, leaf in flatten_dict(tree).items()}
