"""Runs a TensorFlow 1 graph with NumPy: in float64, with all branches, loops and functions, and without dropout.

Operations are those of recurrent classifiers; others are refused by name. Nothing that a file names is executed.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy.special import expit

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.tf_checkpoint.graph import VARIABLES, Graph, Node, Output

BUDGET = 1 << 26
"""The most values to compute, and to hold. A stack of a thousand units over 28 steps takes a tenth."""

MAX_VISITS = 1 << 19
"""The most visits of operations, two or three each: three layers over 784 steps make 200,000, in some seconds."""

MAX_DEPTH = 8
"""Of loops and functions within each other."""

Env = dict[str, Any]
"""The outputs of the nodes that were run, by name."""


class _Every:
    """The outputs of a node, however many, that are all one mark."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __getitem__(self, number: int) -> "_Every":
        return self


DEAD, NOISE, MASK = map(_Every, ("a branch that is not taken", "random numbers", "random numbers"))

PASSES = ("Identity", "Enter", "Exit", "NextIteration", "LoopCond", "StopGradient", "EnsureShape", "CheckNumerics",
          "PreventGradient", "PlaceholderWithDefault", "ReadVariableOp", "TensorListPushBack")  # fmt: skip
CALLS = ("While", "StatelessWhile", "If", "StatelessIf", "PartitionedCall", "StatefulPartitionedCall")
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": np.equal, "NotEqual": np.not_equal, "Less": np.less, "LessEqual": np.less_equal, "Greater": np.greater,
    "GreaterEqual": np.greater_equal,
}  # fmt: skip
BINARY = COMPARISONS | {
    "Add": np.add, "BiasAdd": np.add, "Sub": np.subtract, "Mul": np.multiply, "RealDiv": np.divide, "Pow": np.power,
    "Div": lambda x, y: x // y if x.dtype.kind == "i" else x / y, "FloorDiv": np.floor_divide, "FloorMod": np.mod,
    "Maximum": np.maximum, "Minimum": np.minimum, "LogicalAnd": np.logical_and, "LogicalOr": np.logical_or,
    "SquaredDifference": lambda x, y: (x - y) ** 2,
}  # fmt: skip
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"Sigmoid": expit, "Tanh": np.tanh, "Relu": lambda x: np.maximum(x, 0)}
UNARY = ACTIVATIONS | {
    "Neg": np.negative, "Square": np.square, "Sqrt": np.sqrt, "Rsqrt": lambda x: 1 / np.sqrt(x), "Exp": np.exp,
    "Log": np.log, "Abs": np.abs, "Sign": np.sign, "Floor": np.floor, "Reciprocal": lambda x: 1 / x,
    "LogicalNot": np.logical_not, "ZerosLike": np.zeros_like, "OnesLike": np.ones_like, "Size": np.size,
    "Rank": np.ndim, "Shape": lambda x: np.array(x.shape, np.int64),
}  # fmt: skip
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "Sum": np.sum, "Mean": np.mean, "Prod": np.prod, "Max": np.max, "Min": np.min, "All": np.all, "Any": np.any
}  # fmt: skip


def _axes(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.ravel(values))


def _strided_slice(node: Node, x: np.ndarray, *places: np.ndarray) -> np.ndarray:
    index: list[Any] = []
    masks = {name: int(node.number(f"{name}_mask")) for name in ("ellipsis", "new_axis", "shrink_axis", "begin", "end")}
    for axis, (begin, end, stride) in enumerate(zip(*map(_axes, places), strict=True)):
        own = {name for name, mask in masks.items() if mask >> axis & 1}
        if own & {"ellipsis", "new_axis"}:
            index.append(... if "ellipsis" in own else None)
        else:
            part = slice(None if "begin" in own else begin, None if "end" in own else end, stride)
            index.append(begin if "shrink_axis" in own else part)
    return np.asarray(x[tuple(index)])


