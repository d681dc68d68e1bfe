"""What a TensorFlow 1 graph computes with the variables of its checkpoint.

The graph is run on random images. A product with a variable (MatMul) is a layer: an LSTM cell, if its result is split
into four gates i, j, f, o, else a dense layer. They make a model like this program's, and the graph is it if that model
gives the logits of the graph. Names do not matter. Any other graph is refused, with what is known of the difference.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.tf1_run import ACTIVATIONS, PASSES, Env, Runner, kind_of, upstream
from lstm_mnist_jax.interop.tf_checkpoint.graph import VARIABLES, Graph, Node, Output

BATCH, STEPS = 5, 7
"""Sizes that a graph leaves open. The batch has three images with blank rows, and two without."""

MAX_PIXELS = 1 << 20
"""The most numbers in the images that a graph is run on."""

GATES = ("input", "candidate", "forget", "output")
CELL_ACTIVATIONS = {"Tanh": "tanh", "Relu": "relu", "": "linear"}
SOURCES = ("Placeholder", "IteratorGetNext", "QueueDequeue", "QueueDequeueMany", "QueueDequeueUpTo")
PLAIN = {
    *PASSES, "Add", "BiasAdd", "Cast", "Concat", "Const", "ExpandDims", "Fill", "Gather", "MatMul", "Merge", "Mul", "Pack", "Rank",
    "Reshape", "Shape", "Sigmoid", "Slice", "Split", "SplitV", "Squeeze", "StridedSlice", "Sub", "Switch", "Tanh", "Transpose", "Unpack",
    "TensorArrayGather", "TensorArrayRead", "TensorArrayScatter", "TensorArrayWrite", "TensorListFromTensor",
    "TensorListSetItem", "ZerosLike",
}  # fmt: skip
"""Operations that are in all graphs: a message about a difference does not name them."""


class Cell(NamedTuple):
    """An LSTM cell: the names of its kernel and its bias, and what is added to its forget gate."""

    kernel: str
    bias: str
    forget_bias: float


class Network(NamedTuple):
    """The classifier of a graph, by the names of variables in the checkpoint.

    Attributes:
      projections: the weights and biases of linear layers before the cells; a bias is "" where there is none.
      cells: from the input to the output; of layers in both directions, the forward cell comes first.
      dense: the weights and biases of the dense layers after the cells, the output layer last.
      fields: those of the `ModelConfig` that shapes do not show.
      adam: learning_rate, b1, b2 and epsilon, where the graph has Adam and they are constants.
      input_scaling: a factor and an offset of pixels from 0 to 1, before the first layer.
      scales_inputs: whether the graph scales its inputs, or takes integers: this determines what they are.
    """

    projections: tuple[tuple[str, str], ...]
    cells: tuple[Cell, ...]
    dense: tuple[tuple[str, str], ...]
    fields: dict[str, Any]
    adam: dict[str, float]
    input_scaling: tuple[float, float]
    scales_inputs: bool


def find_network(graph: Graph, found: Mapping[str, Any]) -> Network | None:
    """The classifier in a graph; None where the graph has no LSTM cell with these variables of its checkpoint.

    Raises:
      WeightsError: the graph computes something else than LSTM layers and dense layers.
    """
    saved = _saved_names(graph.nodes)
    networks = []
    for end in _ends(graph.nodes, saved, found):
        run = _Run(graph, end, saved, found)
        run.trace()
        if any(layer.is_cell for layer in run.layers.values()):
            networks.append(run)
    kernels = sorted({next(reversed(run.layers)) for run in networks})
    if len(kernels) > 1 or not networks:
        if not networks and not any(
            kind_of(node.op) in ("LSTMBlockCell", "BlockLSTM") for node in graph.nodes.values()
        ):
            return None
        raise WeightsError(
            f"Expected one output layer, a product with a variable after the LSTM cells; found "
            f"{', '.join(kernels) or 'none'}. Leave out what the model does without with --ignore."
        )
    (network, *others) = [run.network() for run in networks]
    if any(other != network for other in others):
        raise WeightsError(f"The graph uses {kernels[0]} in two networks that differ.")
    return network


def _saved_names(nodes: dict[str, Node]) -> dict[str, tuple[str, str]]:
    """The name in the checkpoint, and the slice of it, of each node that is a variable."""
    saved = {name: (name, "") for name, node in nodes.items() if node.op in VARIABLES}
    for node in nodes.values():
        if node.op in ("Save", "SaveSlices", "SaveV2") and len(node.inputs) > 2:
            names, slices = (nodes[each].strings if each in nodes else [] for each, _ in node.inputs[1:3])
            values = node.inputs[2 if node.op == "Save" else 3 :]
            for key, part, output in itertools.zip_longest(names, [] if node.op == "Save" else slices, values):
                for name in _sources(nodes, output) if output else ():
                    saved[name] = key or name, part or ""
    return saved


def _sources(nodes: dict[str, Node], output: Output) -> list[str]:
    """The nodes of variables whose values an output has, as they are or joined."""
    found, pending = dict[str, None](), [output[0]]
    while pending:
        if (name := pending.pop()) not in found and name in nodes:
            found[name] = None
            node = nodes[name]
            if kind_of(node.op) in ("Concat", *PASSES):
                pending += [each for each, _ in node.inputs if each in nodes and nodes[each].op != "Const"]
            elif node.op not in VARIABLES:
                return []
    return [name for name in found if nodes[name].op in VARIABLES]


def _is_product(node: Node) -> bool:
    return (
        node.op == "MatMul" and len(node.inputs) == 2 and not (node.number("transpose_a") or node.number("transpose_b"))
    )


def _ends(nodes: dict[str, Node], saved: dict[str, tuple[str, str]], found: Mapping[str, Any]) -> list[Output]:
    """The results of the products with a variable on which no other product with a variable depends."""
    products = {}
    for name, node in nodes.items():
        is_product = node.op == "MatMul" and len(node.inputs) == 2 and "_grad/" not in name
        sources = {saved[each][0] for each in _sources(nodes, node.inputs[1])} if is_product else ()
        if len(sources) == 1 and (kernel := next(iter(sources))) in found:
            products[name] = kernel
    before = upstream(nodes, (each for name in products for each, _ in nodes[name].inputs))
    cells = {kernel for name, kernel in products.items() if name in before}
    users = defaultdict[str, list[str]](list)
    for name, node in nodes.items():
        for each, _ in node.inputs:
            users[each].append(name)
    ends = []
    for name in (name for name, kernel in products.items() if name not in before and kernel not in cells):
        if not _is_product(nodes[name]):
            raise WeightsError(f"The graph takes {products[name]} transposed ({name}); here it is [features, classes].")
        pending, after, end = [name], [name], name
        while pending:
            for user in users[pending.pop()]:
                is_bias = kind_of(nodes[user].op) in ("Add", "BiasAdd") and any(
                    _sources(nodes, each) for each in nodes[user].inputs
                )
                if (is_bias or nodes[user].op in ("Identity", "Reshape")) and user not in after:
                    pending, after, end = [*pending, user], [*after, user], user if is_bias else end
        for user in (user for each in after for user in users[each] if "_grad/" not in user):
            op = nodes[user].op
            if op in ACTIVATIONS and op != "Sigmoid":
                raise WeightsError(
                    f"The output layer {products[name]} has the activation {op.lower()}; here it has none."
                )
            if op in ("RealDiv", "Div", "Mul") and _is_scalar(nodes, user, after):
                raise WeightsError(f"The outputs of {products[name]} are scaled ({user}); here they are the logits.")
        ends.append((end, 0))
    return ends


def _is_scalar(nodes: dict[str, Node], user: str, after: list[str]) -> bool:
    """Whether an operation takes, besides one of these nodes, a scalar constant."""
    others = [nodes[each] for each, _ in nodes[user].inputs if each not in after and each in nodes]
    return bool(others) and others[0].op == "Const" and others[0].value.size == 1


class _Layer:
    """A product with a variable, and what follows it."""

    def __init__(self, kernel: str) -> None:
        self.kernel, self.bias, self.activation = kernel, "", ""
        self.is_cell = False
        self.gates: dict[int, str] = {}
        """The activations of gates, by their places."""
        self.added: dict[int, float] = {}
        """The constants that are added to gates."""
        self.inputs: list[np.ndarray] = []

    def require(self, known: bool, what: str, node: str = "") -> None:
        if not known:
            where = node and f" (node {node})"
            raise WeightsError(f"The cell of {self.kernel} is no plain LSTM cell: it has {what}{where}.")


class _Mark(NamedTuple):
    """What is known of an array: a variable, the outputs of a layer, or one of its gates.

    Attributes:
      array: the array, which is kept so that no other has its id.
      variable: the name of the variable; "" where it is none.
      layer: whose outputs or gate it is.
      gate: the place of the gate.
    """

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
        self.values: dict[str, np.ndarray] = {}
        self.clip = math.inf
        self.kinds: dict[str, None] = {}
        self.kinds_before: list[str] = []
        self.is_integer, self.batch_axis = False, 0

    def trace(self) -> None:
        """Runs the graph."""
        self.images = np.zeros(0)
        fed = self._feeds()
        (self.logits,) = self.run(fed)
        if not isinstance(self.logits, np.ndarray):
            raise WeightsError(f"The logits of the graph depend on {self.logits.mark}.")

    def _feeds(self) -> Env:
        """What the graph is fed with."""
        nodes, fed = self.graph.nodes, dict[str, Any]()
        used = {output for name in self.needed for output in nodes[name].inputs}
        sources = sorted((name, number) for name, number in used if kind_of(self._op(name)) in SOURCES)
        shapes = {source: nodes[source[0]].shape(source[1]) for source in sources}
        types = {source: _type(nodes[source[0]], source[1]) for source in sources}
        inputs = [source for source, shape in shapes.items() if shape and len(shape) > 1 and types[source] != 10]
        if len(inputs) != 1:
            listed = ", ".join(name for name, _ in inputs) or "none"
            raise WeightsError(f"Expected a graph with one input of images; found {listed}.")
        shape = shapes[inputs[0]] or []
        self.batch_axis = shape.index(-1) if -1 in shape else 0
        shape[self.batch_axis] = batch = BATCH if shape[self.batch_axis] < 0 else shape[self.batch_axis]
        shape = [STEPS if size < 0 else size for size in shape]
        if not 0 < math.prod(shape) <= MAX_PIXELS:
            raise WeightsError(f"The graph takes images of the shape {shape}, which is too large to run it.")
        self.is_integer = types[inputs[0]] not in (1, 2, 14, 19)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, shape) if self.is_integer else rng.random(shape)
        first = np.moveaxis(images, self.batch_axis, 0)
        half = first.shape[1] // 2
        if batch > 3:  # where lengths are those of the images, blank rows show it
            first[1], first[2, half:], first[3, :half] = 0, 0, 0
        self.images = images
        steps = shape[1 - self.batch_axis] if len(shape) > 2 else math.isqrt(shape[-1])
        for source in sources:
            kind, rank = types[source], len(shapes[source] or ())
            value: Any = np.full(batch, steps) if rank else batch
            if kind in (1, 2, 14, 19, 10):
                value = np.array(kind != 10, np.float64 if kind != 10 else bool)  # all is kept; not in training
            outputs = [*fed.get(source[0], ()), *[None] * (source[1] + 1)]
            outputs[source[1]] = images if source == inputs[0] else np.array(value)
            fed[source[0]] = tuple(outputs)
        return fed

    def variable(self, name: str) -> np.ndarray:
        key, part = self.saved[name]
        if key not in self.found:
            raise WeightsError(
                f"The output of the graph depends also on {key}, which is not in the checkpoint or ignored."
            )
        if key not in self.values:
            self.values[key] = np.asarray(self.found[key]).astype(np.float64)
        values = self.values[key]
        if part.count(" ") == values.ndim and values.ndim:
            starts = [each.split(",") for each in part.rpartition(" ")[2].split(":")]
            values = values[
                tuple(
                    slice(None) if each == ["-"] else slice(int(each[0]), int(each[0]) + int(each[1]))
                    for each in starts
                )
            ]
            values = self.values[key] if values.shape == self.values[key].shape else values
        self.marks[id(values)] = _Mark(values, variable=key)
        return values

    def seen(self, name: str, node: Node, values: list[Any], result: Any) -> Any:
        kind = kind_of(node.op)
        marks = [self.marks.get(id(value)) for value in values]
        if any(isinstance(value, np.ndarray) and value.dtype.kind == "f" for value in values):
            self.kinds[kind] = None
        if _is_product(node) and marks[1] and marks[1].variable:
            layer = self._layer(marks[1].variable)
            layer.inputs.append(values[0])
            self._mark(result, layer)
        elif kind in ("Add", "BiasAdd"):
            for (mark, other), value in (((marks[0], marks[1]), values[1]), ((marks[1], marks[0]), values[0])):
                if mark and mark.layer and mark.gate is None and other and other.variable:
                    mark.layer.bias = other.variable
                    self._mark(result, mark.layer)
                elif mark and mark.layer and mark.gate is not None and np.size(value) == 1:
                    number = float(np.ravel(value)[0])
                    if mark.layer.added.setdefault(mark.gate, number) != number:
                        raise WeightsError(f"The graph uses {mark.layer.kernel} with two forget biases.")
                    self._mark(result, mark.layer, mark.gate)
        elif kind in ("Split", "SplitV", "StridedSlice", "Slice"):
            mark, results = marks[kind == "Split"], result if isinstance(result, tuple) else (result,)
            if mark and mark.layer and mark.gate is None:
                quarters = np.split(mark.array, 4, -1) if mark.array.shape[-1] % 4 == 0 else []
                for part, (place, quarter) in itertools.product(results, enumerate(quarters)):
                    if np.array_equal(part, quarter):
                        mark.layer.is_cell = True
                        self._mark(part, mark.layer, place)
        elif kind in (*ACTIVATIONS, "LeakyRelu") and marks[0] and marks[0].layer:
            if marks[0].gate is None:
                marks[0].layer.activation = kind
            else:
                marks[0].layer.gates[marks[0].gate] = kind
        elif kind == "Reshape" and marks[0] and marks[0].layer and result.shape[-1:] == values[0].shape[-1:]:
            self._mark(result, marks[0].layer, marks[0].gate)
        elif kind == "Concat":
            parts = {mark.variable for mark in marks if mark}
            if (
                len(parts) == 1
                and (whole := self.values.get(parts.pop())) is not None
                and np.array_equal(whole, result)
            ):
                self.marks[id(whole)] = _Mark(whole, variable=next(mark.variable for mark in marks if mark))
                return whole
        elif kind in ("Maximum", "Minimum", "ClipByValue") and values[0].dtype.kind == "f":
            self.clip = min([self.clip, *(float(abs(value)) for value in values if np.size(value) == 1)])
        elif kind in ("LSTMBlockCell", "BlockLSTM"):
            self._fused(name, node, values[kind == "BlockLSTM" :], marks[kind == "BlockLSTM" :])
        return result

    def _layer(self, kernel: str) -> _Layer:
        if not self.layers:
            self.kinds_before = list(self.kinds)
        return self.layers.setdefault(kernel, _Layer(kernel))

    def _mark(self, array: np.ndarray, layer: _Layer, gate: int | None = None) -> None:
        self.marks[id(array)] = _Mark(array, "", layer, gate)

    def _fused(self, name: str, node: Node, values: list[Any], marks: list[_Mark | None]) -> None:
        """TensorFlow's cells in one operation."""
        names = [mark.variable if mark else "" for mark in marks]
        if not names[3]:
            return
        layer = self._layer(names[3])
        layer.is_cell, layer.bias = True, names[7]
        layer.require(bool(names[7]), "no bias", name)
        layer.require(not node.number("use_peephole"), "peepholes", name)
        clip = node.number("cell_clip", 3.0)
        layer.require(clip <= 0, f"cell_clip={clip:g}", name)
        layer.gates, layer.added = (
            dict(enumerate(("Sigmoid", "Tanh", "Sigmoid", "Sigmoid"))),
            {2: node.number("forget_bias", 1.0)},
        )
        layer.inputs.append(values[0].reshape(-1, values[0].shape[-1]))

    def network(self) -> Network:
        """The layers. Raises WeightsError where the logits are not those of this program's model with them."""
        layers = list(self.layers.values())
        places = [place for place, layer in enumerate(layers) if layer.is_cell]
        first, last = places[0], places[-1] + 1
        projections, cells, dense = layers[:first], layers[first:last], layers[last:]
        for cell in cells:
            if not cell.is_cell:
                raise WeightsError(
                    f"There is a dense layer {cell.kernel} between LSTM cells; this program's model has none there."
                )
        fields = self._activations(cells, dense)
        for layer in projections:
            if layer.activation:
                raise WeightsError(
                    f"The graph computes {layer.activation} of the outputs of {layer.kernel} before {cells[0].kernel}; "
                    "this program's model computes nothing there."
                )
        known = {name for layer in layers for name in (layer.kernel, layer.bias)}
        if others := set(self.values) - known:
            raise WeightsError(
                f"The output of the graph depends also on {', '.join(sorted(others))}, which is no part of LSTM layers "
                "and dense layers."
            )
        if dense[-1].bias == "":
            raise WeightsError(f"The output layer {dense[-1].kernel} has no bias; this program's model has one.")
        self.factor, self.offset = self._scaling(layers[0])
        if self.clip < math.inf and not (fields["activation"] == "tanh" and self.clip >= self.images[0].size):
            cells[-1].require(False, "a clipped cell state (cell_clip)")
        cells, more = self._match(projections, cells, dense, fields)
        is_bytes = self.is_integer or abs(self.factor) < 1 / 20  # of pixels from 0 to 1 none is so small
        factor = _decimal(self.factor * (255 if is_bytes else 1))
        return Network(
            tuple((layer.kernel, layer.bias) for layer in projections),
            tuple(Cell(cell.kernel, cell.bias, _decimal(cell.added.get(2, 0.0))) for cell in cells),
            tuple((layer.kernel, layer.bias) for layer in dense),
            fields | more,
            _adam(self.graph.nodes),
            (factor, _decimal(self.offset)),
            is_bytes or (factor, _decimal(self.offset)) != (1.0, 0.0),
        )

    def _activations(self, cells: list[_Layer], dense: list[_Layer]) -> dict[str, Any]:
        """The activations, which are those of all cells, and of all hidden dense layers."""
        for cell in cells:
            for place, gate in enumerate(GATES):
                found = cell.gates.get(place, "")
                if place != 1:
                    cell.require(found != "", f"another computation of its {gate} gate")
                    cell.require(found == "Sigmoid", f"the activation {found.lower()} instead of sigmoid")
                cell.require(
                    place != 1 or found in CELL_ACTIVATIONS,
                    f"the activation {found.lower()} instead of tanh, relu or none (linear)",
                )
        own = {cell.kernel: CELL_ACTIVATIONS[cell.gates.get(1, "")] for cell in cells}
        hidden = {layer.kernel: layer.activation for layer in dense[:-1]}
        for what, found in (("cells", own), ("dense layers", hidden)):
            if len(set(found.values())) > 1:
                listed = ", ".join(f"{name} {each.lower() or 'linear'}" for name, each in found.items())
                raise WeightsError(
                    f"The {what} have different activations: {listed}; in this program's model all have one."
                )
        fields = {"activation": own[cells[0].kernel], "recurrent_activation": "sigmoid"}
        if hidden:
            (activation,) = set(hidden.values())
            if activation not in CELL_ACTIVATIONS:
                raise WeightsError(
                    f"The dense layer {next(iter(hidden))} has the activation {activation.lower()}; this program's model "
                    "has relu, tanh or none (linear)."
                )
            fields["dense_activation"] = CELL_ACTIVATIONS[activation]
        return fields

    def _scaling(self, layer: _Layer) -> tuple[float, float]:
        """The factor and the offset by which the first layer's inputs are the images' pixels, in whatever order."""
        width = len(self.values[layer.kernel]) - (self._hidden(layer) if layer.is_cell else 0)
        inputs = [each.reshape(-1, each.shape[-1]) for each in layer.inputs]
        pixels = np.sort(self.images.ravel().astype(np.float64))
        read = np.sort(np.concatenate([each[:, :width].ravel() for each in inputs]))
        if read.size < pixels.size:
            raise WeightsError(
                f"{layer.kernel} reads {read.size * 100 // pixels.size} % of the images' pixels; this program's model reads all."
            )
        if factor_and_offset := _fit(pixels, read):
            return factor_and_offset
        if layer.is_cell and _fit(pixels, np.sort(np.concatenate([each[:, -width:].ravel() for each in inputs]))):
            raise WeightsError(
                f"The cell of {layer.kernel} joins its state and its input in another order than TensorFlow's."
            )
        changes = ", ".join(kind for kind in self.kinds_before if kind not in PLAIN)
        raise WeightsError(
            f"The graph computes {changes or 'something'} of its inputs before {layer.kernel}; this program's model computes "
            "nothing there, except for one factor and one offset."
        )

    def _hidden(self, cell: _Layer) -> int:
        return self.values[cell.kernel].shape[1] // 4

    def _match(
        self, projections: list[_Layer], cells: list[_Layer], dense: list[_Layer], fields: dict[str, Any]
    ) -> tuple[list[_Layer], dict[str, Any]]:
        """The cells in order, and the fields of the config, with which the model has the graph's logits."""
        scale = 1 + np.abs(self.logits).max()
        if not np.isfinite(scale):
            raise WeightsError("The logits of the graph are not finite numbers for random images; it cannot be of use.")
        near = ""
        for stack in _stacks(cells):
            for reading, images in self._readings(projections, cells[0]):
                for taken, features in self._features(stack, projections, images, fields):
                    logits = self._dense(dense, features, fields)
                    if logits is None or logits.shape != self.logits.shape:
                        continue
                    wrong = np.abs(logits - self.logits).max(axis=-1) > 1e-8 * scale
                    if not wrong.any():
                        both = {"bidirectional": True} if len(stack[0]) > 1 else {}
                        if taken in ("last", "mean", "max", "all") and reading == "rows":
                            return list(itertools.chain(*stack)), both | ({} if taken == "last" else {"pooling": taken})
                        if both and reading != "rows":
                            reading, taken = "rows", "the backward direction before the forward one"
                        what = f"{dense[0].kernel} takes {taken}" if reading == "rows" else f"The graph reads {reading}"
                        last = "final state of each direction" if both else "last output"
                        raise WeightsError(
                            f"{what}; this program's model reads rows from the first one, and takes the {last} of the last "
                            "layer, or the mean, the maximum or all of its outputs."
                        )
                    if len(wrong) == BATCH and not wrong[[0, 4]].any() and not near:
                        near = (
                            " It does for images without blank rows: the graph computes sequence lengths of the images."
                        )
        changes = ", ".join(sorted(self.kinds.keys() - PLAIN))
        raise WeightsError(
            f"The graph computes something else with {', '.join(self.layers)} than this program's model: for random images "
            f"the logits differ.{near} It may have residual connections, another initial state or another order of steps"
            f"{changes and f', and has the operations {changes}'}."
        )

    def _readings(self, projections: list[_Layer], cell: _Layer) -> Iterator[tuple[str, np.ndarray]]:
        """The images as sequences [batch, steps, features], in the ways in which programs read them."""
        first = (projections or [cell])[0]
        width = len(self.values[first.kernel]) - (0 if projections else self._hidden(cell))
        batch = self.images.shape[self.batch_axis]
        images = np.moveaxis(self.images, self.batch_axis, 0).reshape(batch, -1) * self.factor + self.offset
        if width < 1 or images.shape[1] % width:
            return
        rows, columns = images.reshape(batch, -1, width), images.reshape(batch, width, -1).transpose(0, 2, 1)
        yield "rows", rows
        yield "images by columns", columns
        yield "rows backwards, from the last to the first", rows[:, ::-1]
        yield "images by columns backwards", columns[:, ::-1]

    def _features(
        self, stack: list[tuple[_Layer, ...]], projections: list[_Layer], x: np.ndarray, fields: dict[str, Any]
    ) -> Iterator[tuple[str, np.ndarray]]:
        """What a dense layer may take of recurrent layers, by what it is."""
        for layer in projections:
            x = self._product(layer, x)
        states = []
        for number, layers in enumerate(stack):
            if any(len(self.values[cell.kernel]) != x.shape[-1] + self._hidden(cell) for cell in layers):
                return
            outputs = []
            for place, cell in enumerate(layers):
                h, c = self._recurrent(cell, x[:, :: -1 if place else 1], fields["activation"])
                outputs.append(h[:, :: -1 if place else 1])
                states.append((f"the cell state c of {cell.kernel}, not the hidden state h", c))
                if number + 1 < len(stack):
                    states.append((f"the outputs of {cell.kernel}, not of the last layer", h[:, -1]))
            x = np.concatenate(outputs, -1)
        yield "last", np.concatenate([each[:, -place] for place, each in zip((1, 0), outputs, strict=False)], -1)
        yield "mean", x.mean(1)
        yield "max", x.max(1)
        yield "all", x.reshape(len(x), -1)
        both = " of both directions, of which the backward one has read a single row there" if len(outputs) > 1 else ""
        for step in range(x.shape[1]):
            yield f"the outputs of step {step + 1} of {x.shape[1]}{both}", x[:, step]
        yield from states
        yield "the sum over time", x.sum(1)

    def _product(self, layer: _Layer, x: np.ndarray) -> np.ndarray:
        product = x @ self.values[layer.kernel]
        return product + self.values[layer.bias] if layer.bias else product

    def _recurrent(self, cell: _Layer, x: np.ndarray, activation: str) -> tuple[np.ndarray, np.ndarray]:
        """The outputs of a cell [batch, steps, hidden], and its last cell state."""
        function = {"tanh": np.tanh, "relu": ACTIVATIONS["Relu"], "linear": lambda x: x}[activation]
        h = c = np.zeros((len(x), self._hidden(cell)))
        outputs = []
        for step in range(x.shape[1]):
            i, j, f, o = np.split(self._product(cell, np.concatenate([x[:, step], h], 1)), 4, 1)
            c = expit(f + cell.added.get(2, 0.0)) * c + expit(i) * function(j)
            h = expit(o) * function(c)
            outputs.append(h)
        return np.stack(outputs, 1), c

    def _dense(self, dense: list[_Layer], x: np.ndarray, fields: dict[str, Any]) -> np.ndarray | None:
        for layer in dense:
            if x.shape[-1] != len(self.values[layer.kernel]):
                return None
            x = self._product(layer, x)
            if layer is not dense[-1] and layer.activation:
                x = ACTIVATIONS[layer.activation](x)
        return x


