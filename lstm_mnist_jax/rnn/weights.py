"""The weights of a recurrent layer from and to PyTorch (`state_dict`) and Keras (`get_weights`), as arrays.

| | LSTM | GRU |
| --- | --- | --- |
| order of the gates here | i, f, g, o | r, z, n |
| PyTorch's | i, f, g, o | r, z, n |
| Keras's | i, f, c, o (c is g) | z, r, h (h is n) |

PyTorch's matrices are the transposes of the kernels here, Keras's are the kernels. Depends on the layers and the cells;
neither PyTorch nor Keras is imported.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lstm_mnist_jax.rnn.cells import GRUCell, ProjectedLSTMCell
from lstm_mnist_jax.rnn.stack import StackedRNN

GATES: dict[Any, int] = {nnx.OptimizedLSTMCell: 4, ProjectedLSTMCell: 4, nnx.GRUCell: 3, GRUCell: 3}
"""The cells whose weights PyTorch and Keras have, and how many gates each has."""

TORCH_NAME = re.compile(r"((?:.*\.)?)(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l(\d+)(_reverse)?")
TORCH_ORDER = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")

MAX_NAMES = 12
"""How many names a message lists."""


@dataclass(frozen=True)
class Weights:
    """The weights of one cell, with the gates in this package's order.

    Attributes:
      kernel: [in, gates * hidden].
      recurrent_kernel: [output, gates * hidden].
      bias: [gates * hidden]; None without biases.
      recurrent_bias: a second bias [gates * hidden], which PyTorch's cells and Keras's GRU have.
      projection: [hidden, output] of a projected LSTM.
    """

    kernel: np.ndarray
    recurrent_kernel: np.ndarray
    bias: np.ndarray | None = None
    recurrent_bias: np.ndarray | None = None
    projection: np.ndarray | None = None


@dataclass(frozen=True)
class Place:
    """One cell of a layer.

    Attributes:
      cell: a cell of a kind in `GATES`.
      layer: the number of its layer, from 0.
      backward: whether it is the second one of a bidirectional layer.
      path: what to write after the layer's name to get the cell, such as `.layers[0].cell`.
    """

    cell: Any
    layer: int
    backward: bool
    path: str

    @property
    def gates(self) -> int:
        return GATES[type(self.cell)]

    @property
    def where(self) -> str:
        """The cell's name in messages."""
        return f"the cell at {self.path}"

    @property
    def has_bias(self) -> bool:
        return self.cell.dense_i.bias is not None or self.cell.dense_h.bias is not None

    @property
    def projects(self) -> bool:
        return hasattr(self.cell, "dense_p")

    @property
    def resets_after(self) -> bool:
        """Whether this is a GRU whose reset gate multiplies the recurrent product, which has a recurrent bias."""
        return self.gates == 3 and getattr(self.cell, "reset_after", True)


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

    Everything is checked before the first parameter changes. The values may be infinite or NaN.

    Args:
      layer: an `LSTM`, a `GRU`, another `StackedRNN`, an `RNN` or an `nnx.Bidirectional` of two, whose cells are
        `nnx.OptimizedLSTMCell`s, `ProjectedLSTMCell`s, `nnx.GRUCell`s or `GRUCell`s. Its parameters are set in place,
        in their own dtype.
      state_dict: float arrays by name: NumPy's, JAX's, or tensors that `numpy.asarray` converts (detached, on the CPU).
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
    places = _torch_places("load_torch", layer)
    if not isinstance(state_dict, Mapping):
        way = "its state_dict()" if hasattr(state_dict, "state_dict") else "a dictionary of arrays by name"
        raise ValueError(f"load_torch reads {way}; got {type(state_dict).__name__}.")
    found, names = _torch_names(layer, places, state_dict, prefix)

    def read(place: Place) -> Weights:
        def take(kind: str, axes: str, *shape: int) -> np.ndarray:
            name = names[place, kind]
            return _checked("load_torch", name, found[name], shape, axes)

        cell = place.cell
        rows, width = place.gates * cell.hidden_features, cell.dense_h.kernel.shape[0]
        gates = f"{place.gates} hidden"
        output = "projection" if place.projects else "hidden"
        kernel = take("weight_ih", f"{gates}, in", rows, cell.dense_i.kernel.shape[0]).T
        recurrent_kernel = take("weight_hh", f"{gates}, {output}", rows, width).T
        bias, recurrent_bias = (take(kind, gates, rows) if place.has_bias else None for kind in ("bias_ih", "bias_hh"))
        projection = take("weight_hr", "projection, hidden", width, cell.hidden_features).T if place.projects else None
        return Weights(kernel, recurrent_kernel, bias, recurrent_bias, projection)

    _load("load_torch", places, read, lambda place: names.get((place, "bias_hh"), ""))


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
    places = _torch_places("to_torch", layer)
    widths = {place.cell.hidden_features for place in places}
    prefix = _with_dot(prefix)
    arrays: dict[str, np.ndarray] = {}
    for place in places:
        weights = _weights_of("to_torch", place)
        second = weights.bias if weights.recurrent_bias is None else weights.recurrent_bias
        if second is not None and weights.recurrent_bias is None:
            second = np.zeros_like(second)
        parts = (weights.kernel.T, weights.recurrent_kernel.T, weights.bias, second, weights.projection)
        for kind, part in zip(TORCH_ORDER, parts, strict=True):
            if part is not None:
                part = part.T if kind == "weight_hr" else part
                name = _torch_name(place, kind, None if len(widths) == 1 else place.layer)
                arrays[prefix + name] = np.ascontiguousarray(part)
    return arrays


