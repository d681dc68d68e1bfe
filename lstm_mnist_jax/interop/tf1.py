"""TensorFlow 1: `BasicLSTMCell`s, with an output layer and Adam's slots, as the variables of a checkpoint.

    rnn/multi_rnn_cell/cell_0/basic_lstm_cell/kernel [in + hidden, 4 hidden], input rows first, gates i, j, f, o
    rnn/multi_rnn_cell/cell_0/basic_lstm_cell/bias   [4 hidden]; the cell adds forget_bias to gate f at every step
    Variable [hidden, classes], Variable_1 [classes]
    NAME/Adam, NAME/Adam_1, beta1_power, beta2_power

A cell's j is our g. `LSTMCell` without peepholes, projection and clipping, and `LSTMBlockCell` without clipping,
compute and store the same. What else there is to know, such as forget_bias, is in the graph, PREFIX.meta: see
`tf1_graph`. Without it, tanh and one dense layer are assumed.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.assembly import Arrays, check, dense_arrays, ignoring, listing, order_layers
from lstm_mnist_jax.interop.imported import Imported
from lstm_mnist_jax.interop.tf1_graph import Cell, Network, find_network
from lstm_mnist_jax.interop.tf_checkpoint import checked, find_prefix, read_checkpoint, write_checkpoint
from lstm_mnist_jax.interop.tf_checkpoint.graph import read_graph
from lstm_mnist_jax.interop.weights import (
    GATES,
    Adam,
    Dense,
    Direction,
    Layer,
    Weights,
    float32,
    folded,
    product,
    to_params,
)
from lstm_mnist_jax.rnn.weights import reorder_gates

TF1_GATES = "igfo"
"""The order i, j, f, o, in this package's letters."""

CELL = re.compile(
    r"((?:.*/)?[^/]*lstm[^/]*(?:/linear)?)/(?:(?P<kernel>kernel|weights|matrix)|bias(?:es)?)", re.IGNORECASE
)
"""`kernel` since TensorFlow 1.2, `weights` in 1.0, `Linear/Matrix` before."""

CUDNN_CELL = "cudnn_compatible_lstm_cell"
"""The name of CudnnLSTM's cells in checkpoints. They add nothing to their forget gates."""

SLOT = re.compile(r".*/(Adam|Momentum|RMSProp|Adagrad|Adadelta|Ftrl|ExponentialMovingAverage)(_\d+)?")
"""Slots of optimizers and moving averages, also where their variable is missing."""

MOMENTS = ("Adam", "Adam_1")
"""The slots of the first and the second moment."""

OTHER_CELLS = {
    r"cudnn_compatible_gru_cell/.*": "a CudnnGRU (of TensorFlow 1, LSTM cells are read)",
    r"w_[fio]_diag": "peepholes (use_peepholes=True)",
    r"projection/[^/]*": "a projection of its output (num_proj)",
    r"[^/]*(lstm|cell)[^/]*/.*(gamma|beta)": "layer normalization (LayerNormBasicLSTMCell)",
    r"[^/]*batch_norm[^/]*/(gamma|beta)": "batch normalization",
    r"(gates|candidate)/[^/]*": "a GRUCell (which multiplies r and h before the product, a GRU here does after it)",
    r"[^/]*rnn_cell/(kernel|weights|bias|biases)": "a BasicRNNCell",
    r"opaque_(kernel|params)": "cuDNN, all weights in one array (save them there through CudnnLSTM's saveable)",
    r"recurrent_kernel": "a layer of Keras (save that model as .h5 there, for import keras)",
}
"""What other variables than those of an LSTM cell belong to, by the ends of their names."""

FLOAT32_TINY = float(np.finfo(np.float32).tiny)


_Slots = dict[str, dict[str, str]]
"""The names of what optimizers and averages keep of a variable, by the variable's name and by kind."""


