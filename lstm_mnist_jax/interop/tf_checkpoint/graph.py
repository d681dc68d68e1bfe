"""TensorFlow's graphs: the nodes of a PREFIX.meta (MetaGraph), a saved_model.pb (SavedModel) or a .pb (Graph)."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lstm_mnist_jax.interop.tf_checkpoint.messages import DTYPES, Malformed, Unsupported, decode_tensor, parse, shape_of

MAX_BYTES = 1 << 26
"""The largest file of a graph. One with a hundred unrolled steps and their gradients has a tenth of that."""

MAX_NODES = 200_000
MAX_CONSTANT = 1 << 22
"""The most values of a constant."""

VARIABLES = ("Variable", "VariableV2", "VarHandleOp", "AutoReloadVariable")

CELL_RESULTS = ("i", "cs", "f", "o", "ci", "co", "h")
RESULTS = {
    "BlockLSTM": CELL_RESULTS,
    "LSTMBlockCell": CELL_RESULTS,
    "Switch": ("output_false", "output_true"),
    "TensorArrayV3": ("handle", "flow"),
    "TensorListPopBack": ("output_handle", "tensor"),
}
"""Of operations with several results, their names: functions call them by name, graphs by number."""

Output = tuple[str, int]
"""The name of a node, and the number of one of its outputs."""


class Node(NamedTuple):
    """One operation.

    Attributes:
      op: its kind, such as MatMul.
      inputs: whose outputs it takes.
      controls: the names of nodes that must run before it, of which it takes nothing.
      attributes: Values by name.
    """

    op: str
    inputs: tuple[Output, ...]
    controls: tuple[str, ...]
    attributes: dict[str, Any]

    def number(self, name: str, default: float = 0.0) -> float:
        """An attribute that is an integer, a float, a boolean or the number of a type."""
        value = self.attributes.get(name)
        kind = value and value.WhichOneof("value")
        return float(getattr(value, kind)) if kind in ("i", "f", "b", "type") else default

    def integers(self, name: str) -> list[int]:
        """An attribute that is a list of integers, or of the numbers of types."""
        value = self.attributes.get(name)
        return [] if value is None else [*value.list.i, *value.list.type]

    def text(self, name: str) -> str:
        """An attribute that is a string, or the name of a function; empty where there is none."""
        value = self.attributes.get(name)
        return "" if value is None else value.func.name or value.s.decode(errors="replace")

    def shape(self, number: int = 0) -> list[int] | None:
        """The shape of an output, where the graph has it; unknown sizes are -1."""
        for name in ("_output_shapes", "shape", "output_shapes"):
            if (value := self.attributes.get(name)) is not None:
                shapes = [value.shape] if value.HasField("shape") else value.list.shape
                if number < len(shapes) and not shapes[number].unknown_rank:
                    return [axis.size for axis in shapes[number].dim]
        return None

    @property
    def strings(self) -> list[str]:
        """The values of a Const of strings."""
        value = self.attributes.get("value")
        return [] if value is None else [each.decode(errors="replace") for each in value.tensor.string]

    @property
    def value(self) -> np.ndarray:
        """The array of a Const. Raises Malformed where it is too large, or holds no numbers."""
        tensor = self.attributes["value"].tensor if "value" in self.attributes else parse("Tensor", b"")
        shape, dtype = shape_of(tensor.shape), DTYPES.get(tensor.dtype)
        if dtype is None or math.prod(shape) > MAX_CONSTANT:
            raise Malformed("a constant in it is too large, or holds no numbers")
        try:
            return decode_tensor(dtype, shape, tensor)
        except Malformed:  # one value may stand for all
            return np.broadcast_to(decode_tensor(dtype, (1,), tensor), shape)


class Function(NamedTuple):
    """A function that nodes call, such as the body of a loop."""

    arguments: list[str]
    nodes: dict[str, Node]
    results: list[Output]


class Graph(NamedTuple):
    """The nodes and the functions of a graph by name."""

    nodes: dict[str, Node]
    functions: dict[str, Function]


def read_graph(path: Path) -> Graph:
    """The graph of a .meta or of a saved_model.pb.

    Raises Malformed where it is none, or larger than `MAX_BYTES` or `MAX_NODES`, and OSError.
    """
    if path.stat().st_size > MAX_BYTES:
        raise Unsupported(f"it has more than {MAX_BYTES >> 20} MiB, which is more than this program reads of a graph")
    data = path.read_bytes()
    if path.suffix == ".pb":
        graphs = parse("SavedModel", data).meta_graphs
        return to_graph((graphs or [parse("MetaGraph", b"")])[0].graph_def)
    return to_graph(parse("MetaGraph", data).graph_def)


def to_graph(message: Any) -> Graph:
    """From a Graph message. Raises Malformed where it is empty or too large."""
    functions = message.library.function
    if not message.node:
        raise Malformed("it has no graph")
    if len(message.node) + sum(len(function.node) for function in functions) > MAX_NODES:
        raise Unsupported(f"it has more than {MAX_NODES:,} nodes")
    return Graph(_nodes(message.node), {function.signature.name: _function(function) for function in functions})


def _function(message: Any) -> Function:
    returned = {entry.key: entry.value for entry in message.ret}
    ops = {node.name: node.op for node in message.node}
    results = [_output(returned.get(each.name, ""), ops) for each in message.signature.output_arg]
    return Function([each.name for each in message.signature.input_arg], _nodes(message.node), results)


def _nodes(messages: Iterable[Any]) -> dict[str, Node]:
    ops = {node.name: node.op for node in messages}
    return {
        node.name: Node(
            node.op,
            tuple(_output(name, ops) for name in node.input if not name.startswith("^")),
            tuple(name[1:] for name in node.input if name.startswith("^")),
            {entry.key: entry.value for entry in node.attr},
        )
        for node in messages
    }


def _output(text: str, ops: dict[str, str]) -> Output:
    """From NODE, NODE:NUMBER or, in a function, an argument or NODE:RESULT:NUMBER."""
    name, *places = text.split(":")
    number = int(places[-1]) if places and places[-1].isdecimal() and len(places[-1]) < 6 else 0
    names = RESULTS.get(ops.get(name, ""), ())
    return name, names.index(places[0]) if len(places) > 1 and places[0] in names else number


def describe_file(path: Path) -> str | None:
    """What a file of TensorFlow is that is no checkpoint; None where it is nothing of that kind."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        data = path.read_bytes()
        if (saved := _parsed("SavedModel", data)) and saved.version and saved.meta_graphs:
            return "the graph of a SavedModel, without its variables folder"
        if (meta := _parsed("MetaGraph", data)) and meta.graph_def.node:
            return "the graph of a checkpoint, without the weights: its .index is missing"
        nodes = graph.node if (graph := _parsed("Graph", data)) else ()
        if not nodes or not all(node.op for node in nodes):
            return None
        if any(node.op in VARIABLES for node in nodes):
            return "a graph (GraphDef), without the weights"
        return "a frozen graph (GraphDef): import reads the checkpoint that it was made of"
    except OSError:
        return None


def _parsed(name: str, data: bytes) -> Any:
    """A message; None where the bytes are none."""
    try:
        return parse(name, data)
    except Malformed:
        return None
