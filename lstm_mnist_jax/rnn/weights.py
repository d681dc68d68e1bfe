"""The weights of a recurrent layer from and to PyTorch (`state_dict`) and Keras (`get_weights`), as arrays.

| order of the gates | LSTM | GRU |
| --- | --- | --- |
| here and in PyTorch | i, f, g, o | r, z, n |
| in Keras | i, f, c, o (c is g) | z, r, h (h is n) |

PyTorch's matrices are the transposes of the kernels here, Keras's are the kernels. Neither library is imported.

The weights of one cell are a dictionary: `kernel` [in, gates * hidden], `recurrent_kernel` [output, gates * hidden]
and, where the cell has them, `bias` and `recurrent_bias` [gates * hidden], `projection` [hidden, output].
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lstm_mnist_jax.rnn.cells import GRUCell, ProjectedLSTMCell
from lstm_mnist_jax.rnn.stack import StackedRNN

GATES: dict[Any, str] = {
    nnx.OptimizedLSTMCell: "ifgo",
    ProjectedLSTMCell: "ifgo",
    nnx.GRUCell: "rzn",
    GRUCell: "rzn",
}
"""The cells whose weights PyTorch and Keras have, and the order of their gates."""

KERAS_GATES = {"ifgo": "ifgo", "rzn": "zrn"}
"""Keras's orders of the gates, in this package's letters."""

TORCH_NAME = re.compile(r"((?:.*\.)?)(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l(\d+)(_reverse)?")

FROM_TORCH = {
    "weight_ih": "kernel",
    "weight_hh": "recurrent_kernel",
    "bias_ih": "bias",
    "bias_hh": "recurrent_bias",
    "weight_hr": "projection",
}
"""PyTorch's arrays of a cell, in its order, and what is called so here."""

MAX_NAMES = 12
"""How many names a message lists."""


class Cell(NamedTuple):
    """One cell of a layer.

    Attributes:
      name: what messages call it, such as "the cell at .layers[0].cell".
      layer: the number of its layer, from 0.
      backward: whether it is the second one of a bidirectional layer.
      module: the cell itself.
      gates: the order of its gates.
      params: its parameters, by the names of the weights.
      sizes: of its axes, by what messages call them: "in", "hidden", "4 hidden" and so on.
    """

    name: str
    layer: int
    backward: bool
    module: Any
    gates: str
    params: dict[str, Any]
    sizes: dict[str, int]


def load_torch(layer: nnx.Module, state_dict: Mapping[str, Any], *, prefix: str | None = None) -> None:
    """Sets the weights of a layer to those of a `torch.nn.LSTM` or `torch.nn.GRU`. PyTorch is not needed.

    The names and shapes of layer l are those of PyTorch (https://pytorch.org/docs/stable/generated/torch.nn.LSTM.html
    and torch.nn.GRU.html), with the rows in the order of gates i, f, g, o or r, z, n: `weight_ih_l{l}`
    [gates * hidden, in], `weight_hh_l{l}` [gates * hidden, output], `bias_ih_l{l}` and `bias_hh_l{l}` [gates * hidden],
    `weight_hr_l{l}` [projection, hidden], and the same with `_reverse` of the backward direction.

    Layers of different widths are several modules in PyTorch, with the names of an `nn.ModuleList`: `0.weight_ih_l0`,
    `1.weight_ih_l0` and so on. Layers of one width are read in this form as well.

    An LSTM's two biases are added. A GRU's are kept apart, except in an `nnx.GRUCell`, which has one: there those of r
    and z are added, and the recurrent bias of n must be zero.

    Args:
      layer: an `LSTM`, a `GRU`, another `StackedRNN`, an `RNN` or an `nnx.Bidirectional` of two, whose cells are
        `nnx.OptimizedLSTMCell`s, `ProjectedLSTMCell`s, `nnx.GRUCell`s or `GRUCell`s. Its parameters are set in place,
        in their own dtype.
      state_dict: float arrays by name: NumPy's, JAX's, or tensors that `numpy.asarray` converts (detached, on the CPU).
        The values may be infinite or NaN.
      prefix: what stands before the names, such as "encoder.lstm"; names without it are ignored, which selects one
        layer of a whole model. "" is none. None finds the prefix, if all names have the same.

    Raises:
      ValueError: a name is missing or left over, an array has another shape, is not of floats or exceeds the range of
        the parameter's dtype, several prefixes are found, or PyTorch has no such layer. The layer is unchanged.

    Examples:
      >>> import numpy as np
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import LSTM, load_torch
      >>> shapes = {"weight_ih_l0": (32, 3), "weight_hh_l0": (32, 8), "bias_ih_l0": (32,), "bias_hh_l0": (32,)}
      >>> state_dict = {f"lstm.{name}": np.ones(shape) for name, shape in shapes.items()}
      >>> lstm = LSTM(3, 8, rngs=nnx.Rngs(0))
      >>> load_torch(lstm, state_dict)
      >>> lstm.layers[0].cell.dense_i.kernel.shape, float(lstm.layers[0].cell.dense_h.bias[0])
      ((3, 32), 2.0)
    """
    cells = _cells_for_torch("load_torch", layer)
    if not isinstance(state_dict, Mapping):
        way = "its state_dict()" if hasattr(state_dict, "state_dict") else "a dictionary of arrays by name"
        raise ValueError(f"load_torch reads {way}; got {type(state_dict).__name__}.")
    found = {str(name): array for name, array in state_dict.items()}
    new = []
    for cell, names in zip(cells, _torch_names(layer, cells, found, prefix), strict=True):
        own = {}
        for kind, axes in _torch_axes(cell).items():
            own[FROM_TORCH[kind]] = _checked("load_torch", names[kind], found[names[kind]], axes, cell).T
        if cell.gates == "ifgo" and "bias" in own:
            with np.errstate(all="ignore"):
                own["bias"] = own["bias"] + own.pop("recurrent_bias")
        new.append(own)
    _set("load_torch", cells, new)