def _reverse_sequence(node: Node, x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    axes = int(node.number("batch_dim")), int(node.number("seq_dim"))
    turned = np.moveaxis(x, axes, (0, 1)).copy()
    for row, length in zip(turned, _axes(lengths), strict=True):
        row[:length] = row[:length][::-1].copy()
    return np.moveaxis(turned, (0, 1), axes)


def to_working_type(x: np.ndarray, number: int = 0) -> np.ndarray:
    """In float64, int64 or bool, by the number of a type of TensorFlow or as it is."""
    is_float = number in (1, 2, 14, 19) if number else x.dtype.kind in "fV"
    return x.astype(
        bool if number == 10 or (not number and x.dtype.kind == "b") else np.float64 if is_float else np.int64
    )


def lstm_cell(x: Any, c: Any, h: Any, kernel: Any, bias: Any, forget_bias: float, function: Any) -> tuple[Any, Any]:
    """The next c and h of a BasicLSTMCell with this activation."""
    i, j, f, o = np.split(np.concatenate([x, h], 1) @ kernel + bias, 4, 1)
    c = expit(f + forget_bias) * c + expit(i) * function(j)
    return c, expit(o) * function(c)


def _block_cell(node: Node, x: Any, c: Any, h: Any, w: Any, *rest: Any) -> tuple[Any, ...]:
    c, h = lstm_cell(x, c, h, w, rest[-1], node.number("forget_bias", 1.0), np.tanh)
    return None, c, None, None, None, None, h


def _block_lstm(node: Node, length: Any, x: np.ndarray, c: Any, h: Any, *weights: Any) -> tuple[Any, ...]:
    results = [(None, c, None, None, None, None, h)]
    for each in x[: int(length)]:
        results.append(_block_cell(node, each, results[-1][1], results[-1][6], *weights))
    return tuple(
        np.stack(values) if place in (1, 6) else None for place, values in enumerate(zip(*results[1:], strict=True))
    )


def _put(elements: Any, indices: Any, values: Iterable[Any]) -> dict[int, Any]:
    """A TensorArray or a TensorList with more elements. Old programs begin with no array, but a number."""
    return (elements if isinstance(elements, dict) else {}) | dict(zip(_axes(indices), values, strict=True))


OPERATIONS: dict[str, Callable[..., Any]] = {
    "MatMul": lambda node, x, y: (
        (x.T if node.number("transpose_a") else x) @ (y.T if node.number("transpose_b") else y)
    ),
    "AddN": lambda _, *values: sum(values[1:], values[0]),
    "Cast": lambda node, x: to_working_type(x, int(node.number("DstT"))),
    "Select": lambda node, condition, x, y: np.where(
        condition.reshape(-1, *[1] * (x.ndim - 1)) if node.op == "Select" and condition.ndim == 1 else condition, x, y
    ),  # of whole rows
    "StridedSlice": _strided_slice, "ReverseSequence": _reverse_sequence,
    "Slice": lambda _, x, begin, size: x[
        tuple(slice(b, None if s < 0 else b + s) for b, s in zip(_axes(begin), _axes(size), strict=True))
    ],
    "Reshape": lambda _, x, shape: x.reshape(_axes(shape)),
    "Transpose": lambda _, x, axes: x.transpose(_axes(axes)),
    "ExpandDims": lambda _, x, axis: np.expand_dims(x, int(axis)),
    "Squeeze": lambda node, x: x.squeeze(tuple(node.integers("squeeze_dims")) or None),
    "Concat": lambda node, *values: (
        np.concatenate(values[1:], int(values[0]))  # the axis comes first
        if node.op == "Concat"
        else np.concatenate(values[:-1], int(values[-1]))
    ),
    "Pack": lambda node, *values: np.stack(values, int(node.number("axis"))),
    "Unpack": lambda node, x: tuple(np.moveaxis(x, int(node.number("axis")), 0)),
    "Split": lambda node, axis, x: tuple(np.split(x, int(node.number("num_split")), int(axis))),
    "SplitV": lambda _, x, sizes, axis: tuple(np.split(x, np.cumsum(sizes)[:-1], int(axis))),
    "Gather": lambda _, x, indices, axis=0: np.take(x, indices, int(axis)),
    "Reverse": lambda node, x, axes: np.flip(x, _axes(axes if node.op == "ReverseV2" else np.nonzero(axes)[0])),
    "Fill": lambda _, shape, value: np.full(_axes(shape), value),
    "Tile": lambda _, x, times: np.tile(x, _axes(times)),
    "Range": lambda _, *limits: np.arange(*(limit.item() for limit in limits)),
    "ClipByValue": lambda _, x, low, high: np.clip(x, low, high),
    "LSTMBlockCell": _block_cell, "BlockLSTM": _block_lstm,
    "TensorArray": lambda _, size: (size, {}),
    "TensorArraySize": lambda _, size, flow: size,
    "TensorArrayRead": lambda _, size, index, flow: flow[int(index)],
    "TensorArrayWrite": lambda _, size, index, value, flow: _put(flow, index, [value]),
    "TensorArrayScatter": lambda _, size, indices, values, flow: _put(flow, indices, values),
    "TensorArrayUnpack": lambda _, size, values, flow: dict(enumerate(values)),
    "TensorArrayGather": lambda _, size, indices, flow: np.stack([flow[index] for index in _axes(indices)]),
    "TensorArrayPack": lambda _, size, flow: np.stack([flow[index] for index in sorted(flow)]),
    "TensorListReserve": lambda _, shape, size: {}, "EmptyTensorList": lambda _, *shape: {},
    "TensorListFromTensor": lambda _, values, shape: dict(enumerate(values)),
    "TensorListGetItem": lambda _, elements, index, shape: elements[int(index)],
    "TensorListSetItem": lambda _, elements, index, value: _put(elements, index, [value]),
    "TensorListStack": lambda _, elements, shape: np.stack([elements[index] for index in sorted(elements)]),
    "TensorListLength": lambda _, elements: np.array(len(elements)),
    "TensorListElementShape": lambda _, elements: np.array(-1),
}  # fmt: skip
OPERATIONS |= {name: lambda _, *values, run=run: run(*values) for name, run in (UNARY | BINARY).items()}
OPERATIONS |= {
    name: lambda node, x, axes, run=run: run(x, _axes(axes), keepdims=bool(node.number("keep_dims")))
    for name, run in REDUCTIONS.items()
}


def kind_of(op: str) -> str:
    """The kind of an operation without its version: AddV2 is an Add, and RefSwitch a Switch."""
    return re.sub(r"^Ref(?=[A-Z])|V\d$", "", op)


def upstream(nodes: dict[str, Node], names: Iterable[str]) -> set[str]:
    """These nodes, and those that they depend on."""
    found, pending = set[str](), list(names)
    while pending:
        if (name := pending.pop()) not in found and name in nodes:
            found.add(name)
            pending += [*(each for each, _ in nodes[name].inputs), *nodes[name].controls]
    return found


def _cost(node: Node, kind: str, values: list[Any]) -> int:
    """An upper bound of the number of values that an operation computes, before it does."""
    arrays = [each for value in values for each in (value.values() if isinstance(value, dict) else [value])]
    sizes = [np.size(array) for array in arrays if array is not None]
    if kind in BINARY or kind == "ClipByValue" or node.op == "SelectV2":
        return math.prod(np.broadcast_shapes(*(value.shape for value in values)))
    if kind in ("Fill", "Tile"):
        return math.prod(_axes(values[kind == "Tile"])) * sizes[kind == "Fill"]
    if kind == "Range":
        return int(abs((values[1] - values[0]) / values[2])) + 1
    if kind == "Gather":
        return sizes[1] * (sizes[0] // max(1, min(values[0].shape, default=1)))
    if kind == "MatMul":  # a product and a sum cost less than a value
        inner = max(1, values[0].shape[0 if node.number("transpose_a") else -1])
        return max(sizes[0] * sizes[1] // inner**2, sizes[0] * sizes[1] // inner >> 8)
    joins = kind in ("Concat", "Pack", "AddN", "TensorListStack", "TensorArrayGather", "TensorArrayPack")
    return sum(sizes) if joins else max(sizes, default=1)


def _is_true(value: Any) -> bool:
    """Which way a loop or a branch goes."""
    if isinstance(value, _Every):
        raise WeightsError(f"The graph has a loop or a branch that depends on {value.mark}.")
    return bool(value)


class Runner:
    """Runs the nodes of a graph that some outputs depend on.

    A subclass may see each operation with its values, and change its result: see `seen`.
    """

    def __init__(self, graph: Graph, outputs: list[Output]) -> None:
        self.graph, self.targets, self.budget, self.visits = graph, outputs, BUDGET, 0
        self.needed = upstream(graph.nodes, (name for name, _ in outputs))
        self.loops: dict[str, list[str]] = {}
        for name in self.needed:
            if kind_of(self._op(name)) == "Enter":
                self.loops.setdefault(graph.nodes[name].text("frame_name"), []).append(name)

    def run(self, fed: Env) -> list[Any]:
        """The values of the outputs. Raises WeightsError where an operation is not known, or fails."""
        with np.errstate(all="ignore"):
            return self._evaluate(self.graph.nodes, self.targets, dict(fed), 0)

    def variable(self, name: str) -> np.ndarray:
        """The values of a variable by the name of its node."""
        raise NotImplementedError

    def seen(self, name: str, node: Node, values: list[Any], result: Any) -> Any:
        """The result of an operation, as others shall see it."""
        return result

    def _op(self, name: str) -> str:
        return self.graph.nodes[name].op if name in self.graph.nodes else ""

    def _evaluate(self, nodes: dict[str, Node], outputs: list[Output], env: Env, depth: int) -> list[Any]:
        if depth > MAX_DEPTH:
            raise WeightsError(f"The graph has loops or functions within each other, more than {MAX_DEPTH}.")
        pending, opened = [name for name, _ in outputs], set()
        while pending:
            if (name := pending[-1]) in env:
                pending.pop()
                continue
            if name not in nodes:
                raise WeightsError(f"The graph has no node {name[:100]!r}, which others take.")
            try:
                if missing := [each for each in self._needs(nodes[name], name) if each not in env]:
                    if name in opened:
                        raise WeightsError(f"The graph has a circle of nodes, with {name}, that is no loop.")
                    opened.add(name)
                    pending += missing[::-1]
                elif nodes[name].op == "Exit":
                    self._loop(name, env, depth)
                else:
                    result = self._result(nodes, name, env, depth)
                    env[name] = result if isinstance(result, tuple | _Every) else (result,)
                self._spend(0)
            except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
                if isinstance(error, WeightsError):
                    raise
                reason = str(error)[:200]
                raise WeightsError(f"{nodes[name].op} ({name}) in the graph cannot be computed: {reason}.") from error
        return [env[name][number] for name, number in outputs]

    def _needs(self, node: Node, name: str) -> list[str]:
        if node.op in VARIABLES:
            return []
        if node.op == "Exit":
            return [self.graph.nodes[enter].inputs[0][0] for enter in self.loops[self._frame(name)]]
        return [each for each, _ in node.inputs] + [each for each in node.controls if self._is_pivot(each)]

    def _is_pivot(self, name: str) -> bool:
        """Whether a node that others wait for shows which of two branches is taken."""
        inputs = self.graph.nodes[name].inputs if self._op(name) == "Identity" else ()
        if not inputs or self._op(inputs[0][0]) != "Switch":
            return False
        condition = self.graph.nodes[inputs[0][0]].inputs[1:]
        return bool(condition) and self._op(condition[0][0]) != "LoopCond"

    def _result(self, nodes: dict[str, Node], name: str, env: Env, depth: int) -> Any:
        node = nodes[name]
        kind = kind_of(node.op)
        if node.op in VARIABLES:
            return self.variable(name)
        values = [env[each][number] for each, number in node.inputs]
        if kind == "Merge":
            if len(alive := [value for value in values if value is not DEAD]) == 1:
                return alive[0]
            raise WeightsError(f"The graph takes two branches at once, or none ({name}).")
        if any(value is DEAD for value in (*values, *(env[each][0] for each in node.controls if self._is_pivot(each)))):
            return DEAD
        if re.search("Random|TruncatedNormal|Multinomial", kind):
            return NOISE
        if kind in CALLS:
            return self._call(node, kind, values, depth)
        if any(isinstance(value, _Every) for value in values):
            return self._with_noise(nodes, node, kind, values, env)
        if kind == "Const":
            return to_working_type(node.value)
        if kind == "Switch":
            is_loop, taken = self._op(node.inputs[1][0]) == "LoopCond", _is_true(values[1])
            return tuple(values[0] if is_loop or place == taken else DEAD for place in (0, 1))
        if kind in PASSES:
            return values[0]
        if kind not in OPERATIONS or node.op == "BlockLSTMV2":
            raise WeightsError(f"The graph has the operation {node.op} ({name}), which import does not know.")
        self._spend(_cost(node, kind, values))
        result = OPERATIONS[kind](node, *values)
        return self.seen(name, node, values, np.asarray(result) if isinstance(result, np.generic | int) else result)

    def _spend(self, cost: int) -> None:
        self.budget -= cost
        self.visits += 1
        if self.budget < 0 or self.visits > MAX_VISITS:
            raise WeightsError("The graph computes more than this program runs of a graph.")

    def _with_noise(self, nodes: dict[str, Node], node: Node, kind: str, values: list[Any], env: Env) -> Any:
        """The result of an operation on random numbers. Dropout is undone: its other input, before it is scaled."""
        is_mask = [value is MASK for value in values]
        if any(is_mask) and (kind == "Mul" or (kind == "Select" and is_mask[0])):
            place = is_mask.index(False) if kind == "Mul" else 1
            scaled = nodes.get(node.inputs[place][0])
            if scaled and kind_of(scaled.op) in ("Mul", "RealDiv", "Div") and len(scaled.inputs) == 2:
                before, scale = (env[each][number] for each, number in scaled.inputs)
                if np.size(scale) == 1 and (
                    scale >= 1 if kind_of(scaled.op) == "Mul" else 0 < scale <= 1
                ):  # 1 / keep_prob
                    return before
            return values[place]
        return MASK if any(is_mask) or kind in COMPARISONS or kind == "Floor" else NOISE

    def _call(self, node: Node, kind: str, values: list[Any], depth: int) -> tuple[Any, ...]:
        def call(attribute: str, values: list[Any]) -> list[Any]:
            function = self.graph.functions[node.text(attribute)]
            env = {name: (value,) for name, value in zip(function.arguments, values, strict=True)}
            return self._evaluate(function.nodes, function.results, env, depth + 1)

        if kind.endswith("While"):
            while _is_true(call("cond", values)[0]):
                self._spend(0)
                values = call("body", values)
            return tuple(values)
        if kind.endswith("If"):
            return tuple(call("then_branch" if _is_true(values[0]) else "else_branch", values[1:]))
        return tuple(call("f", values))

    def _frame(self, name: str) -> str:
        """The name of the loop that an Exit leaves, by its Switch, its Merge and its Enter."""
        for _ in range(3):
            name = self.graph.nodes[name].inputs[0][0]
        return self.graph.nodes[name].text("frame_name")

    def _loop(self, name: str, env: Env, depth: int) -> None:
        """Runs a loop of TensorFlow 1, and gives all its results."""
        nodes = self.graph.nodes
        sources = {enter: nodes[enter].inputs[0] for enter in self.loops[self._frame(name)]}
        entered = {enter: (env[source][number],) for enter, (source, number) in sources.items()}
        merges = {each: nodes[each].inputs for each in self.needed if self._op(each) == "Merge"}
        carried = {each: (*inputs[0], inputs[1]) for each, inputs in merges.items() if inputs[0][0] in entered}
        exits = {each: nodes[nodes[each].inputs[0][0]] for each in self.needed if self._op(each) == "Exit"}
        exits = {each: switch for each, switch in exits.items() if switch.inputs[0][0] in carried}
        condition = exits[name].inputs[1]
        values = {merge: entered[enter] for merge, (enter, _, _) in carried.items()}
        while _is_true(self._evaluate(nodes, [condition], scope := entered | values, depth + 1)[0]):
            self._spend(0)
            after = self._evaluate(nodes, [output for _, _, output in carried.values()], scope, depth + 1)
            values = {merge: (value,) for merge, value in zip(carried, after, strict=True)}
        for each, switch in exits.items():
            env[each] = values[switch.inputs[0][0]]