def _stacks(cells: list[_Layer]) -> Iterator[list[tuple[_Layer, ...]]]:
    """The cells as layers in one direction, then as layers in both."""
    yield [(cell,) for cell in cells]
    if len(cells) % 2 == 0 and len(cells) <= 8:
        pairs = list(zip(cells[::2], cells[1::2], strict=True))
        for turned in itertools.product((1, -1), repeat=len(pairs)):
            yield [pair[::turn] for pair, turn in zip(pairs, turned, strict=True)]


def _fit(pixels: np.ndarray, read: np.ndarray) -> tuple[float, float] | None:
    """The factor and the offset by which these numbers are those pixels, both sorted; None where they are not."""
    for each in (pixels, pixels[::-1]) if read.size == pixels.size else ():
        factor = (read[-1] - read[0]) / (each[-1] - each[0])
        offset = read[0] - factor * each[0]
        if factor and np.allclose(read, factor * each + offset, rtol=0, atol=1e-9 * max(1.0, *abs(read[[0, -1]]))):
            return float(factor), float(offset)
    return None


def _type(node: Node, number: int) -> int:
    """The number of the type of a source of inputs."""
    for name in ("output_types", "component_types"):
        if name in node.attributes:
            types = node.attributes[name].list.type
            return int(types[number]) if number < len(types) else 0
    return int(node.number("dtype"))


def _adam(nodes: dict[str, Node]) -> dict[str, float]:
    """The hyperparameters of Adam that are constants."""
    for node in nodes.values():
        if node.op in ("ApplyAdam", "ResourceApplyAdam"):
            named = zip(("learning_rate", "b1", "b2", "epsilon"), node.inputs[5:9], strict=False)
            values = {name: _constant(nodes, output) for name, output in named}
            return {name: _decimal(value) for name, value in values.items() if value is not None}
    return {}


def _constant(nodes: dict[str, Node], output: Output) -> float | None:
    """The value of a scalar constant; None where it is none."""
    for _ in range(10):
        node = nodes.get(output[0])
        if node is None or node.op not in (*PASSES, "Const") or (node.op != "Const" and not node.inputs):
            return None
        if node.op == "Const":
            return float(node.value) if node.value.shape == () and node.value.dtype.kind in "fiu" else None
        output = node.inputs[0]
    return None


def _decimal(value: float) -> float:
    """A number that was rounded to float32 as the decimal number that it was."""
    return float(f"{value:.7g}")
