"""TensorFlow's graphs: the nodes of a PREFIX.meta (MetaGraphDef), a saved_model.pb or a .pb (GraphDef).

From tensorflow/core/protobuf/meta_graph.proto and tensorflow/core/framework/{graph,node_def,attr_value,function}.proto.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lstm_mnist_jax.interop.tf_checkpoint import protobuf
from lstm_mnist_jax.interop.tf_checkpoint.protobuf import Malformed, Unsupported, integer, messages
from lstm_mnist_jax.interop.tf_checkpoint.tensor_slices import decode_tensor

MAX_BYTES = 1 << 26
"""The largest file of a graph. One with a hundred unrolled steps and their gradients has a tenth of that."""

MAX_NODES = 200_000
MAX_DEPTH = 4
"""Of loops within loops."""

# SavedModel, MetaGraphDef, GraphDef, FunctionDefLibrary
META_GRAPHS = 2
GRAPH_DEF = 2
NODES, LIBRARY = 1, 2
# NodeDef, AttrValue
NAME, OP, INPUTS, ATTRS = 1, 2, 3, 5
INT, FLOAT, BOOL, TYPE, TENSOR, FUNCTION = 3, 4, 5, 6, 8, 10
# FunctionDef, OpDef
SIGNATURE, BODY, RETURNED = 1, 3, 4
ARGUMENTS, RESULTS = 2, 3
# TensorProto
DTYPE, SHAPE, STRINGS = 1, 2, 8

Output = tuple[str, int]
"""The name of a node, and the number of one of its outputs."""


class Node(NamedTuple):
    """One operation.

    Attributes:
      op: its kind, such as MatMul.
      inputs: whose outputs it takes, without control dependencies.
      attributes: entries of a map from names to AttrValues.
    """

    op: str
    inputs: tuple[Output, ...]
    attributes: list[bytes]

    def attribute(self, name: str) -> protobuf.Fields:
        """An AttrValue; empty where there is none."""
        entries = (protobuf.parse(entry) for entry in self.attributes if name.encode() in entry)
        return next(
            (protobuf.parse(protobuf.last(entry, 2)) for entry in entries if protobuf.text(entry, 1) == name), {}
        )

    def number(self, name: str, default: float) -> float:
        """An attribute that is an integer, a float, a boolean or the number of a type."""
        fields = self.attribute(name)
        for data in messages(fields, FLOAT):
            return float(np.frombuffer(data[:4].ljust(4, b"\0"), "<f4")[0])
        return next((float(integer(fields, kind)) for kind in (INT, BOOL, TYPE) if kind in fields), default)

    @property
    def value(self) -> Any:
        """The array of a Const; None where it is of another kind, or too large to be of interest here."""
        if self.op != "Const":
            return None
        tensor = protobuf.last(self.attribute("value"), TENSOR)
        fields = protobuf.parse(tensor)
        shape = protobuf.parse_shape(protobuf.last(fields, SHAPE))
        number = integer(fields, DTYPE)
        if number not in protobuf.DTYPES or len(shape) > 1 or max(shape, default=0) > 32:
            return None
        return decode_tensor(protobuf.DTYPES[number], shape, tensor)

    @property
    def strings(self) -> list[str]:
        """The values of a Const of strings."""
        tensors = messages(self.attribute("value"), TENSOR)
        return [protobuf.decode(value) for tensor in tensors for value in messages(protobuf.parse(tensor), STRINGS)]


def read_graph(path: Path) -> dict[str, Node]:
    """The nodes of a .meta or of a saved_model.pb by name.

    The body of a While loop becomes part of the graph: it is called LOOP/NODE, and what the loop carries LOOP/NUMBER,
    a Merge of the value before the loop and of a NextIteration, as in the loops of TensorFlow 1.

    Raises Malformed where it is none, or larger than `MAX_BYTES` or `MAX_NODES`, and OSError.
    """
    if path.stat().st_size > MAX_BYTES:
        raise Unsupported(f"it has more than {MAX_BYTES >> 20} MiB, which is more than this program reads of a graph")
    meta = path.read_bytes()
    if path.suffix == ".pb":
        meta = (messages(protobuf.parse(meta), META_GRAPHS) or [b""])[0]
    return nodes_of(protobuf.last(protobuf.parse(meta), GRAPH_DEF))


def nodes_of(graph_def: bytes) -> dict[str, Node]:
    """The nodes of a GraphDef by name, with those of its loops: see `read_graph`."""
    fields = protobuf.parse(graph_def)
    if not fields.get(NODES):
        raise Malformed("it has no graph")
    libraries = [protobuf.parse(library) for library in messages(fields, LIBRARY)]
    functions = {}
    for data in (function for library in libraries for function in messages(library, 1)):
        function = protobuf.parse(data)
        signature = protobuf.parse(protobuf.last(function, SIGNATURE))
        functions[protobuf.text(signature, NAME)] = function, signature
    graph: dict[str, Node] = {}
    pending = [(0, _nodes(messages(fields, NODES), "", {}))]
    while pending:
        depth, nodes = pending.pop()
        for name, node in nodes:
            graph[name] = node
            if len(graph) > MAX_NODES:
                raise Unsupported(f"it has more than {MAX_NODES:,} nodes")
            if node.op in ("While", "StatelessWhile") and depth < MAX_DEPTH:
                body = protobuf.text(protobuf.parse(protobuf.last(node.attribute("body"), FUNCTION)), 1)
                if body in functions:
                    pending.append((depth + 1, _loop(name, node, *functions[body])))
    return graph


def describe_file(path: Path) -> str | None:
    """What a file of TensorFlow is that is no checkpoint; None where it is nothing of that kind."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        fields = protobuf.parse(path.read_bytes())
        if set(fields) == {1, META_GRAPHS} and isinstance(fields[1][0], int):
            return "the graph of a SavedModel, without its variables folder"
        if GRAPH_DEF in fields and NODES in protobuf.parse(messages(fields, GRAPH_DEF)[0]):
            return "the graph of a checkpoint, without the weights: its .index is missing"
        nodes = dict(_nodes(messages(fields, NODES), "", {}))
        if not nodes or not all(node.op for node in nodes.values()):
            return None
        if any(node.op in VARIABLES for node in nodes.values()):
            return "a graph (GraphDef), without the weights"
        return "a frozen graph (GraphDef): import reads the checkpoint that it was made of"
    except (Malformed, OSError):
        return None


