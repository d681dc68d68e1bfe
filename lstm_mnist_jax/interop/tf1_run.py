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


DEAD = _Every("the output of a branch that is not taken")
NOISE = _Every("random numbers")
MASK = _Every("a dropout mask")

PASSES = (
    "Identity", "Enter", "RefEnter", "RefIdentity", "Exit", "NextIteration", "LoopCond", "StopGradient", "EnsureShape",
    "PreventGradient", "CheckNumerics", "PlaceholderWithDefault", "ReadVariableOp", "TensorListPushBack",
)  # fmt: skip
CALLS = ("While", "StatelessWhile", "If", "StatelessIf", "PartitionedCall", "StatefulPartitionedCall")
COMPARISONS = {
    "Equal": np.equal, "NotEqual": np.not_equal, "Less": np.less, "LessEqual": np.less_equal, "Greater": np.greater,
    "GreaterEqual": np.greater_equal,
}  # fmt: skip


def _divided(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x // y if x.dtype.kind in "iu" else x / y


BINARY: dict[str, Callable[[Any, Any], Any]] = COMPARISONS | {
    "Add": np.add, "BiasAdd": np.add, "Sub": np.subtract, "Mul": np.multiply, "RealDiv": np.divide, "Div": _divided,
    "Maximum": np.maximum, "Minimum": np.minimum, "Pow": np.power, "FloorDiv": np.floor_divide, "FloorMod": np.mod,
    "LogicalAnd": np.logical_and, "LogicalOr": np.logical_or, "SquaredDifference": lambda x, y: (x - y) ** 2,
}  # fmt: skip
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "Sigmoid": expit, "Tanh": np.tanh, "Relu": lambda x: np.maximum(x, 0), "Relu6": lambda x: np.clip(x, 0, 6),
    "Elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), "Softplus": lambda x: np.logaddexp(0, x),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
}  # fmt: skip
UNARY: dict[str, Callable[[Any], Any]] = ACTIVATIONS | {
    "Neg": np.negative, "Square": np.square, "Sqrt": np.sqrt, "Rsqrt": lambda x: 1 / np.sqrt(x), "Exp": np.exp,
    "Log": np.log, "Abs": np.abs, "Sign": np.sign, "Floor": np.floor, "Reciprocal": lambda x: 1 / x, "Inv": lambda x: 1 / x,
    "LogicalNot": np.logical_not, "ZerosLike": np.zeros_like, "OnesLike": np.ones_like, "Rank": lambda x: np.array(x.ndim),
    "Shape": lambda x: np.array(x.shape, np.int64), "Size": lambda x: np.array(x.size),
}  # fmt: skip
REDUCTIONS = {
    "Sum": np.sum,
    "Mean": np.mean,
    "Prod": np.prod,
    "Max": np.max,
    "Min": np.min,
    "All": np.all,
    "Any": np.any,
}


def _axes(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.ravel(values))


def _strided_slice(node: Node, x: np.ndarray, *places: np.ndarray) -> np.ndarray:
    index: list[Any] = []
    masks = {name: int(node.number(f"{name}_mask")) for name in ("ellipsis", "new_axis", "shrink_axis", "begin", "end")}
    for axis, (begin, end, stride) in enumerate(zip(*map(_axes, places), strict=True)):
        is_in = {name for name, mask in masks.items() if mask >> axis & 1}
        if "ellipsis" in is_in or "new_axis" in is_in:
            index.append(... if "ellipsis" in is_in else None)
        elif "shrink_axis" in is_in:
            index.append(begin)
        else:
            index.append(slice(None if "begin" in is_in else begin, None if "end" in is_in else end, stride))
    return x[tuple(index)]