def read(
    path: Path,
    *,
    forget_bias: float | None = None,
    ignore: Iterable[str] = (),
    order: Sequence[str] = (),
    b1: float = 0.9,
    b2: float = 0.999,
) -> Imported:
    """Reads the tutorial's model, of any number of layers and any widths, from a checkpoint.

    Where PREFIX.meta lies beside it, the network is that of the graph. It may then have relu or linear cells, both
    directions, poolings over time and hidden dense layers: see `tf1_graph`.

    Args:
      path: what was given to `Saver.save`, one of the checkpoint's files, their folder, or that of a SavedModel.
      forget_bias: what the cells added to their forget gates, if not what is in PREFIX.meta; where there is no such
        file, None is 1, TensorFlow's default. It is added to the biases.
      ignore: patterns of names to leave out, such as `model2/*`.
      order: the names of the cells, where neither PREFIX.meta nor names nor widths determine their order.
      b1: Adam's, unless it is in PREFIX.meta. The number of steps is computed from the powers of b1 and b2, which a
        checkpoint holds.
      b2: Adam's.

    Raises:
      WeightsError: there is no such checkpoint, it is damaged, or holds another network.
    """
    prefix = find_prefix(path)
    found = ignoring(read_checkpoint(prefix), ignore)
    network = _read_network(prefix, found)
    return from_variables(found, network, prefix.name, forget_bias=forget_bias, order=order, b1=b1, b2=b2)


def from_variables(
    found: Arrays,
    network: Network | None = None,
    name: str = "",
    *,
    forget_bias: float | None = None,
    order: Sequence[str] = (),
    b1: float = 0.9,
    b2: float = 0.999,
) -> Imported:
    """The model in the variables of a checkpoint of this name, and in its graph if that is known: see `read`."""
    slots = _slots(found)
    network = _network(found, slots, order, network)
    added = [_forget_bias(cell, forget_bias) for cell in network.cells]
    weights = _weights(found, network, added)
    notes = _notes(added, network, forget_bias)
    linear = _linear_layers(found, network, weights.in_features)
    for name in linear:
        notes.append(f"{name} became part of the first LSTM layer; Adam starts from zero")
    if linear:
        first, *others = weights.layers
        weights = weights._replace(layers=(folded(first, *product([*linear.values()][::-1])), *others))
    names = (*(_cell_name(cell.kernel) for cell, *_ in network.layers), *(kernel for kernel, _ in network.dense))
    check(weights, names, found)
    if weights.steps is not None and not network.fields:  # in which order a program flattens them is not known
        raise WeightsError(
            f"The output layer {names[-1]} has weights {list(weights.dense[0].kernel.shape)}, but the last LSTM layer "
            f"gives {weights.hidden_features[-1]} features. {listing(found)}"
        )
    b1, b2 = network.adam.get("b1", b1), network.adam.get("b2", b2)
    adam = _adam(found, network, slots, b1, b2)
    step, note = _step(found, name, adam, b2)
    if linear:
        adam = None
    imported = Imported(
        replace(weights.config, forget_bias=added[0]),
        to_params(weights),
        names,
        notes=(*notes, *note),
        adam=adam,
        step=step,
        knows_inputs=network.scales_inputs,
    )
    return imported.with_network(**network.fields)


