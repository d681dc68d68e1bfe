"""What a TensorFlow 1 graph computes with the variables of its checkpoint.

A product with a variable (MatMul) begins a layer: an LSTM cell, if four gates i, j, f, o and what combines them follow,
else a dense layer. Operations decide, not names. The layers are then followed from the output to the input, over
operations that pass values on. What is none of this is refused.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.tf_checkpoint.graph import VARIABLES, Node, Output

MAX_STEPS = 3_000_000
"""The most outputs to visit. A hundred unrolled steps of five layers need 200,000."""

ADD = ("Add", "AddV2", "BiasAdd")
CONCAT = ("Concat", "ConcatV2")
GATES = ("input", "candidate", "forget", "output")
ACTIVATIONS = ("Sigmoid", "Tanh", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Softplus", "Softsign")
CONSTANTS = ("Const", "Fill", "ZerosLike", "OnesLike", "TensorArray", "TensorListReserve")
READS = ("Identity", "Enter", "ReadVariableOp", "Switch", "RefSwitch", "Merge", "NextIteration", "Reshape", "Transpose")

PASSES = dict.fromkeys(
    (*READS, "Exit", "StridedSlice", "Slice", "Squeeze", "ExpandDims", "Unpack", "SplitV", "Gather", "StopGradient",
     "Cast", "TensorListGetItem", "TensorListFromTensor", "TensorListStack"), 0,
) | dict.fromkeys(("Split", "TensorArrayUnpack", "TensorArrayPack"), 1) | dict.fromkeys(
    ("TensorArrayRead", "TensorArrayWrite", "TensorArrayGather", "TensorArrayScatter", "TensorListSetItem"), 2
)  # fmt: skip
"""Which input an operation passes on. A stack of time steps passes all of them on, and so does each step of it."""


class Cell(NamedTuple):
    """An LSTM cell: the names of its kernel and its bias, and what is added to its forget gate."""

    kernel: str
    bias: str
    forget_bias: float


class Network(NamedTuple):
    """The classifier of a graph, by the names of variables in the checkpoint.

    Attributes:
      projections: the weights and biases of linear layers before the cells; a bias is "" where there is none.
      cells: from the input to the output.
      dense: the output layer.
      adam: learning_rate, b1, b2 and epsilon, where the graph has Adam and they are constants.
      input_scaling: a factor and an offset of pixels from 0 to 1, before the first layer.
      scales_inputs: whether the graph scales its inputs, or takes bytes: this determines what they are.
    """

    projections: tuple[tuple[str, str], ...]
    cells: tuple[Cell, ...]
    dense: tuple[str, str]
    adam: dict[str, float]
    input_scaling: tuple[float, float]
    scales_inputs: bool


def find_network(nodes: dict[str, Node], names: Collection[str]) -> Network | None:
    """The classifier in a graph; None where the graph has no LSTM cell with the variables of these names.

    Raises:
      WeightsError: the graph computes something else than LSTM layers and one dense layer.
    """
    graph = _Graph(nodes, names)
    graph.find_layers()
    return graph.network() if any(layer.cell for layer in graph.layers.values()) else None


class _Layer:
    """A layer by its kernel, with the values that it takes: one for each unrolled time step and each copy."""

    def __init__(self, bias: str, cell: bool, forget_bias: float = 0.0) -> None:
        self.bias, self.cell, self.forget_bias = bias, cell, forget_bias
        self.inputs: list[Output] = []
        self.states: list[Output] = []
        """Of each step h, then c."""
        self.outputs: list[Output] = []


class _Path(NamedTuple):
    """Where values come from.

    Attributes:
      layers: those whose outputs they are.
      states: those whose cell states they are.
      changes: the kinds of operations on the way that change them.
      passed: all operations on the way.
      scalings: factors and offsets on the way, the last one first.
    """

    layers: set[str]
    states: set[str]
    changes: set[str]
    passed: list[tuple[Output, Node]]
    scalings: list[tuple[float, float]]


class _Graph:
    """A graph with the names that its variables have in the checkpoint."""

    def __init__(self, nodes: dict[str, Node], names: Collection[str]) -> None:
        self.nodes, self.budget = nodes, MAX_STEPS
        self.layers: dict[str, _Layer] = {}
        self.results: dict[Output, str] = {}
        self.cell_states: dict[Output, str] = {}
        self.steps: dict[Output, int] = {}
        self.users: dict[Output, list[str]] = defaultdict(list)
        for name, node in nodes.items():
            for output in node.inputs:
                self.users[output].append(name)
        self.saved = {name: name for name, node in nodes.items() if node.op in VARIABLES}
        for node in nodes.values():
            if node.op in ("Save", "SaveSlices", "SaveV2") and len(node.inputs) > 2:
                values = node.inputs[2 if node.op == "Save" else 3 :]
                for key, output in zip(self.node(node.inputs[1]).strings, values, strict=False):
                    for (name, _), node in self._walk([output], lambda _, node: self._values(_, node) or ()):
                        if node.op in VARIABLES and key in names:
                            self.saved[name] = key
        self.known = {name: key for name, key in self.saved.items() if key in names}

    def node(self, output: Output) -> Node:
        return self.nodes.get(output[0], Node("", (), []))

    def _spend(self, steps: int) -> None:
        self.budget -= steps
        if self.budget < 0:
            raise WeightsError("The graph has too many connections to be followed.")

    def _walk(
        self, outputs: Iterable[Output], follow: Callable[[Output, Node], Iterable[Output]]
    ) -> Iterator[tuple[Output, Node]]:
        """The outputs upstream of these, each once."""
        pending, seen = list(outputs), set()
        while pending:
            if (output := pending.pop()) not in seen and output[0] in self.nodes:
                seen.add(output)
                self._spend(1)
                yield output, self.nodes[output[0]]
                pending += follow(output, self.nodes[output[0]])

    def variable(self, output: Output) -> str:
        """The name of the variable that these values are, also in parts; empty where they are something else."""
        found = set()

        def follow(output: Output, node: Node) -> Iterable[Output]:
            if node.op in VARIABLES:
                found.add(self.known.get(output[0], ""))
                return ()
            is_moved = node.op == "Transpose" and self.integers(node, 1) != [0, 1]
            if is_moved or node.op not in (*READS, *CONCAT):
                found.add("")
                return ()
            return self._values(output, node) or ()

        for _ in self._walk([output], follow):
            if "" in found:
                break
        return found.pop() if len(found) == 1 else ""

    def constant(self, output: Output) -> float | None:
        """The value of a scalar constant; None where it is none."""
        for _, node in self._walk([output], lambda _, node: node.inputs[:1] if node.op in (*READS, "Cast") else ()):
            if node.op not in (*READS, "Cast"):
                value = node.value
                return None if value is None or value.shape or value.dtype.kind not in "fiu" else float(value)
        return None

    def integers(self, node: Node, place: int) -> list[int]:
        """The constant integers that a node takes; none where they are no constants."""
        value = self.node(node.inputs[place]).value if len(node.inputs) > place else None
        return [] if value is None or value.dtype.kind != "i" else value.ravel().tolist()

    def consumers(self, output: Output, ops: Collection[str]) -> list[str]:
        """The nodes of these kinds that take an output."""
        found, pending, seen = [], [output], set()
        while pending:
            users = self.users.get(pending.pop(), ())
            self._spend(len(users))
            for name in users:
                if name not in seen:
                    seen.add(name)
                    if self.nodes[name].op in ops:
                        found.append(name)
                    elif self.nodes[name].op in ("Identity", "Reshape"):
                        pending.append((name, 0))
        return found

    def find_layers(self) -> None:
        """Finds all products with a variable, and TensorFlow's fused cells."""
        for name, node in self.nodes.items():
            if node.op == "MatMul" and not (node.number("transpose_a", 0.0) or node.number("transpose_b", 0.0)):
                if len(node.inputs) == 2 and (kernel := self.variable(node.inputs[1])):
                    self._product(name, node, kernel)
            elif node.op in ("LSTMBlockCell", "BlockLSTM"):
                self._fused(name, node)
            elif node.op == "BlockLSTMV2":
                raise WeightsError(
                    f"The graph has a cell of the kind BlockLSTMV2 ({name}), which import does not read."
                )

    def _add(
        self, kernel: str, bias: str, forget_bias: float | None, x: Output, states: list[Output], result: Output,
        cell_state: Output | None = None,
    ) -> None:  # fmt: skip
        layer = self.layers.setdefault(kernel, _Layer(bias, forget_bias is not None, forget_bias or 0.0))
        if (layer.bias, layer.cell, layer.forget_bias) != (bias, forget_bias is not None, forget_bias or 0.0):
            raise WeightsError(f"The graph uses {kernel} in two ways: in different layers, or with two forget biases.")
        layer.inputs.append(x)
        layer.outputs.append(result)
        layer.states += states
        self.results[result] = kernel
        if cell_state:
            self.cell_states[cell_state] = kernel

    def _fused(self, name: str, node: Node) -> None:
        """Adds TensorFlow's cell in one operation."""
        inputs = node.inputs[node.op == "BlockLSTM" :]  # its first is the length
        if len(inputs) == 8 and (kernel := self.variable(inputs[3])):
            clip, peephole = node.number("cell_clip", 3.0), node.number("use_peephole", 0.0)
            bias, forget_bias = self.variable(inputs[7]), node.number("forget_bias", 1.0)
            if clip > 0 or peephole or not bias:
                what = "peepholes" if peephole else f"cell_clip={clip:g}" if bias else "no bias"
                raise self._unlike(kernel, name, what)
            states = [] if node.op == "BlockLSTM" else [inputs[2], inputs[1]]
            self._add(kernel, bias, forget_bias, inputs[0], states, (name, 6), (name, 1))

    def _product(self, name: str, node: Node, kernel: str) -> None:
        """Adds the layer that begins with a MatMul."""
        output, bias = (name, 0), ""
        for user in self.consumers(output, ADD):
            if found := next(filter(None, map(self.variable, self.nodes[user].inputs[:2])), ""):
                output, bias = (user, 0), found
        splits = [user for user in self.consumers(output, ["Split"]) if self.nodes[user].number("num_split", 0.0) == 4]
        if not splits:
            self._add(kernel, bias, None, node.inputs[0], [], output)
            return
        joined = self.node(node.inputs[0])
        values = [value for value in self._values(node.inputs[0], joined) or () if joined.op in CONCAT]
        if len(values) != 2 or not bias:
            raise self._unlike(
                kernel, name, "no bias" if len(values) == 2 else "no concatenation of the input and the state"
            )
        forget_bias, result, state, state_before = self._cell(splits[0], kernel)
        self._add(kernel, bias, forget_bias, values[0], [values[1], state_before], result, state)

    def _cell(self, split: str, kernel: str) -> tuple[float, Output, Output, Output]:
        """What a cell adds to its forget gate, its output h, its state c, and the state before."""

        def activated(output: Output) -> list[str]:
            return self.consumers(output, ACTIVATIONS)

        def both(users: list[str], a: str, b: str) -> list[str]:
            return [user for user in users if {*self.nodes[user].inputs[:3]} == {(a, 0), (b, 0)}]

        forget_bias, forget = 0.0, activated((split, 2))
        for add in self.consumers((split, 2), ADD):
            added = [value for output in self.nodes[add].inputs[:2] if (value := self.constant(output)) is not None]
            if len(added) == 1 and activated((add, 0)):
                (forget_bias,), forget = added, activated((add, 0))
        gates = dict(
            zip(GATES, (activated((split, 0)), activated((split, 1)), forget, activated((split, 3))), strict=True)
        )
        for gate, users in gates.items():
            if len(users) != 1:
                raise self._unlike(kernel, split, f"another computation of its {gate} gate")
            expected, found = "Tanh" if gate == "candidate" else "Sigmoid", self.nodes[users[0]].op
            if found != expected:
                raise self._unlike(kernel, users[0], f"the activation {found.lower()} instead of {expected.lower()}")
        i, j, f, o = (users[0] for users in gates.values())
        for product in both(self.consumers((i, 0), ["Mul"]), i, j):
            for state in self.consumers((product, 0), ADD):
                kept = [self.node(output) for output in self.nodes[state].inputs[:2] if output[0] != product]
                before = [each for each in kept[0].inputs if each[0] != f] if kept and kept[0].op == "Mul" else []
                if len(before) != 1 or len(kept[0].inputs) != 2:
                    continue
                if self.consumers((state, 0), ["Minimum", "Maximum", "ClipByValue"]):
                    raise self._unlike(kernel, state, "a clipped cell state (cell_clip)")
                for activation in activated((state, 0)):
                    for result in both(self.consumers((o, 0), ["Mul"]), activation, o):
                        if (found := self.nodes[activation].op) != "Tanh":
                            raise self._unlike(kernel, activation, f"the activation {found.lower()} instead of tanh")
                        return forget_bias, (result, 0), (state, 0), before[0]
        raise self._unlike(kernel, split, "another combination of its gates")

    def _unlike(self, kernel: str, node: str, what: str) -> WeightsError:
        return WeightsError(f"The cell of {kernel} is no plain LSTM cell: it has {what} (node {node}).")

    def _values(self, output: Output, node: Node) -> Iterable[Output] | None:
        """The inputs whose values an operation passes on; None where it changes them."""
        op, inputs = re.sub(r"V\d$", "", node.op), node.inputs
        if op in ("While", "StatelessWhile"):
            return [(f"{output[0]}/{output[1]}", 0)]
        if op in ("Pack", "Concat"):
            return inputs[1:] if node.op == "Concat" else inputs[: -1 if node.op == "ConcatV2" else None]
        if op == "Merge":
            return [each for each in inputs if self._carries(output[0], each)] or inputs
        if op == "Mul" and len(inputs) == 2:
            for mask, kept in (inputs, inputs[::-1]):
                if self.node(mask).op in ("Floor", "Cast") and self._is_random(mask):
                    return [self._unscaled(kept)]
        if op == "Select" and len(inputs) == 3 and self.node(inputs[0]).op == "GreaterEqual":
            # Dropout keeps its second input; dynamic_rnn takes the third before the end of a sequence.
            return [self._unscaled(inputs[1]) if self._is_random(inputs[0]) else inputs[2]]
        place = PASSES.get(op)
        return None if place is None else inputs[place : place + 1]

    def _carries(self, merge: str, output: Output) -> bool:
        """Whether this is the NextIteration of a loop's value that changes from step to step."""
        node = self.node(output)
        if node.op != "NextIteration":
            return False
        for _ in range(10):
            if node.op not in ("NextIteration", "Identity", "Switch") or not node.inputs:
                break
            output = node.inputs[0]
            node = self.node(output)
        return output[0] != merge

    def _is_random(self, output: Output) -> bool:
        """Whether this is a mask of random numbers."""
        ops = ("Floor", "Cast", "GreaterEqual", "Mul", "Sub", *ADD)
        upstream = self._walk([output], lambda _, node: node.inputs if node.op in ops else ())
        return any("Random" in node.op for _, node in upstream)

    def _unscaled(self, output: Output) -> Output:
        """What dropout scales by 1 / keep_prob."""
        node = self.node(output)
        return node.inputs[0] if node.op in ("RealDiv", "Div", "Mul") and node.inputs else output

    def _path(self, outputs: Iterable[Output]) -> _Path:
        """Where these values come from."""
        path = _Path(set(), set(), set(), [], [])

        def follow(output: Output, node: Node) -> Iterable[Output]:
            path.passed.append((output, node))
            if kernel := self.results.get(output):
                path.layers.add(kernel)
            elif kernel := self.cell_states.get(output):
                path.states.add(kernel)
            elif (values := self._values(output, node)) is not None:
                return values
            elif scaling := self._scaling(node):
                path.scalings.append(scaling[1:])
                return [scaling[0]]
            elif re.sub(r"V\d$", "", node.op) not in CONSTANTS and node.inputs:
                path.changes.add(node.op)
                return node.inputs
            return ()

        for _ in self._walk(outputs, follow):
            pass
        return path

    def network(self) -> Network:
        """The layers from the input to the output."""
        paths = {kernel: self._path(layer.inputs) for kernel, layer in self.layers.items()}
        used = {before for path in paths.values() for before in path.layers | path.states}
        ends = [kernel for kernel, layer in self.layers.items() if not layer.cell and kernel not in used]
        chains = [self._chain(end, paths) for end in ends]
        chains = [chain for chain in chains if any(self.layers[kernel].cell for kernel in chain)]
        if len(chains) != 1:
            found = ", ".join(chain[0] for chain in chains) or "none"
            raise WeightsError(
                f"Expected one output layer, a product with a variable after the LSTM cells; found {found}. Leave out "
                "what the model does without with --ignore."
            )
        (chain,) = chains
        last, *before = chain
        cells = [kernel for kernel in before[::-1] if self.layers[kernel].cell]
        projections = before[::-1][: len(before) - len(cells)]
        if any(self.layers[kernel].cell for kernel in projections):
            hidden = [kernel for kernel in before if not self.layers[kernel].cell]
            raise WeightsError(
                f"There is a dense layer {hidden[0]} after LSTM cells, besides the output layer {last}; this program's "
                "model has one dense layer."
            )
        for kernel in chain:
            self._require_plain(kernel, paths[kernel], first=kernel == chain[-1])
        for kernel in chain[::-1]:
            self._require_order_of_steps(kernel, is_last=kernel == last)
        self._require_known({last, *before}, last)
        self._require_logits(last)
        layers = {kernel: self.layers[kernel] for kernel in chain}
        return Network(
            tuple((kernel, layers[kernel].bias) for kernel in projections),
            tuple(Cell(kernel, layers[kernel].bias, _decimal(layers[kernel].forget_bias)) for kernel in cells),
            (last, layers[last].bias),
            self._adam(),
            *self._input_scaling(chain[-1]),
        )

    def _chain(self, kernel: str, paths: dict[str, _Path]) -> list[str]:
        """A layer and those before it, from the output to the input."""
        chain, pending = [], [kernel]
        while pending:
            if (kernel := pending.pop()) not in chain:
                chain.append(kernel)
                pending += sorted(paths[kernel].layers | paths[kernel].states)
        return chain

    def _require_plain(self, kernel: str, path: _Path, first: bool) -> None:
        """Raises WeightsError unless a layer takes the outputs of one layer, or the images, as they are."""
        layer = self.layers[kernel]
        if path.states:
            raise WeightsError(f"{kernel} takes the cell state c of {', '.join(path.states)}, not the hidden state h.")
        if kernel in path.layers:
            raise WeightsError(
                f"The cell of {kernel} joins its state and its input in another order than TensorFlow's."
            )
        if len(path.layers) > 1:
            raise WeightsError(
                f"{kernel} takes the outputs of {', '.join(sorted(path.layers))} together (both directions, residual "
                "connections, layers in parallel); in this program's model each layer takes those of one layer."
            )
        refused = path.changes
        if not first and path.scalings:
            refused |= {"a product or a sum with a constant"}
        if first:
            refused |= {node.op for _, node in path.passed if node.op in ("Gather", "GatherV2")}
        if refused:
            source = "its inputs" if first else f"the outputs of {', '.join(path.layers)}"
            raise WeightsError(
                f"The graph computes {', '.join(sorted(refused))} of {source} before {kernel}; this program's model "
                "computes nothing there."
            )
        for (name, number), node in path.passed:
            axes = self.integers(node, 1) if node.op == "Transpose" else []
            strides = self.integers(node, 3) if node.op == "StridedSlice" else []
            if first and ((len(axes) == 3 and axes[-1] != 2) or min(strides, default=1) < 0):
                raise WeightsError(f"The graph reads images by columns or backwards ({name}), not by rows.")
            if not first and not layer.cell and self._takes_first_step(number, node):
                raise WeightsError(f"{kernel} takes the outputs of the first time step ({name}), not of the last one.")
        state = self._path(layer.states)
        if layer.states and ((state.layers, state.states) != ({kernel}, {kernel}) or state.changes or state.scalings):
            raise WeightsError(f"The cell of {kernel} does not keep its own h and c unchanged as its state.")
        for (name, _), node in self._walk(layer.states, self._initial):
            if "Random" in node.op or node.op == "OnesLike" or (node.op == "Fill" and self.constant(node.inputs[-1])):
                raise WeightsError(f"The cell of {kernel} begins with another state than zeros ({name}).")

    def _initial(self, output: Output, node: Node) -> Iterable[Output]:
        """What a state is before the first step: followed as its values are, but out of loops."""
        if output in self.results or output in self.cell_states:
            return ()
        if node.op == "Merge":
            return [each for each in node.inputs if self.node(each).op != "NextIteration"]
        return self._values(output, node) or ()

    def _require_order_of_steps(self, kernel: str, is_last: bool) -> None:
        """Raises WeightsError where an unrolled layer does not take its time steps from the first to the last."""
        layer = self.layers[kernel]
        before = {
            result: [output for output, _ in self._path([state]).passed if output in self.results]
            for result, state in zip(layer.outputs, layer.states[::2], strict=False)
        }
        for result, x in zip(layer.outputs, layer.inputs, strict=True):
            chain = [result]
            while (found := before.get(chain[-1])) and found[0] not in self.steps and found[0] not in chain:
                chain.append(found[0])
            if not (found and found[0] in chain):  # it is no loop
                first = self.steps[found[0]] + 1 if found and found[0] in self.steps else 0
                numbers = range(first, first + len(chain)) if layer.cell and layer.states else ()
                self.steps |= dict(zip(chain[::-1], numbers, strict=False))
            passed = self._path([x]).passed
            steps = {step for output, node in passed for step in self._step_of(output, node)}
            if not layer.cell and len(steps) == 1:
                self.steps[result] = min(steps)
            expected = self.steps.get(result)
            if is_last and len(steps) == 1 and (taken := [output for output, _ in passed if output in self.results]):
                of_layer = self.layers[self.results[taken[0]]].outputs
                expected = max(self.steps.get(output, 0) for output in of_layer) if taken[0] in self.steps else None
            if expected is not None and steps and steps != {expected}:
                raise WeightsError(f"The graph takes the time steps before {kernel} in another order ({result[0]}).")

    def _step_of(self, output: Output, node: Node) -> list[int]:
        """The time step that an operation selects, or whose result this is."""
        if output in self.results:
            return [self.steps[output]] if output in self.steps else []
        if node.number({"Unpack": "num", "Split": "num_split", "SplitV": "num_split"}.get(node.op, ""), 1.0) > 1:
            return [output[1]]
        mask = int(node.number("shrink_axis_mask", 0.0)) if node.op == "StridedSlice" else 0
        begin = self.integers(node, 1) if mask else []
        return [start for axis, start in enumerate(begin) if mask >> axis & 1]

    def _takes_first_step(self, number: int, node: Node) -> bool:
        if node.op == "Unpack":
            return number == 0 and node.number("num", 1.0) > 1
        if node.op in ("Gather", "GatherV2"):
            return len(node.inputs) > 1 and self.constant(node.inputs[1]) == 0
        begin = self.integers(node, 1) if node.op == "StridedSlice" else []
        mask = int(node.number("shrink_axis_mask", 0.0))
        return any(mask >> axis & 1 and start == 0 for axis, start in enumerate(begin))

    def _require_known(self, kernels: set[str], last: str) -> None:
        """Raises WeightsError where the output depends on other variables, too."""
        known = kernels | {self.layers[kernel].bias for kernel in kernels}
        upstream = self._walk(self.layers[last].outputs, lambda _, node: node.inputs)
        others = {self.saved[name] for (name, _), node in upstream if node.op in VARIABLES} - known
        if others:
            raise WeightsError(
                f"The output of the graph depends also on {', '.join(sorted(others))}, which is no part of LSTM layers "
                "and one dense layer."
            )

    def _scaling(self, node: Node) -> tuple[Output, float, float] | None:
        """The input that an operation with a constant number scales and shifts, the factor and the offset."""
        if node.op not in ("Mul", "RealDiv", "Div", "Sub", *ADD) or len(node.inputs) != 2:
            return None
        left, right = map(self.constant, node.inputs)
        number = right if left is None else left
        if number is None or None not in (left, right) or (right is None and node.op not in ("Mul", *ADD)):
            return None
        factor, offset = 1.0, 0.0
        if node.op in ("Sub", *ADD):
            offset = -number if node.op == "Sub" else number
        elif node.op == "Mul" or number:
            factor = number if node.op == "Mul" else 1 / number
        return node.inputs[left is not None], factor, offset

    def _input_scaling(self, kernel: str) -> tuple[tuple[float, float], bool]:
        """A factor and an offset of pixels from 0 to 1 before the first layer, and whether the graph has them."""
        paths = [self._path([output]) for output in self.layers[kernel].inputs]
        if any(path.scalings != paths[0].scalings for path in paths):
            raise WeightsError(f"The graph scales the inputs of {kernel} in different ways.")
        scalings, passed = paths[0].scalings, paths[0].passed
        joined = any(len(tuple(self._values(*each) or ())) > 1 for each in passed)
        if scalings and joined:
            raise WeightsError(f"The graph scales parts of the inputs of {kernel}.")
        # Bytes, by their type, or because they are divided by 255, are pixels from 0 to 255.
        is_bytes = any(not node.inputs and node.number("dtype", 0.0) == 4 for _, node in passed)
        is_bytes = is_bytes or any(abs(255 * factor - 1) < 1e-6 and not offset for factor, offset in scalings[-1:])
        factor, offset = 1.0, 0.0
        for scale, shift in [*scalings, *[(255.0, 0.0)] * is_bytes]:
            factor, offset = factor * scale, offset + factor * shift
        return (_decimal(factor), offset), bool(scalings) or is_bytes

    def _require_logits(self, last: str) -> None:
        """Raises WeightsError where the output layer has an activation. A sigmoid keeps the order of the logits."""
        for output in self.layers[last].outputs:
            for user in self.consumers(output, ACTIVATIONS):
                if (op := self.nodes[user].op) != "Sigmoid":
                    raise WeightsError(f"The output layer {last} has the activation {op.lower()}; here it has none.")

    def _adam(self) -> dict[str, float]:
        """The hyperparameters of Adam that are constants."""
        for node in self.nodes.values():
            if node.op in ("ApplyAdam", "ResourceApplyAdam"):
                values = map(self.constant, node.inputs[5:9])
                named = zip(("learning_rate", "b1", "b2", "epsilon"), values, strict=False)
                return {name: _decimal(value) for name, value in named if value is not None}
        return {}


def _decimal(value: float) -> float:
    """A number that was rounded to float32 as the decimal number that it was."""
    return float(f"{value:.7g}")
