"""The classifier from arrays by name, as files of weights have them: which array is whose, and the order of the layers.

A format has the names of its arrays and its order of the gates. From these, `assemble` makes the classifier: it finds
the order of the layers and the output layer, and checks that the shapes fit together.
"""

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.imported import Imported
from lstm_mnist_jax.interop.weights import (
    Dense,
    Direction,
    Layer,
    Weights,
    float32,
    folded,
    product,
    to_params,
    with_recurrent_biases,
)

MAX_LISTED = 40
"""The most names in an error."""

MAX_NAME = 1000
"""The longest name of an array."""

MAX_PERMUTED = 7
"""The most recurrent layers, and the most dense layers, whose order is searched by their widths."""

Arrays = Mapping[str, Any]
"""Arrays by name, as a file of weights holds them: anything with a `shape` that `numpy.asarray` takes."""


class Place(NamedTuple):
    """Where an array belongs.

    Attributes:
      layer: the name of its recurrent layer.
      part: what it is in a cell of this layer.
      backward: whether it is of the cell that reads backwards.
    """

    layer: str
    part: str
    backward: bool = False


def check(weights: Weights, names: Sequence[str], found: Arrays) -> Weights:
    """Returns `weights` if the shapes fit together and all values are finite. Raises WeightsError.

    Args:
      weights: the weights.
      names: of the recurrent layers, then of the dense layers, for messages.
      found: all arrays, for messages.
    """
    width = None
    for name, layer in zip(names, weights.layers, strict=False):
        for direction in layer.directions:
            _check_cell(name, direction, found)
        if width not in (None, layer.in_features):
            raise WeightsError(
                f"The layer {name} takes {layer.in_features} features, but the layer before gives {width}. The "
                f"layers were read in the order {', '.join(names[: len(weights.layers)])}. {listing(found)}"
            )
        if {d.kernel.shape for d in layer.directions} != {layer.forward.kernel.shape}:
            raise WeightsError(f"The two directions of the layer {name} are of different sizes. {listing(found)}")
        width = layer.out_features
    cells = {direction.cell for layer in weights.layers for direction in layer.directions}
    numbers = {len(layer.directions) for layer in weights.layers}
    if len(cells) > 1 or len(numbers) > 1:
        what = "LSTM and GRU layers" if len(cells) > 1 else "layers in one and in both directions"
        raise WeightsError(f"There are {what}, which this classifier does not have together. {listing(found)}")
    before = "last recurrent layer"
    for number, (name, (kernel, bias)) in enumerate(zip(names[len(weights.layers) :], weights.dense, strict=True)):
        kind = "hidden dense" if number < len(weights.dense) - 1 else "output"
        # The outputs of all steps may be flattened before the first dense layer.
        steps = kernel.shape[0] // width if kernel.ndim == 2 and width and not number else 1
        if bias.ndim != 1 or kernel.shape != (max(1, steps) * (width or 0), len(bias)):
            raise WeightsError(
                f"The {kind} layer {name} has weights {list(kernel.shape)} and biases {list(bias.shape)}, but the "
                f"{before} gives {width} features. {listing(found)}"
            )
        width, before = len(bias), "layer before"
    if weights.attention is not None and weights.attention.shape != (weights.layers[-1].out_features, 1):
        raise WeightsError(
            f"The attention pooling has weights {list(weights.attention.shape)}, expected "
            f"{[weights.layers[-1].out_features, 1]}. {listing(found)}"
        )
    if weights.num_classes == 1:
        raise WeightsError(
            f"The output layer {names[-1]} has one output, as for a number or for two classes by a sigmoid. Expected "
            "one output for each class."
        )
    parts = [[array for direction in layer.directions for array in direction] for layer in weights.layers]
    for name, arrays in zip([*names, "attention"], [*parts, *weights.dense, [weights.attention]], strict=True):
        if not all(np.isfinite(array).all() for array in arrays if array is not None):
            raise WeightsError(f"The layer {name} holds values that are not finite numbers; it cannot be of use.")
    return weights