def _select(node: Node, condition: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if node.op == "Select" and condition.ndim == 1:  # of whole rows
        condition = condition.reshape(-1, *[1] * (x.ndim - 1))
    return np.where(condition, x, y)


def _split(x: np.ndarray, ends: Any, axis: Any) -> tuple[np.ndarray, ...]:
    return tuple(np.split(x, ends, int(axis)))


def _reverse_sequence(node: Node, x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    time, batch = int(node.number("seq_dim")), int(node.number("batch_dim"))
    reversed_ = np.moveaxis(x, (batch, time), (0, 1)).copy()
    for row, length in zip(reversed_, _axes(lengths), strict=True):
        row[:length] = row[:length][::-1]
    return np.moveaxis(reversed_, (0, 1), (batch, time))


def _cast(node: Node, x: np.ndarray) -> np.ndarray:
    number = int(node.number("DstT"))
    return x.astype(bool if number == 10 else np.float64 if number in (1, 2, 14, 19) else np.int64)


def _block_cell(
    node: Node, x: np.ndarray, c: np.ndarray, h: np.ndarray, w: np.ndarray, wci: Any, wcf: Any, wco: Any, b: np.ndarray
) -> tuple[Any, ...]:
    i, j, f, o = np.split(np.concatenate([x, h], 1) @ w + b, 4, 1)
    c = expit(f + node.number("forget_bias", 1.0)) * c + expit(i) * np.tanh(j)
    return (None, c, None, None, None, None, expit(o) * np.tanh(c))


def _block_lstm(node: Node, length: Any, x: np.ndarray, c: Any, h: Any, *weights: Any) -> tuple[Any, ...]:
    states = []
    for each in x[: int(length)]:
        result = _block_cell(node, each, c, h, *weights)
        c, h = result[1], result[6]
        states.append((c, h))
    return (None, np.stack([c for c, _ in states]), None, None, None, None, np.stack([h for _, h in states]))


def _put(elements: Any, index: Any, value: Any) -> dict[int, Any]:
    """A TensorArray or a TensorList with another element. Old programs begin with no array, but a number."""
    return (elements if isinstance(elements, dict) else {}) | {int(index): value}


def _put_all(elements: Any, indices: Any, values: np.ndarray) -> dict[int, Any]:
    return (elements if isinstance(elements, dict) else {}) | dict(zip(_axes(indices), values, strict=True))


def _stack(elements: dict[int, Any]) -> np.ndarray:
    return np.stack([elements[number] for number in range(len(elements))])


OPERATIONS: dict[str, Callable[..., Any]] = {
    "MatMul": lambda node, x, y: (x.T if node.number("transpose_a") else x) @ (y.T if node.number("transpose_b") else y),
    "LeakyRelu": lambda node, x: np.where(x > 0, x, node.number("alpha", 0.2) * x),
    "AddN": lambda _, *values: sum(values[1:], values[0]),
    "Cast": _cast, "Select": _select, "StridedSlice": _strided_slice, "ReverseSequence": _reverse_sequence,
    "Slice": lambda _, x, begin, size: x[
        tuple(slice(b, None if s < 0 else b + s) for b, s in zip(_axes(begin), _axes(size), strict=True))
    ],
    "Reshape": lambda _, x, shape: x.reshape(_axes(shape)),
    "Transpose": lambda _, x, axes: x.transpose(_axes(axes)),
    "ExpandDims": lambda _, x, axis: np.expand_dims(x, int(axis)),
    "Squeeze": lambda node, x: x.squeeze(tuple(node.attributes["squeeze_dims"].list.i if "squeeze_dims" in node.attributes else ()) or None),
    "Concat": lambda node, *values: (
        np.concatenate(values[1:], int(values[0])) if node.op == "Concat" else np.concatenate(values[:-1], int(values[-1]))
    ),
    "Pack": lambda node, *values: np.stack(values, int(node.number("axis"))),
    "Unpack": lambda node, x: tuple(np.moveaxis(x, int(node.number("axis")), 0)),
    "Split": lambda node, axis, x: _split(x, int(node.number("num_split")), axis),
    "SplitV": lambda _, x, sizes, axis: _split(x, np.cumsum(sizes)[:-1], axis),
    "Gather": lambda _, x, indices, axis=0: np.take(x, indices, int(axis)),
    "Reverse": lambda node, x, axes: np.flip(x, _axes(axes) if node.op == "ReverseV2" else _axes(np.nonzero(axes)[0])),
    "Fill": lambda _, shape, value: np.full(_axes(shape), value),
    "Tile": lambda _, x, times: np.tile(x, _axes(times)),
    "BroadcastTo": lambda _, x, shape: np.broadcast_to(x, _axes(shape)),
    "Range": lambda _, *limits: np.arange(*(limit.item() for limit in limits)),
    "ClipByValue": lambda _, x, low, high: np.clip(x, low, high),
    "LSTMBlockCell": _block_cell, "BlockLSTM": _block_lstm,
    "TensorArray": lambda _, size: (size, {}),
    "TensorArraySize": lambda _, size, flow: size,
    "TensorArrayRead": lambda _, size, index, flow: flow[int(index)],
    "TensorArrayWrite": lambda _, size, index, value, flow: _put(flow, index, value),
    "TensorArrayScatter": lambda _, size, indices, values, flow: _put_all(flow, indices, values),
    "TensorArrayUnpack": lambda _, size, values, flow: dict(enumerate(values)),
    "TensorArrayGather": lambda _, size, indices, flow: np.stack([flow[index] for index in _axes(indices)]),
    "TensorArrayPack": lambda _, size, flow: _stack(flow),
    "TensorListReserve": lambda _, shape, size: {}, "EmptyTensorList": lambda _, *shape: {},
    "TensorListFromTensor": lambda _, values, shape: dict(enumerate(values)),
    "TensorListGetItem": lambda _, elements, index, shape: elements[int(index)],
    "TensorListSetItem": lambda _, elements, index, value: _put(elements, index, value),
    "TensorListStack": lambda _, elements, shape: _stack(elements),
    "TensorListElementShape": lambda _, elements: np.array(-1),
    "TensorListLength": lambda _, elements: np.array(len(elements)),
}  # fmt: skip
OPERATIONS |= {name: lambda _, *values, run=run: run(*values) for name, run in (UNARY | BINARY).items()}
OPERATIONS |= {
    name: lambda node, x, axes, run=run: run(x, _axes(axes), keepdims=bool(node.number("keep_dims")))
    for name, run in REDUCTIONS.items()
}


def _is_true(value: Any) -> bool:
    """Which way a loop or a branch goes."""
    if isinstance(value, _Every):
        raise WeightsError(f"The graph has a loop or a branch that depends on {value.mark}.")
    return bool(value)


def kind_of(op: str) -> str:
    """The kind of an operation without its version: AddV2 is an Add."""
    return re.sub(r"V\d$", "", op)


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
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    sizes = [array.size for array in arrays]
    if kind in BINARY or kind == "ClipByValue" or node.op == "SelectV2":
        return math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
    if kind in ("Fill", "BroadcastTo", "Tile"):
        shape = values[0 if kind == "Fill" else 1]
        return math.prod(_axes(shape)) * (values[0].size if kind == "Tile" else 1)
    if kind == "Range":
        return int(abs((values[1] - values[0]) / values[2])) + 1
    if kind == "Gather":
        return int(values[1].size) * int(values[0].size // max(1, min(values[0].shape, default=1)))
    if kind == "MatMul":  # a product and a sum cost less than a value
        inner = arrays[0].shape[0 if node.number("transpose_a") else -1]
        total = sizes[0] * sizes[1] // max(1, inner)
        return max(total // max(1, inner), total >> 8)
    elements = [array.size for value in values if isinstance(value, dict) for array in value.values()]
    return sum(sizes) + (sum(elements) if kind in ("TensorListStack", "TensorArrayGather", "TensorArrayPack") else 0)


class Runner:
    """Runs the nodes of a graph that some outputs depend on.

    A subclass may see each operation with its values, and change its result: see `seen`.
    """

    def __init__(self, graph: Graph, outputs: list[Output]) -> None:
        self.graph, self.targets, self.budget = graph, outputs, BUDGET
        self.needed = upstream(graph.nodes, (name for name, _ in outputs))
        self.loops: dict[str, list[str]] = {}
        for name in self.needed:
            if self._op(name) in ("Enter", "RefEnter"):
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
            name = pending[-1]
            if name in env:
                pending.pop()
            elif name not in nodes:
                raise WeightsError(f"The graph has no node {name[:100]!r}, which others take.")
            elif missing := [each for each in self._needs(nodes, name) if each not in env]:
                if name in opened:
                    raise WeightsError(f"The graph has a circle of nodes, with {name}, that is no loop.")
                opened.add(name)
                pending += missing[::-1]
            else:
                try:
                    self._run_node(nodes, name, env, depth)
                except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
                    if isinstance(error, WeightsError):
                        raise
                    raise WeightsError(
                        f"{nodes[name].op} ({name}) in the graph cannot be computed: {str(error)[:200]}."
                    ) from error
        return [env[name][number] for name, number in outputs]

    def _needs(self, nodes: dict[str, Node], name: str) -> list[str]:
        node = nodes[name]
        if node.op == "Exit":
            return [self.graph.nodes[enter].inputs[0][0] for enter in self.loops.get(self._frame(name), ())]
        if node.op in VARIABLES:
            return []
        return [each for each, _ in node.inputs] + [each for each in node.controls if self._is_pivot(each)]

    def _is_pivot(self, name: str) -> bool:
        """Whether a node that others wait for shows which of two branches is taken."""
        inputs = self.graph.nodes[name].inputs if self._op(name) == "Identity" else ()
        if not inputs or self._op(inputs[0][0]) != "Switch":
            return False
        condition = self.graph.nodes[inputs[0][0]].inputs[1:]
        return bool(condition) and self._op(condition[0][0]) != "LoopCond"

    def _run_node(self, nodes: dict[str, Node], name: str, env: Env, depth: int) -> None:
        node = nodes[name]
        kind = kind_of(node.op)
        if node.op == "Exit":
            return self._loop(name, env, depth)
        values = [] if node.op in VARIABLES else [env[each][number] for each, number in node.inputs]
        controls = [env[each][0] for each in node.controls if each in env and self._is_pivot(each)]
        result: Any
        if kind == "Merge":
            alive = [value for value in values if value is not DEAD]
            if len(alive) != 1:
                raise WeightsError(f"The graph takes two branches at once, or none ({name}).")
            result = alive[0]
        elif any(value is DEAD for value in (*values, *controls)):
            result = DEAD
        elif re.search("Random|TruncatedNormal|Multinomial", kind):
            result = NOISE
        elif any(isinstance(value, _Every) for value in values) and kind not in CALLS:
            result = self._with_noise(nodes, node, kind, values, env)
        elif node.op in VARIABLES:
            result = self.variable(name)
        elif kind == "Const":
            result = node.value
            result = result.astype(
                bool if result.dtype.kind == "b" else np.int64 if result.dtype.kind in "iu" else np.float64
            )
        elif kind in ("Switch", "RefSwitch"):
            taken = self._op(node.inputs[1][0]) == "LoopCond" or int(_is_true(values[1]))
            result = (values[0], values[0]) if taken is True else (DEAD, values[0]) if taken else (values[0], DEAD)
        elif kind in CALLS:
            result = self._call(node, kind, values, depth)
        elif kind in PASSES:
            result = values[0]
        elif kind in OPERATIONS and node.op != "BlockLSTMV2":
            self._spend(_cost(node, kind, values))
            result = self.seen(name, node, values, OPERATIONS[kind](node, *values))
        else:
            raise WeightsError(f"The graph has the operation {node.op} ({name}), which import does not know.")
        self._spend(16)
        env[name] = result if isinstance(result, tuple | _Every) else (result,)
        return None

    def _spend(self, cost: int) -> None:
        self.budget -= cost
        if self.budget < 0:
            raise WeightsError("The graph computes more than this program runs of a graph.")

    def _with_noise(self, nodes: dict[str, Node], node: Node, kind: str, values: list[Any], env: Env) -> Any:
        """The result of an operation on random numbers. Dropout is undone: its other input, before it is scaled."""
        is_mask = [value is MASK for value in values]
        if any(is_mask) and (kind == "Mul" or (kind == "Select" and is_mask[0])):
            place = is_mask.index(False) if kind == "Mul" else 1
            scaled = nodes.get(node.inputs[place][0])
            if scaled and kind_of(scaled.op) in ("Mul", "RealDiv", "Div") and len(scaled.inputs) == 2:
                before, scale = (env[each][number] for each, number in scaled.inputs)
                return before if np.size(scale) == 1 else values[place]
            return values[place]
        return MASK if any(is_mask) or kind in COMPARISONS or kind == "Floor" else NOISE

    def _call(self, node: Node, kind: str, values: list[Any], depth: int) -> tuple[Any, ...]:
        def call(attribute: str, values: list[Any]) -> list[Any]:
            function = self.graph.functions[node.text(attribute)]
            env = {name: (value,) for name, value in zip(function.arguments, values, strict=True)}
            return self._evaluate(function.nodes, function.results, env, depth + 1)

        if kind.endswith("While"):
            while _is_true(call("cond", values)[0]):
                self._spend(16)
                values = call("body", values)
            return tuple(values)
        if kind.endswith("If"):
            return tuple(call("then_branch" if _is_true(values[0]) else "else_branch", values[1:]))
        return tuple(call("f", values))

    def _frame(self, name: str) -> str:
        """The name of the loop that an Exit leaves."""
        for place in (0, 0, 0):  # its Switch, its Merge and its Enter
            inputs = self.graph.nodes[name].inputs if name in self.graph.nodes else ()
            name = inputs[place][0] if inputs else ""
        return self.graph.nodes[name].text("frame_name") if name in self.graph.nodes else ""

    def _loop(self, name: str, env: Env, depth: int) -> None:
        """Runs a loop of TensorFlow 1, and gives all its results."""
        nodes, frame = self.graph.nodes, self._frame(name)
        entered = {enter: (env[nodes[enter].inputs[0][0]][nodes[enter].inputs[0][1]],) for enter in self.loops[frame]}
        carried = {
            each: (nodes[each].inputs[0][0], nodes[each].inputs[1])
            for each in self.needed
            if self._op(each) == "Merge" and len(nodes[each].inputs) == 2 and nodes[each].inputs[0][0] in entered
        }
        exits = {each: nodes[nodes[each].inputs[0][0]] for each in self.needed if self._op(each) == "Exit"}
        exits = {each: switch for each, switch in exits.items() if switch.inputs[0][0] in carried}
        condition = exits[name].inputs[1]
        values = {merge: entered[enter] for merge, (enter, _) in carried.items()}
        while True:
            scope = entered | values
            if not _is_true(self._evaluate(nodes, [condition], scope, depth + 1)[0]):
                break
            after = self._evaluate(nodes, [output for _, output in carried.values()], scope, depth + 1)
            values = {merge: (value,) for merge, value in zip(carried, after, strict=True)}
        for each, switch in exits.items():
            env[each] = values[switch.inputs[0][0]]