def to_variables(
    weights: Weights,
    adam: Adam | None = None,
    *,
    forget_bias: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    like: Arrays | None = None,
    network: Network | None = None,
    step: int = 0,
) -> dict[str, np.ndarray]:
    """The model as variables by name, with Adam's slots and powers if its state is given.

    Args:
      weights: the weights.
      adam: the state of Adam.
      forget_bias: what the cells that read them will add to their forget gates, unless `network` has it; None is 1.
      b1: Adam's.
      b2: Adam's.
      like: the variables of a checkpoint of the same network, whose names are taken instead of the tutorial's. Other
        variables than the model's and Adam's stay as they are.
      network: that of `like`, if it is known.
      step: the new value of `global_step` in `like`, if there is one.

    Raises:
      WeightsError: `like` is of another network, or has a state of Adam and none is given.
    """
    found = {} if like is None else like
    slots = _slots(found)
    theirs = _tutorial(len(weights.layers)) if like is None else _network(found, slots, (), network)
    fields = [f"{name} {value}" for name, value in theirs.fields.items() if value != getattr(ModelConfig, name)]
    fields += ["hidden dense layers"] * (len(theirs.dense) > 1)
    fields += ["a linear layer before its LSTM layers"] * bool(theirs.projections or theirs.input_scaling != (1.0, 0.0))
    if fields:
        listed = ", ".join(fields)
        raise WeightsError(f"The checkpoint whose names are wanted is that of another network, with {listed}.")
    if len(theirs.cells) != len(weights.layers):
        raise WeightsError(f"The checkpoint has {len(theirs.cells)} LSTM layers, this model {len(weights.layers)}.")
    usual = {name: {kind: f"{name}/{kind}" for kind in MOMENTS} for name in theirs.names if adam and like is None}
    own = {name: (slots or usual).get(name, {}) for name in theirs.names}
    variables = _named(weights, theirs, [_forget_bias(cell, None if network else forget_bias) for cell in theirs.cells])
    if any("Adam" in kinds for kinds in own.values()):
        powers = [_scalar_name(found, power) for power in ("beta1_power", "beta2_power")]
        complete = all({*MOMENTS} <= kinds.keys() for kinds in own.values()) and (like is None or None not in powers)
        if adam is None or not complete:
            raise WeightsError(
                "The checkpoint whose names are wanted has a state of Adam, in part or where there is none to write. "
                "Take another one, or leave it out for the tutorial's names."
            )
        for kind, moments in zip(MOMENTS, (adam.mu, adam.nu), strict=True):
            arrays = _named(moments, theirs, [0.0] * len(theirs.cells))
            variables |= {own[name][kind]: array for name, array in arrays.items()}
        for name, usual_name, decay in zip(powers, ("beta1_power", "beta2_power"), (b1, b2), strict=True):
            variables[name or usual_name] = np.array(_powers(decay, adam.steps + 1)[-1])
    if (global_step := _scalar_name(found, "global_step")) is not None:
        variables[global_step] = np.array(step)
    result = {name: np.asarray(array) for name, array in found.items()}
    for name, array in variables.items():
        before = result.get(name, np.zeros(array.shape, np.float32))
        if array.shape != before.shape:
            raise WeightsError(
                f"{name} is {list(before.shape)} in the checkpoint whose names are wanted, and {list(array.shape)} in "
                f"this model. {listing(found)}"
            )
        result[name] = array.astype(before.dtype)
    return result


def write(
    path: Path, weights: Weights, adam: Adam | None = None, *, like: Path | None = None, step: int = 0, **options: Any
) -> None:
    """Writes a checkpoint that the tutorial's `Saver` restores, or one with the names of another checkpoint.

    Args:
      path: the prefix.
      weights: the weights.
      adam: the state of Adam.
      like: a checkpoint of the same network, whose names are taken.
      step: as of `to_variables`.
      **options: `forget_bias`, `b1` and `b2` of `to_variables`.

    Raises:
      WeightsError: it cannot be written, or `like` cannot be read or is of another network.
    """
    found = network = None
    if like is not None:
        found = ignoring(read_checkpoint(like), ())
        network = _read_network(find_prefix(like), found)
    write_checkpoint(path, to_variables(weights, adam, like=found, network=network, step=step, **options))


def _tutorial(layers: int) -> Network:
    """The names of the tutorial's variables."""
    scopes = [f"rnn/multi_rnn_cell/cell_{number}/basic_lstm_cell" for number in range(layers)]
    cells = (Cell(f"{scope}/kernel", f"{scope}/bias", 1.0) for scope in scopes)
    return Network(tuple(cells), (("Variable", "Variable_1"),))