def _check_cell(name: str, direction: Direction, found: Arrays) -> None:
    kernel, recurrent_kernel, *biases = (array for array in direction if array is not None)
    hidden = recurrent_kernel.shape[0] if recurrent_kernel.ndim else 0
    if hidden and kernel.shape[1:] == recurrent_kernel.shape[1:] == (hidden,):
        raise WeightsError(f"The layer {name} is that of a simple RNN, expected an LSTM or a GRU.")
    columns = recurrent_kernel.shape[1:]
    fits = kernel.ndim == 2 and kernel.shape[1:] == columns and columns in ((4 * hidden,), (3 * hidden,))
    if not hidden or not fits or any(bias.shape != columns for bias in biases):
        raise WeightsError(
            f"The layer {name} does not fit together: weights {list(kernel.shape)} for its inputs, "
            f"{list(recurrent_kernel.shape)} for its state, biases {list(biases[0].shape)}. {listing(found)}"
        )


def assemble(
    found: Arrays,
    place_of: Callable[[str], Place | None],
    forms: Sequence[Sequence[str]],
    to_direction: Callable[[str, dict[str, np.ndarray]], Direction],
    *,
    order: Sequence[str] = (),
    in_order: bool = False,
    numbered: bool = True,
    transposed: bool = False,
    input_activation: str | None = None,
    as_stored: bool = False,
) -> Imported:
    """The classifier in arrays by name.

    Dense layers after the recurrent layers are hidden dense layers and the output layer, in the order in which their
    widths fit together. Biases that are missing are zero. A dense layer before the recurrent layers is folded into the
    first. One called attention, of one output and without bias, is that of attention pooling.

    Args:
      found: all arrays; other types than floats (counters, seeds) are ignored.
      place_of: of an array's name, where it belongs; None of arrays that are of no recurrent layer.
      forms: lists of the parts that a cell has; where there are several, each cell has one of them. Shorter lists
        stand before longer ones with the same parts.
      to_direction: makes a cell of the layer's name and its parts, in float32: see `weights.direction`.
      order: the names of the recurrent layers from the user, where neither names nor widths determine their order; with
        all dense layers, where their widths do not determine their order.
      in_order: whether `found` is in the order of the model.
      numbered: whether names that differ by numbers alone are in the order of these numbers.
      transposed: whether the weights of dense layers are [out, in].
      input_activation: what the user says of the activation after a dense layer before the recurrent layers: "linear".
      as_stored: whether `found` is in the order in which a program made its layers. This does not order them, but a
        dense layer between recurrent layers is refused. Where neither is known, its widths give a note.

    Raises:
      WeightsError: a part is missing, there is no output layer, the layers do not fit together, there is a dense layer
        before the recurrent layers and the user has not said that no activation follows it, or one between them.
    """
    places = {name: place for name in found if (place := place_of(name))}
    cells: dict[tuple[str, bool], dict[str, str]] = {}
    for name, (layer, part, backward) in places.items():
        cells.setdefault((layer, backward), {})[part] = name
    if not cells:
        firsts = dict.fromkeys(form[0] for form in forms)
        raise WeightsError(f"There is no LSTM or GRU layer: no {' or '.join(firsts)}. {listing(found)}")
    directions, notes = dict[tuple[str, bool], Direction](), []
    for (name, backward), parts in cells.items():
        form = max(forms, key=lambda form: len(parts.keys() & set(form)))
        if missing := [part for part in form if part not in parts]:
            raise WeightsError(f"The layer {name} lacks its {' and '.join(missing)}. {listing(found)}")
        cell = to_direction(name, {part: float32(found[parts[part]]) for part in form})
        _check_cell(name, cell, found)
        directions[name, backward] = cell
        if not any("b" in part for part in form) and not backward:
            notes.append(f"{name} has no biases: they are zero here, and would be trained")
    for name, _ in directions:
        if (name, False) not in directions:
            raise WeightsError(f"The layer {name} reads backwards alone; expected forwards, or both. {listing(found)}")
    layers = {name: Layer(cell, directions.get((name, True))) for (name, back), cell in directions.items() if not back}
    rest = {name: array for name, array in found.items() if "float" in str(array.dtype) and name not in places}
    dense, without = _dense_layers(rest, found, transposed)
    attention = next((name for name in without if re.split("[/.]", name)[-1] == "attention"), None)
    if attention and dense[attention].kernel.shape[1] == 1 and len(dense) > 1:
        without.remove(attention)
    else:
        attention = None
    scores = dense.pop(attention).kernel if attention else None
    names = order_layers(layers, found, order, in_order, numbered, dense)
    notes += [f"{name} has no bias: it is zero here, and would be trained" for name in without]
    all_named = bool(set(order) - set(layers))
    ends = layers[names[0]].in_features, layers[names[-1]].out_features
    before, after = _order_dense(dense, *ends, order if all_named else (), names, found)
    if not all_named and (in_order or as_stored):
        stored = dict.fromkeys(places[name].layer if name in places else dense_name(name) for name in found)
        _refuse_between([name for name in stored if name in layers or name in dense], names, after)
    elif not all_named:
        notes += _may_stand_between([layers[name] for name in names], names, {name: dense[name] for name in after[:-1]})
    if before:
        listed = ", ".join(before)
        if input_activation != "linear":
            raise WeightsError(
                f"The model has a dense layer before its recurrent layers: {listed}. Where no activation follows it, "
                "it is folded into them: confirm this with --input-activation linear. With an activation this "
                "classifier cannot hold it. (Without it the weights are of no use: do not --ignore it.)"
            )
        layers[names[0]] = folded(layers[names[0]], *product([dense[name] for name in before]))
        notes.append(f"{listed}, before the recurrent layers, is folded into the weights and biases of {names[0]}")
    stack = with_recurrent_biases([layers[name] for name in names])
    weights = check(Weights(stack, tuple(dense[name] for name in after), scores), (*names, *after), found)
    known = frozenset() if weights.steps is None else frozenset({"pooling"})
    return Imported(weights.config, to_params(weights), (*names, *after), notes=tuple(notes), known=known)


