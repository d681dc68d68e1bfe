"""What a TensorFlow 1 graph computes with the variables of its checkpoint.

The graph is run on random images. A product with a variable (MatMul) is a layer: an LSTM cell, if its result is split
into four gates i, j, f, o, else a dense layer. The graph is read if this program's model with these layers has its
logits. Names do not matter. Any other graph is refused, with what is known of the difference.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.tf1_run import ACTIVATIONS, PASSES, Env, Runner, kind_of, lstm_cell, upstream
from lstm_mnist_jax.interop.tf_checkpoint.graph import VARIABLES, Graph, Node, Output

BATCH, STEPS = 5, 7
"""Sizes that a graph leaves open. Of a batch, images 1 to 3 have blank rows."""

MAX_PIXELS = 1 << 20
"""The most numbers in the images that a graph is run on."""

GATES = ("input", "candidate", "forget", "output")
FUNCTIONS = {"tanh": np.tanh, "relu": ACTIVATIONS["Relu"], "linear": lambda x: x}
FLOATS, BOOL = (1, 2, 14, 19), 10
"""Numbers of types."""

POOLINGS = ("last", "last_step", "mean", "max", "all")
SCALES = ("Mul", "RealDiv", "Div")
SOURCES = ("Placeholder", "IteratorGetNext", "QueueDequeue", "QueueDequeueMany", "QueueDequeueUpTo")
REMARKABLE = ("AddN", "Exp", "Max", "Maximum", "Mean", "Min", "Minimum", "Neg", "RealDiv", "Relu", "Reverse",
              "ReverseSequence", "Select", "Sub", "Sum", "Tile")  # fmt: skip
"""Operations that a message about a difference names."""


class Cell(NamedTuple):
    """An LSTM cell: the names of its kernel and its bias, and what is added to its forget gate."""

    kernel: str
    bias: str
    forget_bias: float


class Network(NamedTuple):
    """The classifier of a graph or, without one, of names; by the names of variables in the checkpoint.

    Attributes:
      cells: from the input to the output; of layers in both directions, the forward cell comes first.
      dense: the weights and biases of the dense layers after the cells, the output layer last.
      projections: the weights and biases of linear layers before the cells; a bias is "" where there is none.
      fields: those of the `ModelConfig` that shapes do not show; empty without a graph.
      adam: learning_rate, b1, b2 and epsilon, where the graph has Adam and they are constants.
      input_scaling: a factor and an offset of pixels from 0 to 1, before the first layer.
      scales_inputs: whether the graph scales its inputs, or takes integers: this determines what they are.
    """

    cells: tuple[Cell, ...]
    dense: tuple[tuple[str, str], ...]
    projections: tuple[tuple[str, str], ...] = ()
    fields: Mapping[str, Any] = MappingProxyType({})
    adam: Mapping[str, float] = MappingProxyType({})
    input_scaling: tuple[float, float] = (1.0, 0.0)
    scales_inputs: bool = False

    @property
    def layers(self) -> list[tuple[Cell, ...]]:
        """The cells of each layer."""
        size = 1 + self.fields.get("bidirectional", False)
        return [self.cells[place : place + size] for place in range(0, len(self.cells), size)]

    @property
    def names(self) -> list[str]:
        """Of all weights and biases that a cell or a dense layer has, the output layer's last."""
        return [str(name) for pair in (*self.cells, *self.dense) for name in pair[:2]]


def find_network(graph: Graph, found: Mapping[str, Any]) -> Network | None:
    """The classifier in a graph; None where the graph has no LSTM cell with these variables of its checkpoint.

    Raises:
      WeightsError: the graph computes something else than LSTM layers and dense layers.
    """
    saved = _saved_names(graph.nodes)
    runs = [_Run(graph, end, saved, found) for end in _ends(graph.nodes, saved, found)]
    runs = [run for run in runs if run.has_cells()]
    kernels = sorted({next(reversed(run.layers)) for run in runs})
    if len(kernels) > 1:
        raise WeightsError(
            f"Expected one output layer, a product with a variable after the LSTM cells; found {', '.join(kernels)}. "
            "Leave out what the model does without with --ignore."
        )
    networks = [run.network() for run in runs]
    if any(network != networks[0] for network in networks):
        raise WeightsError(f"The graph uses {kernels[0]} in two networks that differ.")
    return networks[0] if networks else None