def to_torch(layer: nnx.Module, *, prefix: str = "") -> dict[str, np.ndarray]:
    """The weights of a layer as the state_dict of a `torch.nn.LSTM` or `torch.nn.GRU`, of NumPy arrays.

        module.load_state_dict({name: torch.from_numpy(array) for name, array in to_torch(layer).items()})

    An LSTM and an `nnx.GRUCell` have one bias: it is `bias_ih`, and `bias_hh` is zero.

    Args:
      layer: as for `load_torch`.
      prefix: what to put before the names, such as "encoder.lstm".

    Returns:
      New arrays by name: see `load_torch` for names and shapes. The dtype is that of the parameters; bfloat16, which
      NumPy does not have, becomes float32. Layers of different widths have the names of an `nn.ModuleList`:
      `0.weight_ih_l0`, `1.weight_ih_l0` and so on.

    Raises:
      ValueError: PyTorch has no such layer: a GRU with `reset_after=False`, a cell with activations of its own.

    Examples:
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import GRU, to_torch
      >>> gru = GRU(3, 8, bidirectional=True, use_bias=False, rngs=nnx.Rngs(0))
      >>> {name: array.shape for name, array in to_torch(gru).items()}  # doctest: +NORMALIZE_WHITESPACE
      {'weight_ih_l0': (24, 3), 'weight_hh_l0': (24, 8),
       'weight_ih_l0_reverse': (24, 3), 'weight_hh_l0_reverse': (24, 8)}
    """
    cells, start = _cells_for_torch("to_torch", layer), _with_dot(prefix)
    one_module = len({cell.sizes["hidden"] for cell in cells}) == 1
    arrays = {}
    for cell in cells:
        weights = _weights_of("to_torch", cell)
        if "bias" in weights:
            weights.setdefault("recurrent_bias", np.zeros_like(weights["bias"]))
        module, number = (start, cell.layer) if one_module else (f"{start}{cell.layer}.", 0)
        for kind in _torch_axes(cell):
            name = _torch_name(module, kind, number, cell.backward)
            arrays[name] = np.ascontiguousarray(weights[FROM_TORCH[kind]].T)
    return arrays