def _refuse_between(stored: Sequence[str], recurrent: Sequence[str], after: Sequence[str]) -> None:
    """Raises WeightsError where the file has a dense layer between the first and the last recurrent layer."""
    places = [place for place, name in enumerate(stored) if name in recurrent]
    if between := [name for name in stored[places[0] : places[-1]] if name not in recurrent]:
        options = " ".join(f"--layer {name}" for name in [*recurrent, *after])
        raise WeightsError(
            f"The file has {', '.join(between)} between its recurrent layers: {', '.join(stored)}. This classifier has "
            "no dense layer there. If the program computes them in another order than that of the file, name all "
            f"layers from the input to the output, such as: {options}."
        )


def _may_stand_between(layers: Sequence[Layer], names: Sequence[str], hidden: Mapping[str, Dense]) -> list[str]:
    """A note for the first two recurrent layers of different modules between which a hidden dense layer would fit."""
    modules = [re.sub(r"(^|\.)l\d+$", "", name) for name in names]  # of the layers of one nn.LSTM or nn.GRU, the same
    for number, (below, above) in enumerate(itertools.pairwise(layers)):
        shape = (below.out_features, above.in_features)
        if modules[number] == modules[number + 1]:
            continue
        if fitting := [name for name, dense in hidden.items() if dense.kernel.shape == shape]:
            return [
                f"the file does not hold where its dense layers stand: {', '.join(fitting)} is assumed to follow all "
                f"recurrent layers, and not to stand between {names[number]} and {names[number + 1]}"
            ]
    return []