def _saved_names(nodes: dict[str, Node]) -> dict[str, tuple[str, str]]:
    """The name in the checkpoint, and the slice of it, of each node that is a variable."""
    saved = {name: (name, "") for name, node in nodes.items() if node.op in VARIABLES}
    for node in nodes.values():
        if node.op in ("Save", "SaveSlices", "SaveV2") and len(node.inputs) > 2:
            names, parts = (nodes[each].strings if each in nodes else [] for each, _ in node.inputs[1:3])
            values = node.inputs[2:] if node.op == "Save" else node.inputs[3:]
            parts = [""] * len(names) if node.op == "Save" else parts
            for key, part, output in zip(names, parts, values, strict=False):
                saved |= dict.fromkeys(_sources(nodes, output), (key, part))
    return saved


def _sources(nodes: dict[str, Node], output: Output) -> list[str]:
    """The nodes of variables whose values an output has, as they are or joined; none if it has others."""
    found, pending = dict[str, None](), [output[0]]
    while pending:
        if (name := pending.pop()) not in found and name in nodes:
            found[name] = None
            if kind_of(nodes[name].op) in ("Concat", *PASSES):
                pending += [each for each, _ in nodes[name].inputs if each in nodes and nodes[each].op != "Const"]
            elif nodes[name].op not in VARIABLES:
                return []
    return [name for name in found if nodes[name].op in VARIABLES]


def _is_product(node: Node) -> bool:
    return node.op == "MatMul" and len(node.inputs) == 2 and not any(map(node.number, ("transpose_a", "transpose_b")))


def _ends(nodes: dict[str, Node], saved: dict[str, tuple[str, str]], found: Mapping[str, Any]) -> list[Output]:
    """What becomes of the products with a variable on which no other product with a variable depends."""
    products, users = dict[str, str](), defaultdict[str, list[str]](list)
    for name, node in nodes.items():
        for each, _ in node.inputs:
            users[each].append(name)
        if node.op == "MatMul" and len(node.inputs) == 2 and "_grad/" not in name:
            keys = {saved[each][0] for each in _sources(nodes, node.inputs[1])}
            if len(keys) == 1 and keys <= found.keys():
                (products[name],) = keys
    before = upstream(nodes, (each for name in products for each, _ in nodes[name].inputs))
    cells = {kernel for name, kernel in products.items() if name in before}
    ends = []
    for name in (name for name, kernel in products.items() if name not in before and kernel not in cells):
        if not _is_product(nodes[name]):
            raise WeightsError(f"The graph takes {products[name]} transposed ({name}); here it is [features, classes].")
        pending, seen, end = [name], {name}, name
        while pending:
            for user in users[pending.pop()]:
                kind, others = kind_of(nodes[user].op), [each for each in nodes[user].inputs if each[0] not in seen]
                constant = nodes.get(others[0][0]) if others else None
                changes = (
                    kind in ("Relu", "Tanh")
                    or (kind in ("Add", "BiasAdd") and others and _sources(nodes, others[0]))
                    or (kind in SCALES and constant and constant.op == "Const" and constant.value.size == 1)
                )
                if user not in seen and "_grad/" not in user and (changes or kind in ("Identity", "Reshape")):
                    pending, end = [*pending, user], user if changes else end
                    seen.add(user)
        ends.append((end, 0))
    return ends