def load_keras(layer: nnx.Module, weights: Sequence[Any]) -> None:
    """Sets the weights of a layer to those of Keras's `LSTM` or `GRU` layers. Keras is not needed.

    Each Keras layer (https://keras.io/api/layers/recurrent_layers/lstm/ and .../gru/) has the arrays `kernel`
    [in, gates * hidden], `recurrent_kernel` [hidden, gates * hidden] and, with `use_bias`, `bias`: [4 hidden] of an
    LSTM, [2, 3 hidden] of a GRU with `reset_after=True`, Keras's default, and [3 hidden] of one with
    `reset_after=False`. The gates are in Keras's order: i, f, c, o or z, r, h. A `Bidirectional` layer has the arrays
    of the forward layer, then those of the backward layer.

    The list does not hold Keras's activations, its `merge_mode` and, without biases, its `reset_after`: make the layer
    with the same. `LSTM` and `GRU` have sigmoid and tanh, and concatenate the directions.

    Args:
      layer: as for `load_torch`, without projections. Its parameters are set in place, in their own dtype.
      weights: of one Keras layer, what its `get_weights()` returns. Of several, from the input to the output, either a
        list with these lists, or one list with all their arrays, as `keras.Sequential(...).get_weights()` returns.
        The values may be infinite or NaN.

    Raises:
      ValueError: there are too few or too many arrays, an array has another shape, is not of floats or exceeds the
        range of the parameter's dtype, or Keras has no such layer. The layer is unchanged.

    Examples:
      >>> import numpy as np
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import LSTM, load_keras
      >>> lstm = LSTM(3, 8, rngs=nnx.Rngs(0))
      >>> load_keras(lstm, [np.ones((3, 32)), np.ones((8, 32)), np.ones(32)])
      >>> float(lstm.layers[0].cell.dense_h.bias[0])
      1.0
    """
    cells = _cells_for_keras("load_keras", layer)
    arrays = _keras_arrays(cells, weights)
    new = []
    for cell in cells:
        own = {}
        for part, axes in _keras_axes(cell).items():
            name = f"{part} of {cell.name}"
            array = _checked("load_keras", name, arrays[name], axes, cell)
            own[part] = reorder_gates(array, KERAS_GATES[cell.gates], cell.gates)
        if "bias" in own and own["bias"].ndim == 2:
            own["bias"], own["recurrent_bias"] = own["bias"]
        new.append(own)
    _set("load_keras", cells, new)


def to_keras(layer: nnx.Module) -> list[np.ndarray]:
    """The weights of a layer as the list that `set_weights` of Keras's `LSTM`, `GRU` or `Bidirectional` takes.

    Of several layers, the list is that of a `keras.Sequential` of them.

    Args:
      layer: as for `load_keras`.

    Returns:
      New arrays: see `load_keras` for their order and shapes, `to_torch` for their dtype.

    Raises:
      ValueError: Keras has no such layer: an LSTM with a projection.

    Examples:
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import GRU, to_keras
      >>> gru = GRU(3, 8, rngs=nnx.Rngs(0))
      >>> [array.shape for array in to_keras(gru)]
      [(3, 24), (8, 24), (2, 24)]
    """
    arrays = []
    for cell in _cells_for_keras("to_keras", layer):
        weights = _weights_of("to_keras", cell)
        if "bias" in weights and _has_two_keras_biases(cell):
            bias = weights["bias"]
            weights["bias"] = np.stack([bias, weights.get("recurrent_bias", np.zeros_like(bias))])
        arrays += [reorder_gates(weights[part], cell.gates, KERAS_GATES[cell.gates]) for part in _keras_axes(cell)]
    return arrays


def reorder_gates(array: np.ndarray, order: str, new_order: str) -> np.ndarray:
    """Columns [..., gates * hidden] from one order of the gates to another, such as "ifgo", as a new array."""
    gates = dict(zip(order, np.split(array, len(order), axis=-1), strict=True))
    return np.concatenate([gates[gate] for gate in new_order], axis=-1)


def _cells(function: str, layer: Any) -> list[Cell]:
    """The cells of a layer, the forward one of each layer first."""
    stacked = isinstance(layer, StackedRNN)
    cells = []
    for number, part in enumerate(layer.layers if stacked else [layer]):
        path = f".layers[{number}]" if stacked else ""
        directions = {path: part}
        if isinstance(part, nnx.Bidirectional):
            directions = {f"{path}.forward_rnn": part.forward_rnn, f"{path}.backward_rnn": part.backward_rnn}
        for backward, (rnn_path, rnn) in enumerate(directions.items()):
            if not isinstance(rnn, nnx.RNN):
                way = "give RNN(cell)" if isinstance(rnn, nnx.RNNCellBase) else "of a model, give the layer itself"
                raise ValueError(
                    f"{function} takes an LSTM, a GRU, a StackedRNN, an RNN or an nnx.Bidirectional of RNNs; got "
                    f"{type(rnn).__name__}: {way}."
                )
            cells.append(_cell(function, rnn.cell, f"the cell at {rnn_path}.cell", number, bool(backward)))
    return cells