def dense_arrays(rest: Arrays, found: Arrays) -> dict[str, tuple[str, str | None]]:
    """The names of the matrix and the vector of each dense layer, by its name; None where it has no vector.

    A matrix and a vector whose names differ in the last part are a layer; so are the only matrix and the only vector.

    Args:
      rest: the arrays that belong to no recurrent layer.
      found: all arrays, for messages.
    """
    scopes: dict[str, list[str]] = {}
    alone = sorted(len(array.shape) for array in rest.values()) == [1, 2]
    for name in rest:
        scopes.setdefault("" if alone else re.sub(r"[/.]?(vars/\d+|[^/.]+)$", "", name), []).append(name)
    layers: dict[str, tuple[str, str | None]] = {}
    for names in scopes.values():
        matrices = [name for name in names if len(rest[name].shape) == 2]
        vectors = [name for name in names if len(rest[name].shape) == 1]
        if not matrices and len(scopes) == 1:
            break
        fits = len(matrices) == 1 and len(vectors) == len(names) - 1 <= 1
        if not fits:
            raise WeightsError(
                "Expected recurrent layers and dense layers, each with a matrix and at most one vector, but there is "
                f"more besides the recurrent layers: {', '.join(names)}. If the model does without these, leave them "
                f"out with --ignore NAME; otherwise this classifier cannot hold it. {listing(found)}"
            )
        layers[dense_name(matrices[0])] = matrices[0], vectors[0] if vectors else None
    if not layers:
        raise WeightsError(
            "The output layer is missing: expected a matrix and a vector besides the recurrent layers, there are "
            f"{', '.join(rest) or 'none'}. {listing(found)}"
        )
    return layers


def _dense_layers(rest: Arrays, found: Arrays, transposed: bool) -> tuple[dict[str, Dense], list[str]]:
    """The dense layers in the arrays that belong to no recurrent layer, and the names of those without bias."""
    layers, without = {}, []
    for name, (matrix, vector) in dense_arrays(rest, found).items():
        kernel = float32(np.asarray(found[matrix]).T if transposed else found[matrix])
        if vector is None:
            without.append(name)
        layers[name] = Dense(
            kernel, np.zeros(kernel.shape[1], np.float32) if vector is None else float32(found[vector])
        )
    return layers, without


def dense_name(matrix: str) -> str:
    """The name of a dense layer, by the name of its matrix."""
    return re.sub(r"[/.](kernel|weight|vars/0)(:0)?$", "", matrix)


def _order_dense(
    dense: Mapping[str, Dense],
    inputs: int,
    outputs: int,
    given: Sequence[str],
    recurrent: Sequence[str],
    found: Arrays,
) -> tuple[list[str], list[str]]:
    """The names of the dense layers before and after the recurrent layers, which take `inputs` and give `outputs`."""
    if given:
        first = given.index(recurrent[0])
        end = first + len(recurrent)
        if list(given[first:end]) != list(recurrent):
            raise WeightsError(f"--layer names a dense layer between the recurrent layers: {', '.join(given)}.")
        return list(given[:first]), list(given[end:])
    if len(dense) == 1:
        return [], list(dense)
    stack = ""  # stands for the recurrent layers, whose outputs of all steps may be flattened
    widths = {name: layer.kernel.shape for name, layer in dense.items()}
    fitting = [
        (order[:place], order[place + 1 :])
        for order in _chains({stack: (inputs, outputs)} | widths, flattened=stack)
        if (place := order.index(stack)) < len(dense)
    ]
    names = sorted(dense, key=natural)
    if len(fitting) > 1 and len({re.sub(r"[._]?\d+", "", name) for name in names}) == 1 and ([], names) in fitting:
        return [], names
    own = [*(name for name in names if re.fullmatch(r"dense_hidden[./]\d+", name)), "dense"]  # this package's names
    if len(fitting) > 1 and sorted(own) == sorted(names) and ([], own) in fitting:
        return [], own
    if len(fitting) == 1:
        return fitting[0]
    if len(fitting) > 1 or len(dense) > MAX_PERMUTED:
        options = " ".join(f"--layer {name}" for name in [*recurrent, *names])
        raise WeightsError(
            f"Neither names nor widths determine the order of the dense layers {', '.join(names)}. Name all layers "
            f"from the input to the output: {options}. {listing(found)}"
        )
    shapes = ", ".join(f"{name} {widths[name][0]} -> {widths[name][1]}" for name in names)
    raise WeightsError(
        f"Expected dense layers that fit together and to the recurrent layers, which take {inputs} features and "
        f"give {outputs}, but there is more besides the recurrent layers: {shapes}. If the model does without some of "
        f"these, leave them out with --ignore NAME. {listing(found)}"
    )