VARIABLES = ("Variable", "VariableV2", "VarHandleOp", "AutoReloadVariable")


def _nodes(data: list[bytes], scope: str, arguments: dict[str, Output]) -> Iterator[tuple[str, Node]]:
    """NodeDefs by name. Those of a function get its scope, and its arguments are replaced."""
    for each in data:
        fields = protobuf.parse(each)
        inputs = [
            _output(protobuf.decode(name), scope, arguments) for name in messages(fields, INPUTS) if name[:1] != b"^"
        ]
        yield (
            scope + protobuf.text(fields, NAME),
            Node(protobuf.text(fields, OP), tuple(inputs), messages(fields, ATTRS)),
        )


def _loop(name: str, node: Node, function: protobuf.Fields, signature: protobuf.Fields) -> Iterator[tuple[str, Node]]:
    """The nodes of the body of a loop, and the values that it carries."""
    arguments, results = (
        [protobuf.text(protobuf.parse(argument), 1) for argument in messages(signature, kind)]
        for kind in (ARGUMENTS, RESULTS)
    )
    entries = [protobuf.parse(entry) for entry in messages(function, RETURNED)]
    returned = {protobuf.text(entry, 1): protobuf.text(entry, 2) for entry in entries}
    places = {argument: (f"{name}/{number}", 0) for number, argument in enumerate(arguments)}
    for number, (before, result) in enumerate(zip(node.inputs, results, strict=False)):
        after = _output(returned.get(result, ""), f"{name}/", places)
        yield f"{name}/{number}", Node("Merge", (before, (f"{name}/{number}/next", 0)), [])
        yield f"{name}/{number}/next", Node("NextIteration", (after,), [])
    yield from _nodes(messages(function, BODY), f"{name}/", places)


def _output(text: str, scope: str, arguments: dict[str, Output]) -> Output:
    """From NODE, NODE:NUMBER or, in a function, an argument or NODE:RESULT:NUMBER."""
    if text in arguments:
        return arguments[text]
    name, *_, number = (*text.split(":"), "0") if ":" not in text else text.split(":")
    return scope + name, int(number) if number.isdecimal() and len(number) < 6 else 0