def _cell(function: str, module: Any, name: str, layer: int, backward: bool) -> Cell:
    """Describes a cell. Refuses those that PyTorch and Keras do not have."""
    if type(module) not in GATES:
        known = [f"{'nnx.' * kind.__module__.startswith('flax')}{kind.__name__}" for kind in GATES]
        raise ValueError(
            f"{function}: PyTorch and Keras have no {type(module).__name__}, as {name} is; expected {', '.join(known)}."
        )
    linears = {part: getattr(module, part) for part in ("dense_i", "dense_h", "dense_p") if hasattr(module, part)}
    for part, linear in linears.items():
        if type(linear) is not nnx.Linear or len(linear.kernel.shape) != 2:
            shape = f" with a kernel of shape {linear.kernel.shape}" if hasattr(linear, "kernel") else ""
            raise ValueError(
                f"{function} expected {part} of {name} to be an nnx.Linear with a matrix; got "
                f"{type(linear).__name__}{shape}. Load or save the weights before it is replaced or mapped (nnx.vmap)."
            )
    params = {"kernel": module.dense_i.kernel, "recurrent_kernel": module.dense_h.kernel}
    biases = [bias for bias in (module.dense_i.bias, module.dense_h.bias) if bias is not None]
    params |= zip(("bias", "recurrent_bias"), biases, strict=False)
    if "dense_p" in linears:
        params["projection"] = module.dense_p.kernel
    gates, hidden = GATES[type(module)], module.hidden_features
    inputs, outputs = (params[name].shape[0] for name in ("kernel", "recurrent_kernel"))
    sizes = {"2": 2, "in": inputs, "hidden": hidden, "projection": outputs, f"{len(gates)} hidden": len(gates) * hidden}
    return Cell(name, layer, backward, module, gates, params, sizes)


def _cells_for_torch(function: str, layer: Any) -> list[Cell]:
    cells = _cells(function, layer)
    for cell in cells:
        if not getattr(cell.module, "reset_after", True):
            raise ValueError(
                f"{function}: {cell.name} has reset_after=False: its reset gate multiplies h before the product, and "
                f"that of torch.nn.GRU multiplies the product. Use GRU(reset_after=True), the default."
            )
        functions = [getattr(cell.module, "gate_fn", nnx.sigmoid), getattr(cell.module, "activation_fn", nnx.tanh)]
        if functions != [nnx.sigmoid, nnx.tanh]:
            raise ValueError(
                f"{function}: {cell.name} has a gate_fn or an activation_fn of its own; PyTorch's are sigmoid and tanh."
            )
    return cells


def _cells_for_keras(function: str, layer: Any) -> list[Cell]:
    cells = _cells(function, layer)
    for cell in cells:
        if "projection" in cell.params:
            raise ValueError(
                f"{function}: {cell.name} has projection_features, which Keras's LSTM does not have. Use an LSTM "
                f"without them, or torch.nn.LSTM's proj_size with load_torch and to_torch."
            )
    return cells


def _torch_axes(cell: Cell) -> dict[str, str]:
    """PyTorch's arrays of a cell by kind, and what their axes are called."""
    rows = f"{len(cell.gates)} hidden"
    axes = {"weight_ih": f"{rows}, in", "weight_hh": f"{rows}, hidden"}
    if "bias" in cell.params:
        axes |= {"bias_ih": rows, "bias_hh": rows}
    if "projection" in cell.params:
        axes |= {"weight_hh": f"{rows}, projection", "weight_hr": "projection, hidden"}
    return axes


def _keras_axes(cell: Cell) -> dict[str, str]:
    """Keras's arrays of a cell by name, and what their axes are called."""
    columns = f"{len(cell.gates)} hidden"
    axes = {"kernel": f"in, {columns}", "recurrent_kernel": f"hidden, {columns}"}
    if "bias" in cell.params:
        axes["bias"] = f"2, {columns}" if _has_two_keras_biases(cell) else columns
    return axes


def _has_two_keras_biases(cell: Cell) -> bool:
    """Whether this is a GRU whose reset gate multiplies the recurrent product, which has a bias of its own."""
    return cell.gates == "rzn" and getattr(cell.module, "reset_after", True)


def _torch_cells(names: Iterable[str]) -> dict[tuple[str, int, bool], dict[str, str]]:
    """The cells in a state_dict, by module, layer and whether they are backward: the names of their arrays by kind."""
    cells: dict[tuple[str, int, bool], dict[str, str]] = {}
    for name in names:
        if match := TORCH_NAME.fullmatch(name):
            module, kind, number, reverse = match.groups()
            cells.setdefault((module, int(number), reverse is not None), {})[kind] = name
    return cells