def order_layers(
    layers: Mapping[str, Layer],
    found: Arrays,
    given: Sequence[str] = (),
    in_order: bool = False,
    numbered: bool = True,
    dense: Collection[str] = (),
) -> list[str]:
    """The names of recurrent layers from the input to the output: see `assemble`.

    They are sorted if they are `numbered` and differ by numbers alone, such as lstm_1 and lstm_2. Otherwise the order
    is the only one in which the input width of each layer is the output width of the one before.
    """
    names = sorted(layers, key=natural)
    if given:
        if sorted(given) not in (sorted(names), sorted([*names, *dense])):
            others = f", the dense layers {', '.join(dense)}" if dense else ""
            raise WeightsError(
                f"--layer names {', '.join(given)}; the recurrent layers are {', '.join(names)}{others}."
            )
        return [name for name in given if name in layers]
    if numbered and len({re.sub(r"[._]?\d+", "", name) for name in names}) == 1:
        return names
    if in_order:
        return list(layers)
    fitting = _chains({name: (layers[name].in_features, layers[name].out_features) for name in names})
    if len(fitting) > 1 or len(names) > MAX_PERMUTED:
        raise WeightsError(
            f"Neither names nor widths determine the order of the recurrent layers {', '.join(names)}. Name them "
            f"from the input to the output: {' '.join(f'--layer {name}' for name in names)}. {listing(found)}"
        )
    return fitting[0] if fitting else names


def _chains(widths: Mapping[str, tuple[int, ...]], flattened: str | None = None) -> list[list[str]]:
    """The orders in which each layer [in, out] takes what the one before gives, in multiples after `flattened`.

    There are none of more than `MAX_PERMUTED` layers.
    """

    def fit(before: str, after: str) -> bool:
        given, taken = widths[before][1], widths[after][0]
        return taken % given == 0 if before == flattened else taken == given

    orders = itertools.permutations(widths if len(widths) - (flattened is not None) <= MAX_PERMUTED else ())
    return [list(order) for order in orders if all(itertools.starmap(fit, itertools.pairwise(order)))]


def ignoring(found: Arrays, patterns: Iterable[str]) -> dict[str, Any]:
    """The arrays whose names match none of these patterns of `fnmatch`. Raises WeightsError, also for absurd names."""
    for name in found:
        if len(name) > MAX_NAME or not name.isprintable():
            raise WeightsError(f"The file has an array with the name {name[:100]!r}, which no program gives.")
    for pattern in patterns:
        kept = {name: array for name, array in found.items() if not fnmatchcase(name, pattern)}
        if len(kept) == len(found):
            raise WeightsError(f"Nothing is called {pattern!r}, so it cannot be ignored. {listing(found)}")
        found = kept
    return dict(found)


def listing(found: Arrays) -> str:
    """The arrays of a file, as a sentence."""
    if not found:
        return "The file holds no arrays."
    items = [f"{name} {list(array.shape)}" for name, array in found.items()]
    more = f" and {len(items) - MAX_LISTED} more, which --list shows" if len(items) > MAX_LISTED else ""
    return f"Found: {', '.join(items[:MAX_LISTED])}{more}."


def natural(name: str) -> list[tuple[int, str]]:
    """The sort key by which cell_10 comes after cell_9, and lstm2.l0 after lstm.l0."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+|[./])", name)]