def _network(found: Arrays, slots: _Slots, order: Sequence[str], network: Network | None) -> Network:
    """The network of the graph, or the one that names and widths show. Raises WeightsError."""
    if network:
        names = [_cell_name(cell.kernel) for cell in network.cells]
        if order and list(order) != names:
            raise WeightsError(f"--layer names {', '.join(order)}; the graph has the cells {', '.join(names)}.")
        return network
    owned = {name for names in slots.values() for name in names.values()}
    variables = {
        name: array
        for name, array in found.items()
        if name not in owned and not SLOT.fullmatch(name) and array.shape and "float" in str(array.dtype)
    }
    cells = _cells(variables)
    taken = {name for pair in cells.values() for name in pair}
    dense = _output_layer({name: array for name, array in variables.items() if name not in taken}, variables)
    names = order_layers({name: Layer(_direction(found, pair)) for name, pair in cells.items()}, found, order)
    return Network(tuple(Cell(*cells[name], 0.0 if CUDNN_CELL in name else 1.0) for name in names), (dense,))


def _output_layer(rest: Arrays, found: Arrays) -> tuple[str, str]:
    """The names of the output layer's matrix and vector, the only dense layer in `rest`."""
    (kernel, bias), *more = dense_arrays(rest, found).values()
    if not more and bias is None:
        raise WeightsError(
            f"The output layer is missing, or its bias: besides the LSTM layers there is {kernel}. {listing(found)}"
        )
    if more or bias is None:
        raise WeightsError(
            "Expected one output layer, a matrix and a vector, but besides the LSTM layers there are "
            f"{', '.join(rest)}. If the model does without some of these, leave them out with --ignore NAME; hidden "
            f"dense layers are read if the .meta file lies beside them. {listing(found)}"
        )
    return kernel, bias


def _cell_name(kernel: str) -> str:
    match = CELL.fullmatch(kernel)
    return match[1] if match else kernel


def _forget_bias(cell: Cell, given: float | None) -> float:
    """What a cell added to its forget gate; `given` is the user's."""
    return cell.forget_bias if given is None or CUDNN_CELL in cell.kernel else given


def _read_network(prefix: Path, found: Arrays) -> Network | None:
    """What the graph beside a checkpoint computes; None where there is no graph, or one of cuDNN's cells.

    Raises WeightsError where it computes something else than this program's model.
    """
    saved_model = prefix.parent.parent / "saved_model.pb"
    is_saved_model = prefix.parts[-2:] == ("variables", "variables") and saved_model.is_file()
    meta = saved_model if is_saved_model else prefix.with_name(f"{prefix.name}.meta")
    if not meta.is_file():
        return None
    way_out = f"Where {meta.name} lies elsewhere, BasicLSTMCells with tanh and forget bias 1 are assumed."
    try:
        graph = checked(f"{meta}", lambda: read_graph(meta))
    except WeightsError as error:
        raise WeightsError(f"{error} {way_out}") from error
    try:
        network = checked(f"{meta}", lambda: find_network(graph, found))
    except WeightsError as error:
        kinds = _other_kinds(found)
        raise WeightsError(f"{meta.name}: {error}{kinds and f' There is {kinds}.'}") from error
    if network or any(node.op.startswith("CudnnRNN") for node in graph.nodes.values()):
        return network
    _cells({name: array for name, array in found.items() if not SLOT.fullmatch(name)})  # it may be of another kind
    raise WeightsError(
        f"{meta} computes no LSTM cells, and then a dense layer, with the variables of the checkpoint. {way_out} "
        f"{listing(found)}"
    )


def _notes(forget_biases: Iterable[float], network: Network, given: float | None) -> list[str]:
    """What was assumed, and what the graph has."""
    added = [f"{number:g}" for number in forget_biases]
    cells = f"forget bias {added[0] if len(set(added)) == 1 else ', '.join(added)}"
    if not network.fields:
        return [f"without a .meta file: assumed {cells if given is None else f'{cells} (as given)'}, tanh and sigmoid"]
    theirs = {f"{cell.forget_bias:g}" for cell in network.cells}
    if theirs != set(added):
        cells += f" as given, although the graph has {', '.join(sorted(theirs))}"
    adam = ", ".join(f"{name} {value:g}" for name, value in network.adam.items())
    return [f"from the graph: {cells}, {network.fields['activation']}{adam and f'; Adam with {adam}'}"]