class _Layer:
    """A product with a variable, and what follows it.

    Attributes:
      kernel: the name of the variable.
      bias: the name of what is added; "" where nothing is.
      activation: the operation on the sum; "" where there is none.
      is_cell: whether the sum is split into gates.
      gates: the activations of gates, by their places.
      added: the constants that are added to gates.
      inputs: the factors.
    """

    def __init__(self, kernel: str) -> None:
        self.kernel, self.bias, self.activation, self.is_cell = kernel, "", "", False
        self.gates, self.added, self.inputs = dict[int, str](), dict[int, float](), list[np.ndarray]()

    def require(self, is_so: bool, what: str) -> None:
        if not is_so:
            raise WeightsError(f"The cell of {self.kernel} is no plain LSTM cell: it has {what}.")


class _Mark(NamedTuple):
    """What is known of an array, which is kept so that no other has its id: a variable, a layer's sum, or a gate."""

    array: np.ndarray
    variable: str = ""
    layer: _Layer | None = None
    gate: int | None = None


class _Run(Runner):
    """A run of a graph on random images that finds its layers."""

    def __init__(self, graph: Graph, end: Output, saved: dict[str, tuple[str, str]], found: Mapping[str, Any]) -> None:
        super().__init__(graph, [end])
        self.saved, self.found = saved, found
        self.layers: dict[str, _Layer] = {}
        self.marks: dict[int, _Mark] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.kinds: dict[str, None] = {}
        self.clip = math.inf

    def has_cells(self) -> bool:
        """Runs the graph. Whether there are LSTM cells."""
        (self.logits,) = self.run(self._feeds())
        if not isinstance(self.logits, np.ndarray):
            raise WeightsError(f"The logits of the graph depend on {self.logits.mark}.")
        return any(layer.is_cell for layer in self.layers.values())

    def _feeds(self) -> Env:
        """The inputs of the graph: images, and for the rest what is so when it is used."""
        nodes = self.graph.nodes
        used = sorted(
            {output for name in self.needed for output in nodes[name].inputs if kind_of(self._op(output[0])) in SOURCES}
        )
        shapes = {source: nodes[source[0]].shape(source[1]) or [] for source in used}
        types = {source: _type(nodes[source[0]], source[1]) for source in used}
        inputs = [source for source in used if len(shapes[source]) > 1 and types[source] != BOOL]
        if len(inputs) != 1:
            listed = ", ".join(name for name, _ in inputs) or "none"
            raise WeightsError(f"Expected a graph with one input of images; found {listed}.")
        shape = shapes[inputs[0]]
        axis = shape.index(-1) if -1 in shape else 0
        batch = shape[axis] = BATCH if shape[axis] < 0 else shape[axis]
        shape = [STEPS if size < 0 else size for size in shape]
        if not 0 < math.prod(shape) <= MAX_PIXELS:
            raise WeightsError(f"The graph takes images of the shape {shape}, which are too large, or none.")
        self.is_integer, rng = types[inputs[0]] not in FLOATS, np.random.default_rng(0)
        images: np.ndarray = rng.integers(0, 256, shape) if self.is_integer else rng.random(shape)
        self.images: np.ndarray = np.moveaxis(images, axis, 0)
        half = self.images.shape[1] // 2
        blank = {1: slice(None), 2: slice(half), 3: slice(half, None)} if batch == BATCH else {-1: slice(half, None)}
        for number, part in blank.items():
            self.images[number, part] = 0  # where sequence lengths are computed of the images, blank rows show it
        steps = self.images.shape[1] if len(shape) > 2 else math.isqrt(shape[-1])
        fed = dict[str, Any]()
        for source, kind in types.items():  # nothing is dropped, and it is not training; all steps are read
            value = images if source == inputs[0] else np.array(1.0 if kind in FLOATS else kind != BOOL and batch)
            value = np.full(batch, steps) if len(shapes[source]) == 1 and kind not in FLOATS else value
            outputs = [*fed.get(source[0], ()), *[None] * (source[1] + 1)]
            outputs[source[1]] = value
            fed[source[0]] = tuple(outputs)
        return fed

    def variable(self, name: str) -> np.ndarray:
        key, part = self.saved[name]
        if key not in self.found:
            raise WeightsError(f"The output of the graph depends also on {key}, which is not there, or is ignored.")
        if key not in self.arrays:
            self.arrays[key] = np.asarray(self.found[key]).astype(np.float64)
            self._mark(self.arrays[key], variable=key)
        whole = self.arrays[key]
        extents = [extent.partition(",") for extent in part.rpartition(" ")[2].split(":")] if part else []
        places = [
            slice(None) if start == "-" else slice(int(start), int(start) + int(size)) for start, _, size in extents
        ]
        if (values := whole[tuple(places)]).shape == whole.shape:
            return whole
        self._mark(values, variable=key)
        return values

    def seen(self, name: str, node: Node, values: list[Any], result: Any) -> Any:
        kind = kind_of(node.op)
        marks = [self.marks.get(id(value), _Mark(value)) for value in values]
        self.kinds |= {kind: None} if any(getattr(value, "dtype", None) == np.float64 for value in values) else {}
        if _is_product(node) and marks[1].variable:
            layer = self.layers.setdefault(marks[1].variable, _Layer(marks[1].variable))
            layer.inputs.append(values[0])
            self._mark(result, layer=layer)
        elif kind in ("Add", "BiasAdd"):
            for mark, other in (marks, marks[::-1]):
                if mark.layer and mark.gate is None and other.variable:
                    mark.layer.bias = other.variable
                    self._mark(result, layer=mark.layer)
                elif mark.layer and mark.gate is not None and np.size(other.array) == 1:
                    number = float(np.ravel(other.array)[0])
                    mark.layer.require(mark.layer.added.setdefault(mark.gate, number) == number, "two forget biases")
                    self._mark(result, layer=mark.layer, gate=mark.gate)
        elif kind in ("Split", "SplitV", "StridedSlice", "Slice"):
            mark = marks[kind == "Split"]
            if mark.layer and mark.gate is None and mark.array.shape[-1] % 4 == 0:
                parts, quarters = result if isinstance(result, tuple) else [result], np.split(mark.array, 4, -1)
                for part, (place, quarter) in itertools.product(parts, enumerate(quarters)):
                    if np.array_equal(part, quarter):
                        mark.layer.is_cell = True
                        self._mark(part, layer=mark.layer, gate=place)
        elif kind in ACTIVATIONS and marks[0].layer:
            if marks[0].gate is None:
                marks[0].layer.activation = kind.lower()
            else:
                marks[0].layer.gates[marks[0].gate] = kind.lower()
        elif kind == "Reshape" and marks[0].layer and result.shape[-1:] == values[0].shape[-1:]:
            self._mark(result, layer=marks[0].layer, gate=marks[0].gate)
        elif kind == "Concat":  # the parts of a variable
            whole = self.arrays.get(next((mark.variable for mark in marks if mark.variable), ""))
            return result if whole is None or not np.array_equal(whole, result) else whole
        elif kind in ("Maximum", "Minimum", "ClipByValue") and values[0].dtype.kind == "f":
            self.clip = min([self.clip, *(float(abs(value)) for value in values if np.size(value) == 1)])
        elif kind in ("LSTMBlockCell", "BlockLSTM"):
            x, _, _, kernel, _, _, _, bias = marks[kind == "BlockLSTM" :]
            layer = self.layers.setdefault(kernel.variable, _Layer(kernel.variable))
            clip = node.number("cell_clip", 3.0)
            layer.require(kernel.variable != "" != bias.variable, "weights that are no variables")
            layer.require(clip <= 0, f"cell_clip={clip:g}")
            layer.require(not node.number("use_peephole"), "peepholes")
            layer.is_cell, layer.bias, layer.added = True, bias.variable, {2: node.number("forget_bias", 1.0)}
            layer.gates = {0: "sigmoid", 1: "tanh", 2: "sigmoid", 3: "sigmoid"}
            layer.inputs.append(x.array)
        return result

    def _mark(self, array: np.ndarray, **known: Any) -> None:
        self.marks[id(array)] = _Mark(array, **known)

    def network(self) -> Network:
        """The layers. Raises WeightsError where the logits are not those of this program's model with them."""
        layers = list(self.layers.values())
        places = [place for place, layer in enumerate(layers) if layer.is_cell]
        first, last = places[0], places[-1] + 1
        before, cells, dense = layers[:first], layers[first:last], layers[last:]
        if not dense:
            raise WeightsError(f"There is no output layer after the LSTM cell of {cells[-1].kernel}.")
        fields = self._fields(before, cells, dense)
        known = {name for layer in layers for name in (layer.kernel, layer.bias)}
        if others := self.arrays.keys() - known:
            raise WeightsError(
                f"The output of the graph depends also on {', '.join(sorted(others))}, which is no part of LSTM layers "
                "and dense layers."
            )
        self.width = len(self.arrays[layers[0].kernel]) - (0 if before else self._hidden(cells[0]))
        factor, offset = self._scaling(layers[0])
        self.images = self.images.reshape(len(self.images), -1) * factor + offset
        largest = (
            self.images.shape[1] // self.width if fields["activation"] == "tanh" else math.inf
        )  # of the cell states
        cells[-1].require(self.clip >= largest, "a clipped cell state (cell_clip)")
        cells, more = self._match(before, cells, dense, fields)
        is_bytes = self.is_integer or abs(factor) < 1 / 20  # of pixels from 0 to 1, none is so small
        scaling = _decimal(factor * (255 if is_bytes else 1)), _decimal(offset)
        return Network(
            tuple(Cell(cell.kernel, cell.bias, _decimal(cell.added.get(2, 0.0))) for cell in cells),
            tuple((layer.kernel, layer.bias) for layer in dense),
            tuple((layer.kernel, layer.bias) for layer in before),
            fields | more,
            _adam(self.graph.nodes),
            scaling,
            is_bytes or scaling != (1.0, 0.0),
        )

    def _fields(self, before: list[_Layer], cells: list[_Layer], dense: list[_Layer]) -> dict[str, Any]:
        """The activations. Raises WeightsError where this program's model has no such layers."""
        for cell in cells:
            if not cell.is_cell:
                raise WeightsError(f"There is a dense layer {cell.kernel} between LSTM cells; here there is none.")
            for place, gate in enumerate(GATES):
                found = cell.gates.get(place, "linear" if place == 1 else "")
                cell.require(found != "", f"another computation of its {gate} gate")
                expected = tuple(FUNCTIONS) if place == 1 else ("sigmoid",)
                cell.require(found in expected, f"the activation {found} instead of {' or '.join(expected)}")
        for layer in before:
            if layer.activation:
                raise WeightsError(
                    f"The graph computes {layer.activation} of the outputs of {layer.kernel} before {cells[0].kernel}; "
                    "this program's model computes nothing there."
                )
        if dense[-1].activation:
            raise WeightsError(
                f"The output layer {dense[-1].kernel} has the activation {dense[-1].activation}; here it has none."
            )
        if without := [layer.kernel for layer in [*cells, *dense] if not layer.bias]:
            what = "output layer" if without[0] == dense[-1].kernel else "layer"
            raise WeightsError(f"The {what} {without[0]} has no bias; this program's model has one.")
        fields = {"recurrent_activation": "sigmoid"}
        own = {cell.kernel: cell.gates.get(1, "linear") for cell in cells}
        hidden = {layer.kernel: layer.activation or "linear" for layer in dense[:-1]}
        for name, theirs in (("activation", own), ("dense_activation", hidden)):
            if len({*theirs.values()}) > 1 or not FUNCTIONS.keys() >= {*theirs.values()}:
                listed = ", ".join(f"{kernel} {each}" for kernel, each in theirs.items())
                raise WeightsError(
                    f"Layers have the activations {listed}; in this program's model all LSTM layers have one, and all "
                    f"hidden dense layers have one: {', '.join(FUNCTIONS)}."
                )
            if theirs:
                (fields[name],) = {*theirs.values()}
        return fields

    def _hidden(self, cell: _Layer) -> int:
        return self.arrays[cell.kernel].shape[1] // 4

    def _scaling(self, first: _Layer) -> tuple[float, float]:
        """The factor and the offset by which the first layer's inputs are the images' pixels, in whatever order."""
        inputs = [each.reshape(-1, each.shape[-1]) for each in first.inputs]
        pixels, read, others = (
            np.sort(np.concatenate([each.ravel() for each in parts]))
            for parts in (self.images, [x[:, : self.width] for x in inputs], [x[:, -self.width :] for x in inputs])
        )
        for place, numbers in enumerate((read, read[::-1], others)):
            if len(numbers) == len(pixels):
                factor = (numbers[-1] - numbers[0]) / (pixels[-1] - pixels[0])
                offset = numbers[0] - factor * pixels[0]
                limit = 1e-9 * (1 + abs(numbers).max())
                if factor and np.allclose(numbers, factor * pixels + offset, rtol=0, atol=limit):
                    if place == 2:
                        first.require(False, "the state before the input, where TensorFlow's has the input first")
                    return float(factor), float(offset)
        if len(read) < len(pixels):
            share = len(read) * 100 // len(pixels)
            raise WeightsError(f"{first.kernel} reads {share} % of the images' pixels; this program's model reads all.")
        raise WeightsError(
            f"The graph computes more than one factor and one offset of its inputs before {first.kernel}; this "
            f"program's model computes nothing there.{self._listing()}"
        )

    def _listing(self) -> str:
        kinds = ", ".join(kind for kind in REMARKABLE if kind in self.kinds)
        return kinds and f" The graph has the operations {kinds}."

    def _match(
        self, before: list[_Layer], cells: list[_Layer], dense: list[_Layer], fields: dict[str, Any]
    ) -> tuple[list[_Layer], dict[str, Any]]:
        """The cells in order, and the fields of the config, with which the model has the graph's logits."""
        limit = 1e-8 * (1 + np.abs(self.logits).max())
        if not np.isfinite(limit):
            raise WeightsError("The logits of the graph are not finite numbers for random images; it cannot be of use.")
        found = note = ""
        for stack, (reading, images) in itertools.product(_stacks(cells), self._readings()):
            for taken, logits in self._logits(before, stack, dense, images, FUNCTIONS[fields["activation"]]):
                if logits.shape != self.logits.shape:
                    continue
                wrong = ~(np.abs(logits - self.logits).max(axis=-1) <= limit)  # nor are they NaN
                if not wrong.any() and reading in ("rows", "columns") and taken in POOLINGS:
                    task = "pixels" if self.width == 1 else reading
                    more = {"bidirectional": len(stack[0]) > 1, "pooling": taken, "task": task}
                    return list(itertools.chain(*stack)), more
                if not wrong.any() and len(stack[0]) > 1 and taken == "last":
                    found = found or "joins the backward direction before the forward one"
                elif not wrong.any():
                    found = found or f"reads {reading}, and {dense[0].kernel} takes {taken} of {stack[-1][-1].kernel}"
                elif len(wrong) == BATCH and not wrong[[0, 4]].any():
                    note = " They differ for images with blank rows alone: the graph computes sequence lengths."
        names = ", ".join(self.layers)
        raise WeightsError(
            f"The graph {found or f'computes other logits of random images than a model with {names}'}; "
            "here a model reads rows or columns from the first one, and takes the last h of the last layer, of each "
            f"direction its own, both at the last step, or the mean, the maximum or all h.{note}{self._listing()}"
        )

    def _readings(self) -> list[tuple[str, np.ndarray]]:
        """The images as sequences [batch, steps, features], in the ways in which programs read them."""
        batch, pixels = self.images.shape
        if self.width < 1 or pixels % self.width:
            return []
        rows = self.images.reshape(batch, -1, self.width)
        columns = self.images.reshape(batch, self.width, -1).transpose(0, 2, 1)
        return [("rows", rows), ("columns", columns), ("rows backwards", rows[:, ::-1])]

    def _logits(
        self, before: list[_Layer], stack: list[tuple[_Layer, ...]], dense: list[_Layer], x: np.ndarray, activation: Any
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The logits of the model, by what its dense layers take of the last LSTM layer."""
        for layer in before:
            x = self._sum(layer, x)
        for cells in stack:
            if any(len(self.arrays[cell.kernel]) != x.shape[-1] + self._hidden(cell) for cell in cells):
                return
            states = [self._states(cell, x[:, ::turn], activation) for cell, turn in zip(cells, (1, -1), strict=False)]
            x = np.concatenate([h[:, ::turn] for (h, _), turn in zip(states, (1, -1), strict=False)], -1)
        taken = {"last": np.concatenate([h[:, -1] for h, _ in states], -1), "last_step": x[:, -1]}
        taken |= {
            "mean": x.mean(1),
            "max": x.max(1),
            "all": x.reshape(len(x), -1),
            "the last cell state c": np.concatenate([c for _, c in states], -1),
        }
        taken |= {f"the outputs h of step {step + 1} of {x.shape[1]}": x[:, step] for step in range(x.shape[1])}
        for name, features in taken.items():
            if features.shape[-1] == len(self.arrays[dense[0].kernel]):
                for layer in dense:
                    features = self._sum(layer, features)
                    features = ACTIVATIONS[layer.activation.capitalize()](features) if layer.activation else features
                yield name, features

    def _sum(self, layer: _Layer, x: np.ndarray) -> np.ndarray:
        return x @ self.arrays[layer.kernel] + (self.arrays[layer.bias] if layer.bias else 0)

    def _states(self, cell: _Layer, x: np.ndarray, activation: Any) -> tuple[np.ndarray, np.ndarray]:
        """The outputs h of a cell [batch, steps, hidden], and its last c."""
        h = c = np.zeros((len(x), self._hidden(cell)))
        kernel, bias, outputs = self.arrays[cell.kernel], self.arrays[cell.bias], []
        for step in range(x.shape[1]):
            c, h = lstm_cell(x[:, step], c, h, kernel, bias, cell.added.get(2, 0.0), activation)
            outputs.append(h)
        return np.stack(outputs, 1), c


def _stacks(cells: list[_Layer]) -> Iterator[list[tuple[_Layer, ...]]]:
    """The cells as layers in one direction, then as layers in both."""
    yield [(cell,) for cell in cells]
    pairs = list(zip(cells[::2], cells[1::2], strict=False))
    if len(cells) in (2, 4, 6):
        for turned in itertools.product((1, -1), repeat=len(pairs)):
            yield [pair[::turn] for pair, turn in zip(pairs, turned, strict=True)]


def _type(node: Node, number: int) -> int:
    """The number of the type of an input."""
    types = [
        *node.integers("output_types"),
        *node.integers("component_types"),
        *[int(node.number("dtype"))] * (number + 1),
    ]
    return types[number]


def _adam(nodes: dict[str, Node]) -> dict[str, float]:
    """The hyperparameters of Adam that are constants."""
    for node in nodes.values():
        if node.op in ("ApplyAdam", "ResourceApplyAdam"):
            named = zip(("learning_rate", "b1", "b2", "epsilon"), node.inputs[5:9], strict=False)
            constants = {name: nodes[each] for name, (each, _) in named if each in nodes and nodes[each].op == "Const"}
            return {name: _decimal(float(node.value)) for name, node in constants.items() if node.value.shape == ()}
    return {}


def _decimal(value: float) -> float:
    """A number that was rounded to float32 as the decimal number that it was."""
    return float(f"{value:.7g}")