def load_keras(layer: nnx.Module, weights: Sequence[Any]) -> None:
    """Sets the weights of a layer to those of Keras's `LSTM` or `GRU` layers. Keras is not needed.

    Each Keras layer (https://keras.io/api/layers/recurrent_layers/lstm/ and .../gru/) has the arrays `kernel`
    [in, gates * hidden], `recurrent_kernel` [hidden, gates * hidden] and, with `use_bias`, `bias`: [4 hidden] of an
    LSTM, [2, 3 hidden] of a GRU with `reset_after=True`, Keras's default, and [3 hidden] of one with
    `reset_after=False`. The gates are in Keras's order: i, f, c, o or z, r, h. A `Bidirectional` layer has the arrays
    of the forward layer, then those of the backward layer.

    The list does not hold Keras's activations, its `merge_mode`, and, without biases, its `reset_after`: make the layer
    with those of the Keras layer. (`LSTM` and `GRU` have sigmoid and tanh, and concatenate the directions.)

    Everything is checked before the first parameter changes. The values may be infinite or NaN.

    Args:
      layer: as for `load_torch`, without projections. Its parameters are set in place, in their own dtype.
      weights: of one Keras layer, what its `get_weights()` returns. Of several, from the input to the output, either a
        list with these lists, or one list with all their arrays, as `keras.Sequential(...).get_weights()` returns.

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
    places = _keras_places("load_keras", layer)
    lists = _keras_lists(places, weights)
    names = _keras_names(places)

    def read(place: Place) -> Weights:
        arrays = iter(zip(names[place], lists[place], strict=True))

        def take(axes: str, *shape: int) -> np.ndarray:
            name, array = next(arrays)
            return _in_other_order(place, _checked("load_keras", name, array, shape, axes))

        inputs, columns = place.cell.dense_i.kernel.shape
        hidden, gates = place.cell.hidden_features, f"{place.gates} hidden"
        kernel, recurrent_kernel = take(f"in, {gates}", inputs, columns), take(f"hidden, {gates}", hidden, columns)
        if not place.has_bias:
            return Weights(kernel, recurrent_kernel)
        if not place.resets_after:
            return Weights(kernel, recurrent_kernel, take(gates, columns))
        return Weights(kernel, recurrent_kernel, *take(f"2, {gates}", 2, columns))

    _load("load_keras", places, read, lambda place: f"{names[place][-1]}[1]")


def to_keras(layer: nnx.Module) -> list[np.ndarray]:
    """The weights of a layer as the list that `set_weights` of Keras's `LSTM`, `GRU` or `Bidirectional` takes.

    Of several layers, the list is that of a `keras.Sequential` of them.

    Args:
      layer: as for `load_keras`.

    Returns:
      New arrays: see `load_keras` for their order and shapes. The dtype is that of the parameters; bfloat16, which
      NumPy does not have, becomes float32.

    Raises:
      ValueError: Keras has no such layer: an LSTM with a projection.

    Examples:
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import GRU, to_keras
      >>> gru = GRU(3, 8, rngs=nnx.Rngs(0))
      >>> [array.shape for array in to_keras(gru)]
      [(3, 24), (8, 24), (2, 24)]
    """
    arrays: list[np.ndarray] = []
    for place in _keras_places("to_keras", layer):
        weights = _weights_of("to_keras", place)
        bias = weights.bias
        if bias is not None and place.resets_after:
            second = np.zeros_like(bias) if weights.recurrent_bias is None else weights.recurrent_bias
            bias = np.stack([bias, second])
        parts = (weights.kernel, weights.recurrent_kernel, bias)
        arrays += [np.ascontiguousarray(_in_other_order(place, part)) for part in parts if part is not None]
    return arrays


def _places(function: str, layer: Any) -> list[Place]:
    """The cells of a layer, the forward one of each layer first."""
    if isinstance(layer, StackedRNN):
        stack = [(part, f".layers[{number}]") for number, part in enumerate(layer.layers)]
    else:
        stack = [(layer, "")]
    places = []
    for number, (part, path) in enumerate(stack):
        directions = [(part, path)]
        if isinstance(part, nnx.Bidirectional):
            directions = [(part.forward_rnn, f"{path}.forward_rnn"), (part.backward_rnn, f"{path}.backward_rnn")]
        for backward, (rnn, rnn_path) in enumerate(directions):
            if not isinstance(rnn, nnx.RNN):
                way = "give RNN(cell)" if isinstance(rnn, nnx.RNNCellBase) else "of a model, give the layer itself"
                raise ValueError(
                    f"{function} takes an LSTM, a GRU, a StackedRNN, an RNN or an nnx.Bidirectional of RNNs; got "
                    f"{type(rnn).__name__}: {way}."
                )
            places.append(Place(rnn.cell, number, bool(backward), f"{rnn_path}.cell"))
    for place in places:
        _check_cell(function, place)
    return places


def _check_cell(function: str, place: Place) -> None:
    """Refuses cells that PyTorch and Keras do not have."""
    cell = place.cell
    if type(cell) not in GATES:
        known = ", ".join(
            f"nnx.{kind.__name__}" if kind.__module__.startswith("flax") else kind.__name__ for kind in GATES
        )
        raise ValueError(
            f"{function}: PyTorch and Keras have no {type(cell).__name__}, as {place.where} is; expected {known}."
        )
    for name in ("dense_i", "dense_h", *["dense_p"] * place.projects):
        part = getattr(cell, name)
        if type(part) is not nnx.Linear or len(part.kernel.shape) != 2:
            shape = f" with a kernel of shape {part.kernel.shape}" if hasattr(part, "kernel") else ""
            raise ValueError(
                f"{function} expected {name} of {place.where} to be an nnx.Linear with a matrix; got "
                f"{type(part).__name__}{shape}. Load or save the weights before it is replaced or mapped (nnx.vmap)."
            )


def _torch_places(function: str, layer: Any) -> list[Place]:
    places = _places(function, layer)
    for place in places:
        where = f"{function}: {place.where}"
        if place.gates == 3 and not place.resets_after:
            raise ValueError(
                f"{where} has reset_after=False: its reset gate multiplies h before the product, and that of "
                f"torch.nn.GRU multiplies the product. Use GRU(reset_after=True), the default."
            )
        functions = [getattr(place.cell, "gate_fn", nnx.sigmoid), getattr(place.cell, "activation_fn", nnx.tanh)]
        if functions != [nnx.sigmoid, nnx.tanh]:
            raise ValueError(f"{where} has a gate_fn or an activation_fn of its own; PyTorch's are sigmoid and tanh.")
    return places


def _keras_places(function: str, layer: Any) -> list[Place]:
    places = _places(function, layer)
    for place in places:
        if place.projects:
            raise ValueError(
                f"{function}: {place.where} has projection_features, which Keras's LSTM "
                f"does not have. Use an LSTM without them, or torch.nn.LSTM's proj_size with load_torch and to_torch."
            )
    return places


def _torch_name(place: Place, kind: str, module: int | None) -> str:
    """A name in the state_dict; `module` is the place in an `nn.ModuleList` of one-layer modules."""
    suffix = "_reverse" if place.backward else ""
    return f"{kind}_l{place.layer}{suffix}" if module is None else f"{module}.{kind}_l0{suffix}"


def _torch_names(
    layer: Any, places: list[Place], state_dict: Mapping[str, Any], prefix: str | None
) -> tuple[dict[str, Any], dict[tuple[Place, str], str]]:
    """The arrays by their names without the prefix, and the name of each part of each cell."""
    depth = places[-1].layer + 1
    matches = [TORCH_NAME.fullmatch(str(name)) for name in state_dict]
    prefixes = list(dict.fromkeys(match[1] for match in matches if match))
    if depth > 1 and len(prefixes) > 1:
        bases = {re.sub(r"\d+\.$", "", found) for found in prefixes}
        prefixes = [*bases] if len(bases) == 1 else prefixes
    if prefix is None:
        if not prefixes:
            raise ValueError(
                f"load_torch found no weight_ih_l0 in the state_dict, which has {_listed(map(str, state_dict))}. Give "
                f"that of a torch.nn.LSTM or torch.nn.GRU."
            )
        if len(prefixes) > 1:
            raise ValueError(
                f"load_torch found the weights of several modules: {_listed(map(repr, prefixes))}. Choose one: "
                f"prefix={prefixes[0]!r}."
            )
        (start,) = prefixes
    else:
        start = _with_dot(prefix)
    found = {str(name).removeprefix(start): array for name, array in state_dict.items() if str(name).startswith(start)}
    others = [] if prefix is not None else [str(name) for name in state_dict if not str(name).startswith(start)]
    if not found:
        had = f"there are {_listed(map(repr, prefixes))}" if prefixes else f"there are {_listed(map(str, state_dict))}"
        raise ValueError(f"load_torch found no names that start with {start!r} in the state_dict; {had}.")
    modules = sorted({int(match[1]) for match in (re.match(r"(\d+)\.\w+_l\d", name) for name in found) if match})
    numbers = modules if len(modules) == depth else [*range(depth)]
    names = {}
    for place in places:
        kinds = ["weight_ih", "weight_hh"]
        kinds += ["bias_ih", "bias_hh"] * place.has_bias + ["weight_hr"] * place.projects
        for kind in kinds:
            names[place, kind] = _torch_name(place, kind, numbers[place.layer] if modules else None)
    missing = [name for name in names.values() if name not in found]
    left_over = [name for name in found if name not in names.values()]
    if missing or left_over or others:
        parts = [f"missing {_listed(missing)}"] * bool(missing)
        parts += [f"left over {_listed(left_over + others)}"] * bool(left_over or others)
        after = f" after the prefix {start!r}" if start else ""
        hint = _torch_hint(places, found, missing, left_over, others, start)
        raise ValueError(
            f"load_torch: the state_dict does not fit this {type(layer).__name__} ({_described(places)}): "
            f"{'; '.join(parts)}{after}.{hint}"
        )
    return found, names


def _torch_hint(
    places: list[Place],
    found: Mapping[str, Any],
    missing: list[str],
    left_over: list[str],
    others: list[str],
    prefix: str,
) -> str:
    """What to do about names that do not fit."""
    if others and not missing and not left_over:
        return f" prefix={prefix!r} reads only the names that start with it."
    matches = [match for match in map(TORCH_NAME.fullmatch, found) if match]
    depth = 1 + max((int(match[3]) for match in matches), default=0)
    if depth != places[-1].layer + 1 and not any(match[1] for match in matches):
        layers = f"{depth} layer{'s' * (depth > 1)}"
        return f" It has {layers}: hidden_features takes one width for each, such as {(8,) * min(depth, 4)}."
    if left_over and all(name.endswith("_reverse") for name in left_over):
        return " It is bidirectional: use LSTM or GRU with bidirectional=True."
    if missing and all(name.endswith("_reverse") for name in missing):
        return " It has one direction: use a layer with bidirectional=False."
    if any("weight_hr" in name for name in left_over):
        return " It has proj_size: use LSTM(..., projection_features=proj_size)."
    if missing and all("bias_" in name for name in missing):
        return " It has bias=False: use LSTM or GRU with use_bias=False."
    if left_over and all("bias_" in name for name in left_over):
        return " It has biases: use a layer with use_bias=True."
    return "" if missing else " Leave out what is not of this layer."


def _described(places: list[Place]) -> str:
    depth = places[-1].layer + 1
    directions = "both directions" if any(place.backward for place in places) else "one direction"
    bias = "biases" if places[0].has_bias else "no biases"
    return f"{depth} layer{'s' * (depth > 1)}, {directions}, {bias}"


def _keras_names(places: list[Place]) -> dict[Place, list[str]]:
    """What the arrays of each cell are called in messages."""
    names = {}
    for place in places:
        where = f"of layer {place.layer}" if places[-1].layer else ""
        if any(other.backward for other in places):
            where += ", backward" if place.backward else ", forward"
        where = where.removeprefix(", ")
        parts = ["kernel", "recurrent_kernel", *["bias"] * place.has_bias]
        names[place] = [f"{part} {where}".strip() for part in parts]
    return names


def _keras_lists(places: list[Place], weights: Any) -> dict[Place, list[Any]]:
    """The arrays of each cell."""
    if isinstance(weights, str | Mapping) or not isinstance(weights, Sequence):
        way = "its get_weights()" if hasattr(weights, "get_weights") else "a list of arrays, as get_weights() returns"
        raise ValueError(f"load_keras reads {way}; got {type(weights).__name__}.")
    depth = places[-1].layer + 1
    counts = {number: sum(2 + place.has_bias for place in places if place.layer == number) for number in range(depth)}
    flat = list(weights)
    nested = [isinstance(part, list | tuple) for part in flat]
    needed = f"{sum(counts.values())} arrays ({_described(places)})"
    if any(nested):
        lengths = [len(part) for part in flat if isinstance(part, list | tuple)]
        if not all(nested) or lengths != [*counts.values()]:
            got = f"lists of {lengths}" if all(nested) else "a list of both lists and arrays"
            raise ValueError(
                f"load_keras expected {needed}, or a list for each layer with {[*counts.values()]} arrays; got {got}."
            )
        flat = [array for part in flat for array in part]
    if len(flat) != sum(counts.values()):
        shapes = [getattr(array, "shape", type(array).__name__) for array in flat[:MAX_NAMES]]
        more = ", ..." if len(flat) > MAX_NAMES else ""
        way = ""
        if places[0].has_bias and len(flat) == 2 * len(places):
            way = " Without biases, use LSTM or GRU with use_bias=False."
        elif len(flat) > sum(counts.values()):
            way = " Leave out the arrays of other layers, such as Dense."
        raise ValueError(
            f"load_keras expected {needed}, for each layer and direction kernel, recurrent_kernel"
            f"{', bias' * places[0].has_bias}; got {len(flat)}, of shapes {', '.join(map(str, shapes))}{more}.{way}"
        )
    lists, arrays = {}, iter(flat)
    for place in places:
        lists[place] = [next(arrays) for _ in range(2 + place.has_bias)]
    return lists


def _in_other_order(place: Place, array: np.ndarray) -> np.ndarray:
    """The gates of a GRU from r, z, n to Keras's z, r, h, or back; an LSTM's are the same."""
    if place.gates != 3:
        return array
    first, second, last = np.split(array, 3, axis=-1)
    return np.concatenate([second, first, last], axis=-1)


def _checked(function: str, name: str, value: Any, shape: tuple[int, ...], axes: str) -> np.ndarray:
    """An array of floats of this shape, as float64."""
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
    if array.shape != shape:
        hint = _other_form(array.shape, shape, axes)
        raise ValueError(f"{function} expected {name} [{axes}] of shape {shape}, got {array.shape}.{hint}")
    return array.astype(np.float64)


def _other_form(got: tuple[int, ...], expected: tuple[int, ...], axes: str) -> str:
    """What to do where a shape is that of another kind of layer."""
    if len(expected) == 2 and expected[0] == 2 and got == expected[1:]:
        return " It is of a GRU with reset_after=False: use GRU(..., reset_after=False)."
    if len(expected) == 1 and got == (2, *expected):
        return " It is of a GRU with reset_after=True: use GRU(..., reset_after=True), the default."
    parts = axes.split(", ")
    for own, other, layer in (("4 hidden", 3, "a GRU"), ("3 hidden", 4, "an LSTM")):
        if own in parts and len(got) == len(parts):
            axis = parts.index(own)
            hidden = expected[axis] // int(own[0])
            if got[axis] == other * hidden:
                return f" {got[axis]} is {other} * {hidden}: are these weights of {layer}?"
    return ""


def _load(
    function: str, places: list[Place], read: Callable[[Place], Weights], bias_name: Callable[[Place], str]
) -> None:
    """Sets the parameters of all cells, after all have been read."""
    new: list[tuple[nnx.Param[Any], np.ndarray]] = []
    for place in places:
        weights, cell = read(place), place.cell
        pairs = [(cell.dense_i.kernel, weights.kernel), (cell.dense_h.kernel, weights.recurrent_kernel)]
        if weights.projection is not None:
            pairs.append((cell.dense_p.kernel, weights.projection))
        if weights.bias is not None:
            bias, second = weights.bias, weights.recurrent_bias
            if cell.dense_i.bias is not None and cell.dense_h.bias is not None and second is not None:
                pairs += [(cell.dense_i.bias, bias), (cell.dense_h.bias, second)]
            else:
                if second is not None:
                    _check_candidate_bias(function, place, second, bias_name(place))
                    with np.errstate(all="ignore"):
                        bias = bias + second
                pairs.append((cell.dense_h.bias if cell.dense_i.bias is None else cell.dense_i.bias, bias))
        for param, value in pairs:
            with np.errstate(all="ignore"):
                cast = value.astype(param.dtype)
                lost = np.isfinite(value) & ~np.isfinite(cast.astype(np.float64))
            if lost.any():
                raise ValueError(
                    f"{function}: the weights of {place.where} have the value "
                    f"{value[lost][0]:.3g}, beyond the range of {cast.dtype}. Use a layer with a wider param_dtype."
                )
            new.append((param, cast))
    for param, cast in new:
        before = param.get_value()
        # A parameter that lies on chosen devices stays there.
        placed = isinstance(before, jax.Array) and not isinstance(before, jax.core.Tracer) and before.committed
        param.set_value(jax.device_put(cast, before.sharding) if placed else jnp.asarray(cast))


def _check_candidate_bias(function: str, place: Place, second: np.ndarray, name: str) -> None:
    """Refuses a recurrent bias of the gate n, which an `nnx.GRUCell` does not have."""
    hidden = place.cell.hidden_features
    if place.gates == 3 and (second[2 * hidden :] != 0).any():
        raise ValueError(
            f"{function}: {name} is not zero in the last gate (n), where nnx.GRUCell, {place.where}, has no "
            f"recurrent bias. Use GRU, or RNN(GRUCell(...)) of lstm_mnist_jax.rnn, which has one."
        )


def _weights_of(function: str, place: Place) -> Weights:
    """The weights of a cell, as copies."""

    def read(param: Any) -> np.ndarray | None:
        if param is None:
            return None
        value = param.get_value()
        if not isinstance(value, jax.Array | np.ndarray):
            raise ValueError(
                f"{function}: {place.where} has no weights yet, but "
                f"{type(value).__name__}s. Load or initialize them first."
            )
        return np.array(value, np.float32 if value.dtype == jnp.bfloat16 else None)

    cell = place.cell
    own, recurrent = read(cell.dense_i.bias), read(cell.dense_h.bias)
    if own is None:
        own, recurrent = recurrent, None
    kernel: Any = read(cell.dense_i.kernel)
    recurrent_kernel: Any = read(cell.dense_h.kernel)
    projection = read(cell.dense_p.kernel) if place.projects else None
    return Weights(kernel, recurrent_kernel, own, recurrent, projection)


def _with_dot(prefix: str) -> str:
    return prefix if not prefix or prefix.endswith(".") else f"{prefix}."


def _listed(names: Any) -> str:
    names = list(names)
    return (
        ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
    ) or "nothing"