def _other_kinds(names: Iterable[str]) -> str:
    """What other kinds of variables there are, each with a name."""
    kinds: dict[str, str] = {}
    for name in names:
        found = (kind for end, kind in OTHER_CELLS.items() if re.fullmatch(rf"(.*/)?{end}", name, re.IGNORECASE))
        if kind := next(found, ""):
            kinds.setdefault(kind, name)
    return " and ".join(f"{name} of {kind}" for kind, name in kinds.items())


def _linear_layers(found: Arrays, network: Network, width: int) -> dict[str, Dense]:
    """The linear layers before the cells, the last one first, by what they are."""
    layers = {}
    for kernel, bias in reversed(network.projections):
        weights = np.asarray(found[kernel], np.float64)
        offset = np.asarray(found[bias], np.float64) if bias else np.zeros(width)
        layers[f"the linear layer {kernel}"] = Dense(weights, offset)
        width = len(weights)
    factor, shift = network.input_scaling
    if (factor, shift) != (1.0, 0.0):
        layers[f"the scaling of pixels, {factor:g} x {shift:+g},"] = Dense(
            factor * np.eye(width), np.full(width, shift)
        )
    return layers


def _slots(found: Arrays) -> _Slots:
    """The slots of each variable. A slot is called [scope/]VARIABLE/KIND, and has the variable's shape."""
    slots = _Slots()
    for name, array in found.items():
        parts = name.split("/")
        for start, end in itertools.combinations(range(len(parts)), 2):
            if end < len(parts) - 3:  # a kind has few parts, a name may have a thousand
                continue
            owner, kind = "/".join(parts[start:end]), "/".join(parts[end:])
            if owner in found and found[owner].shape == array.shape:
                slots.setdefault(owner, {})[kind] = name
                break
    return slots


def _cells(variables: Arrays) -> dict[str, tuple[str, str]]:
    """The names of each cell's kernel and bias, by the cell's name."""
    parts: dict[str, dict[str, str]] = {}
    for name in variables:
        if match := CELL.fullmatch(name):
            parts.setdefault(match[1], {})["kernel" if match["kernel"] else "bias"] = name
    # A layer may be called lstm_logits; a cell's own name ends in cell, unless it was given another.
    parts = {scope: cell for scope, cell in parts.items() if "cell" in scope.lower() or _is_cell(variables, cell)}
    taken = {name for cell in parts.values() for name in cell.values()}
    if not parts:
        if any(".ATTRIBUTES" in name for name in variables):
            raise WeightsError(
                "This is an object-based checkpoint of TensorFlow 2. Load it there, and save_weights to a .weights.h5 "
                "file, for import keras."
            )
        kinds = _other_kinds(variables)
        raise WeightsError(
            f"There is no LSTM cell: no .../basic_lstm_cell/kernel{kinds and f', but {kinds}'}. {listing(variables)}"
        )
    for scope, cell in parts.items():
        if {"fw", "bw"} & set(scope.split("/")):
            raise WeightsError(
                f"The cell {scope} is part of a bidirectional layer, which is read if the .meta file lies beside it."
            )
        others = [name for name in variables if name.startswith(f"{scope}/") and name not in taken]
        if others:
            names = ", ".join(name.removeprefix(f"{scope}/") for name in others)
            raise WeightsError(
                f"The cell {scope} has also {names}: {_other_kinds(others) or 'it is one of another kind'}. Expected a "
                "kernel and a bias, as a BasicLSTMCell has them."
            )
        if missing := {"kernel", "bias"} - set(cell):
            raise WeightsError(f"The cell {scope} lacks its {missing.pop()}. {listing(variables)}")
    return {scope: (cell["kernel"], cell["bias"]) for scope, cell in parts.items()}