def _torch_name(module: str, kind: str, number: int, backward: bool) -> str:
    return f"{module}{kind}_l{number}{'_reverse' * backward}"


def _torch_names(layer: Any, cells: list[Cell], found: Iterable[str], prefix: str | None) -> list[dict[str, str]]:
    """For each cell, the names of its arrays in the state_dict, by kind. All of them are in `found`."""
    depth = cells[-1].layer + 1
    modules = list(dict.fromkeys(module for module, _, _ in _torch_cells(found)))
    lists = {re.sub(r"\d+\.$", "", module) for module in modules}
    starts = [*lists] if depth > 1 and len(lists) == 1 < len(modules) else modules  # of an nn.ModuleList, or of each
    if prefix is None and not starts:
        raise ValueError(
            f"load_torch found no weight_ih_l0 in the state_dict, which has {_listed(found)}. Give that of a "
            f"torch.nn.LSTM or torch.nn.GRU."
        )
    if prefix is None and len(starts) > 1:
        raise ValueError(
            f"load_torch found the weights of several modules: {_listed(map(repr, starts))}. Choose one: "
            f"prefix={starts[0]!r}."
        )
    start = starts[0] if prefix is None else _with_dot(prefix)
    to_read = [name for name in found if prefix is None or name.startswith(start)]
    if not to_read:
        raise ValueError(
            f"load_torch found no names that start with {start!r} in the state_dict; there are "
            f"{_listed(map(repr, starts) if starts else found)}."
        )
    inner = [module.removeprefix(start).removesuffix(".") for module in modules if module.startswith(start)]
    numbers = sorted(int(name) for name in inner if name.isdecimal())
    if not numbers:
        places = [(start, number) for number in range(depth)]
    else:
        places = [(f"{start}{number}.", 0) for number in (numbers if len(numbers) == depth else range(depth))]
    names = []
    for cell in cells:
        module, number = places[cell.layer]
        names.append({kind: _torch_name(module, kind, number, cell.backward) for kind in _torch_axes(cell)})
    expected = [name for part in names for name in part.values()]
    missing = [name for name in expected if name not in to_read]
    left_over = [name for name in to_read if name not in expected]
    if not missing and not left_over:
        return names
    own, theirs = _arguments(expected), _arguments(to_read)
    hint = "" if missing else " Leave out what is not of this layer."
    if not missing and not any(name.startswith(start) for name in left_over):
        hint = f" prefix={start!r} reads only the names that start with it."
    elif own != theirs and all(name.isdecimal() or not name for name in inner):
        differing = [argument for argument, of_layer in zip(theirs, own, strict=True) if argument != of_layer]
        hint = f" It is of a layer with {', '.join(differing)}: use such a layer."
    parts = [f"missing {_listed(missing)}"] * bool(missing) + [f"left over {_listed(left_over)}"] * bool(left_over)
    raise ValueError(
        f"load_torch: the state_dict does not fit this {type(layer).__name__} ({', '.join(own)}): "
        f"{'; '.join(parts)}.{hint}"
    )


def _arguments(names: Iterable[str]) -> list[str]:
    """The arguments of `LSTM` and `GRU` that decide which names a layer has in a state_dict."""
    cells = _torch_cells(names)
    layers = len({(module, number) for module, number, _ in cells})
    kinds = {kind for cell in cells.values() for kind in cell}
    return [
        f"hidden_features for {layers} layer{'s' * (layers != 1)}",
        f"bidirectional={any(backward for _, _, backward in cells)}",
        f"use_bias={'bias_ih' in kinds}",
        f"{'' if 'weight_hr' in kinds else 'no '}projection_features",
    ]


def _keras_arrays(cells: list[Cell], weights: Any) -> dict[str, Any]:
    """The arrays of all cells, by what messages call them."""
    if isinstance(weights, str | Mapping) or not isinstance(weights, Sequence):
        way = "its get_weights()" if hasattr(weights, "get_weights") else "a list of arrays, as get_weights() returns"
        raise ValueError(f"load_keras reads {way}; got {type(weights).__name__}.")
    flat = [array for part in weights for array in (part if isinstance(part, list | tuple) else [part])]
    names = [f"{part} of {cell.name}" for cell in cells for part in _keras_axes(cell)]
    if len(flat) != len(names):
        hint = " Leave out the arrays of other layers, such as Dense." if len(flat) > len(names) else ""
        if len(flat) == 2 * len(cells):
            hint = " Without biases, use LSTM or GRU with use_bias=False."
        shapes = [str(getattr(array, "shape", type(array).__name__)) for array in flat]
        raise ValueError(
            f"load_keras expected {len(names)} arrays, of each layer and direction {', '.join(_keras_axes(cells[0]))}; "
            f"got {len(flat)}, of shapes {_listed(shapes)}.{hint}"
        )
    return dict(zip(names, flat, strict=True))