def _is_cell(variables: Arrays, cell: Mapping[str, str]) -> bool:
    """Whether these are a kernel [in + hidden, 4 hidden] and a bias [4 hidden], by their shapes."""
    if len(cell) < 2:
        return False
    kernel, bias = variables[cell["kernel"]].shape, variables[cell["bias"]].shape
    return len(kernel) == 2 and bias == kernel[1:] and kernel[1] % 4 == 0 and kernel[0] > kernel[1] // 4


def _scalar(found: Arrays, basename: str) -> Any:
    """The value of the variable of this name in any scope; None where there is none."""
    name = _scalar_name(found, basename)
    return None if name is None else np.asarray(found[name])[()]


def _scalar_name(found: Arrays, basename: str) -> Any:
    names = [name for name in found if name.rpartition("/")[2] == basename and not found[name].shape]
    if len(names) > 1:
        raise WeightsError(f"There are several variables called {basename}: {', '.join(names)}. --ignore all but one.")
    return names[0] if names else None


def _weights(found: Arrays, network: Network, added: Iterable[float], slots: Mapping[str, str] = {}) -> Weights:
    """The weights, or the `slots` of them. `added` is what is added to the forget gates."""
    numbers = iter(added)

    def names(pair: Sequence[Any]) -> list[str]:
        return [slots.get(name, name) for name in pair[:2]]

    layers = (Layer(*(_direction(found, names(cell), next(numbers)) for cell in cells)) for cells in network.layers)
    dense = (Dense(*(float32(found[name]) for name in names(pair))) for pair in network.dense)
    return Weights(tuple(layers), tuple(dense))


def _direction(found: Arrays, names: Sequence[str], forget_bias: float = 0.0) -> Direction:
    """A cell from the names of its kernel and its bias."""
    kernel, bias = (np.asarray(found[name]) for name in names)
    hidden = bias.size // 4
    if bias.ndim != 1 or bias.size != 4 * hidden or kernel.ndim != 2 or kernel.shape[1] != bias.size:
        raise WeightsError(
            f"{names[0]} {list(kernel.shape)} and {names[1]} {list(bias.shape)} are not those of an LSTM cell: "
            f"expected [in + hidden, 4 hidden] and [4 hidden]. {listing(found)}"
        )
    if len(kernel) <= hidden:
        raise WeightsError(
            f"{names[0]} {list(kernel.shape)} leaves no rows for the inputs of a cell of {hidden} units."
        )
    kernel, bias = (reorder_gates(np.asarray(array, np.float32), TF1_GATES, GATES["lstm"]) for array in (kernel, bias))
    bias[hidden : 2 * hidden] += np.float32(forget_bias)
    return Direction(kernel[:-hidden], kernel[-hidden:], bias)


def _named(weights: Weights, network: Network, added: Sequence[float]) -> dict[str, np.ndarray]:
    """The variables by their names. Their cells add these to forget gates; the inverse of `_weights`."""
    if weights.config != ModelConfig(hidden_features=weights.hidden_features):
        raise WeightsError(
            "Checkpoints for tf1 have LSTM layers in one direction and one dense layer, of the last output; these "
            "weights have others."
        )
    named = dict[str, np.ndarray]()
    for cell, layer, forget_bias in zip(network.cells, weights.layers, added, strict=True):
        kernel, recurrent_kernel, bias, _ = layer.forward
        hidden = len(recurrent_kernel)
        bias = np.array(bias, np.float32)
        bias[hidden : 2 * hidden] -= np.float32(forget_bias)
        for name, array in ((cell.kernel, np.concatenate([kernel, recurrent_kernel])), (cell.bias, bias)):
            named[name] = reorder_gates(array, GATES["lstm"], TF1_GATES)
    return named | dict(zip(network.dense[0], weights.dense[0], strict=True))