def _checked(function: str, name: str, value: Any, axes: str, cell: Cell) -> np.ndarray:
    """An array of floats with these axes, as float64."""
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever another library raises
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{function} cannot read {name} as a NumPy array: {reason}. Of a tensor, give tensor.detach().cpu(), in "
            f"bfloat16 tensor.detach().cpu().float()."
        ) from error
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{function} expected {name} to be floats, got {array.dtype}.")
    shape = tuple(cell.sizes[axis] for axis in axes.split(", "))
    if array.shape != shape:
        other, gates = ("a GRU", 3) if cell.gates == "ifgo" else ("an LSTM", 4)
        wrong = gates * cell.sizes["hidden"]
        hint = ""
        if axes in ("3 hidden", "2, 3 hidden") and array.shape in (shape[-1:], (2, *shape[-1:])):
            after = array.ndim == 2
            hint = f" It is of a GRU with reset_after={after}: use GRU(..., reset_after={after})."
        elif wrong in array.shape and wrong not in shape:
            hint = f" {wrong} is {gates} * {cell.sizes['hidden']}: are these weights of {other}?"
        elif array.ndim == len(shape):
            sizes = zip((axis.split()[-1] for axis in axes.split(", ")), array.shape, shape, strict=True)
            widths = {axis: size * cell.sizes[axis] / own for axis, size, own in sizes if size != own}
            if all(axis != "2" and width.is_integer() for axis, width in widths.items()):
                others = (f"{axis}_features={width:.0f}, not {cell.sizes[axis]}" for axis, width in widths.items())
                hint = f" It is of a cell with {' and '.join(others)}."
        raise ValueError(f"{function} expected {name} [{axes}] of shape {shape}, got {array.shape}.{hint}")
    return array.astype(np.float64)


def _set(function: str, cells: list[Cell], weights: list[dict[str, np.ndarray]]) -> None:
    """Sets the parameters of all cells, after all values have been checked."""
    new = []
    for cell, values in zip(cells, weights, strict=True):
        if "recurrent_bias" in values and "recurrent_bias" not in cell.params:
            second = values.pop("recurrent_bias")
            if (second[2 * cell.sizes["hidden"] :] != 0).any():
                raise ValueError(
                    f"{function}: the recurrent bias (bias_hh, bias[1]) is not zero in the last gate (n), where "
                    f"nnx.GRUCell, {cell.name}, has none. Use GRU, or RNN(GRUCell(...)) of lstm_mnist_jax.rnn, which "
                    f"has one."
                )
            with np.errstate(all="ignore"):
                values["bias"] = values["bias"] + second
        for name, value in values.items():
            param = cell.params[name]
            with np.errstate(all="ignore"):
                cast = value.astype(param.dtype)
                lost = np.isfinite(value) & ~np.isfinite(cast.astype(np.float64))
            if lost.any():
                raise ValueError(
                    f"{function}: the weights of {cell.name} have the value {value[lost][0]:.3g}, beyond the range of "
                    f"{cast.dtype}. Use a layer with a wider param_dtype."
                )
            new.append((param, cast))
    for param, cast in new:
        before = param.get_value()
        # A parameter that lies on chosen devices stays there.
        placed = isinstance(before, jax.Array) and not isinstance(before, jax.core.Tracer) and before.committed
        param.set_value(jax.device_put(cast, before.sharding if placed else None))  # asarray would compile a program


def _weights_of(function: str, cell: Cell) -> dict[str, np.ndarray]:
    """The weights of a cell, as copies."""
    weights = {}
    for name, param in cell.params.items():
        value = param.get_value()
        if not isinstance(value, jax.Array | np.ndarray):
            raise ValueError(
                f"{function}: {cell.name} has no weights yet, but {type(value).__name__}s. Load or initialize them "
                f"first."
            )
        weights[name] = np.array(value, np.float32 if value.dtype == jnp.bfloat16 else None)
    return weights


def _with_dot(prefix: str) -> str:
    return prefix if not prefix or prefix.endswith(".") else f"{prefix}."


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more or "nothing"