def _adam(found: Arrays, network: Network, slots: _Slots, b1: float, b2: float) -> Adam | None:
    """The state of Adam; None where the variables have no slots of Adam."""
    own = {name: slots.get(name, {}) for name in network.names}
    if not any({*MOMENTS} & kinds.keys() for kinds in own.values()):
        return None
    powers = {name: _scalar(found, name) for name in ("beta1_power", "beta2_power")}
    missing = [f"{name}/{kind}" for name in own for kind in MOMENTS if kind not in own[name]]
    missing += [name for name, power in powers.items() if power is None]
    if missing:
        patterns = [p for p in ("*/Adam", "*/Adam_1", "*beta?_power") if any(fnmatchcase(name, p) for name in found)]
        raise WeightsError(
            f"The state of Adam is incomplete: there is no {', '.join(missing)}. To take the weights alone, leave the "
            f"rest of it out: {' '.join(f'--ignore {pattern!r}' for pattern in patterns)}."
        )
    steps = _steps(float(powers["beta1_power"]), float(powers["beta2_power"]), b1, b2)
    kernels = *(cell.kernel for cell, *_ in network.layers), *(kernel for kernel, _ in network.dense)
    owners = [f"Adam's state of {kernel}" for kernel in kernels]
    of_kind = ({name: kinds[kind] for name, kinds in own.items()} for kind in MOMENTS)
    zeros = [0.0] * len(network.cells)
    return Adam(steps, *(check(_weights(found, network, zeros, names), owners, found) for names in of_kind))


def _step(found: Arrays, name: str, adam: Adam | None, b2: float) -> tuple[int, list[str]]:
    """The number of training steps by global_step, the checkpoint's name or Adam's powers; a note if they differ."""
    step, counted, suffix = _scalar(found, "global_step"), adam.steps if adam else 0, re.search(r"-(\d{1,18})$", name)
    if step is not None and 0 <= step < 1 << 62:
        if adam and counted < _countable(b2) and abs(step - counted) > 1:
            return int(step), [f"the step is global_step, {int(step):,}; Adam's powers are those of step {counted:,}"]
        return int(step), []
    if step is not None or suffix is None:
        return counted, []
    named = int(suffix[1])
    if adam is None:
        return named, [f"the step is the number in the name {name}, which may count epochs"]
    # A step may be counted before or after saving; the powers are 0 after 90,000 steps or so.
    if abs(named - counted) <= 1 or named > counted >= _countable(b2):
        return named, []
    return counted, [f"the step is {counted:,}, by Adam's powers; the name {name} has {named:,}"]


def _steps(b1_power: float, b2_power: float, b1: float, b2: float) -> int:
    """The number of steps after which TensorFlow has these powers, b^(steps + 1), in float32.

    Below float32's smallest normal number, after `_countable` steps, the powers have no influence any more.
    """
    most = 3 + int(np.log(FLOAT32_TINY) / np.log(max(b1, b2, 0.5)))
    powers = [np.maximum(_powers(decay, most).astype(np.float64), FLOAT32_TINY) for decay in (b1, b2)]
    steps = int(np.argmin(np.abs(powers[1] - max(b2_power, FLOAT32_TINY))))
    for name, decay, stored, computed in (("beta2", b2, b2_power, powers[1]), ("beta1", b1, b1_power, powers[0])):
        expected = float(computed[steps])
        if not abs(max(stored, FLOAT32_TINY) - expected) <= (1 - decay) / 4 * expected:  # nor is NaN
            raise WeightsError(
                f"Adam's {name}_power is {stored:.9g}, which is no power of {decay:g}"
                + (f" for {steps} steps, the number from beta2_power" if name == "beta1" else "")
                + ". Give the beta1 and beta2 that the model was trained with as --b1 and --b2."
            )
    return steps


def _countable(b2: float) -> int:
    """Above this many steps, the powers of b2 do not show their number."""
    return int(np.log(FLOAT32_TINY) / np.log(max(b2, 0.5))) - 2


def _powers(decay: float, number: int) -> np.ndarray:
    """decay, decay^2, ..., as TensorFlow computes them: one float32 product after the other."""
    return np.multiply.accumulate(np.full(number, decay, np.float32))
