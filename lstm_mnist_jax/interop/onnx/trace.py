"""What an ONNX graph computes: its nodes in order, for one choice of its open sizes.

Constants and shapes are computed by the package onnx. Of the images, and of what an operator such as LSTM makes of
them, no values are computed: their entries are numbered, and the operators that move entries (Reshape, Transpose,
Slice, Concat, ...) move these numbers. So a node sees which entries of which earlier node it is given.
"""

import math
from bisect import bisect_right
from typing import Any

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.export import PRODUCER
from lstm_mnist_jax.interop.files import first_line
from lstm_mnist_jax.interop.onnx.operators import OPERATORS, Place, Signal, Source, Unread, short

MOVES = {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}
MOVES |= {"Unsqueeze"}
ELEMENTWISE = {"Add", "And", "Cast", "CastLike", "Div", "Equal", "Greater", "Less", "Max", "Min", "Mul", "Neg", "Not"}
ELEMENTWISE |= {"Or", "Sub", "Where"}
ON_CONSTANTS = {*MOVES, *ELEMENTWISE, "Constant", "ConstantOfShape", "ReduceProd", "Shape", "Size", "Tile"}

AFTER_LOGITS = ("Identity", "Cast", "ArgMax")

LOOPS = ("If", "Loop", "Scan", "SequenceMap")

MAX_ENTRIES = 2**26


class Trace:
    """The values of all names of a graph.

    Args:
      onnx: the package.
      proto: the `ModelProto`.
      opset: the version of its operators.
      most: the largest number of bytes of the constants that nodes make.
      sizes: what is taken for the sizes of the input that the graph leaves open.
    """

    def __init__(self, onnx: Any, proto: Any, opset: int, most: int, sizes: tuple[int, ...]) -> None:
        self.onnx, self.graph, self.opset, self.most = onnx, proto.graph, opset, most
        graph, self.is_own = proto.graph, proto.producer_name == PRODUCER
        given = (item.value for item in proto.metadata_props if item.key == "permutation_seed")
        self.seeds = [int(text) for text in given if text.isdecimal() and len(text) < 11 and int(text) < 2**32][:1]
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        if graph.sparse_initializer:
            raise WeightsError("it has sparse initializers, which are not read. Save it with dense ones.")
        self.values: dict[str, Any] = {}
        self.sources: list[Source] = []
        self.made = self.numbered = 0
        self._read_input(sizes)
        for node in self._needed():
            self._take(node)

    def _read_input(self, sizes: tuple[int, ...]) -> None:
        inputs = [value for value in self.graph.input if value.name not in self.initializers]
        if len(inputs) != 1:
            names = ", ".join(short(value.name) for value in inputs[:10]) or "none"
            raise WeightsError(
                f"it has {len(inputs)} inputs ({names}), expected one, the images. Export it with initial states of "
                "zero in the graph."
            )
        tensor, types, name = inputs[0].type.tensor_type, self.onnx.TensorProto, inputs[0].name
        integers = (types.UINT8, types.UINT16, types.INT16, types.INT32, types.INT64)
        floats = (types.FLOAT, types.DOUBLE, types.FLOAT16, types.BFLOAT16)
        if tensor.elem_type not in integers + floats or not tensor.HasField("shape"):
            raise WeightsError(
                f"its input {short(name)} is not an array with a shape, of floats or of integers that can be 0 to 255."
            )
        given = [size.dim_value for size in tensor.shape.dim]
        if not 2 <= len(given) <= 4:
            raise WeightsError(f"its input {short(name)} has {len(given)} axes, expected images: 2 to 4.")
        self.integers, self.is_open = tensor.elem_type in integers, min(given) <= 0
        shape = tuple(size if size > 0 else chosen for size, chosen in zip(given, sizes, strict=False))
        if math.prod(shape) > MAX_ENTRIES:
            raise WeightsError(f"its input {short(name)} is {list(shape)}. Export it for any number of images.")
        images = self.new("images", shape, "the input", np.zeros(0, int))
        self.values[name] = Signal(images.entries, self.integers)

    def _needed(self) -> list[Any]:
        """The nodes from which the outputs are computed, in the order of the file."""
        maker: dict[str, int] = {}
        for number, node in enumerate(self.graph.node):
            for name in filter(None, node.output):
                if maker.setdefault(name, number) != number or name in self.initializers or name in self.values:
                    raise WeightsError(f"it is damaged: it computes {short(name)} twice.")
        waiting, needed = [output.name for output in self.graph.output], set()
        while waiting:
            made = maker.get(waiting.pop())
            if made is not None and made not in needed:
                needed.add(made)
                waiting += self.graph.node[made].input
        return [self.graph.node[number] for number in sorted(needed)]

    def value(self, name: str, where: str) -> Any:
        """The value of a name: an array, a Signal or Unread. Raises WeightsError."""
        if name not in self.values:
            if name not in self.initializers:
                raise WeightsError(f"{where} use {short(name)}, which nothing before computes.")
            try:
                self.values[name] = self.onnx.numpy_helper.to_array(self.initializers[name])
            except Exception as error:
                raise WeightsError(f"its constant {short(name)} is damaged: {first_line(error)}.") from error
        value = self.values[name]
        if isinstance(value, np.ndarray) and value.dtype.kind not in "fiub" and "float" not in str(value.dtype):
            raise WeightsError(f"its constant {short(name)} holds {value.dtype}, expected numbers.")
        return value

    def _take(self, node: Any) -> None:
        """Computes the outputs of a node."""
        is_onnx = node.domain in ("", "ai.onnx")
        kind = node.op_type if is_onnx else f"{node.domain}.{node.op_type}"
        place = f"the operator {short(kind)}" + (f" (node {short(node.name)})" if node.name else "")
        if kind not in ON_CONSTANTS | OPERATORS.keys():
            expected = "this classifier does not have: LSTM or GRU layers over the rows of an image, then dense layers."
            if kind in LOOPS:
                expected = "is not read. Where an exporter writes a layer like this, import the program's own file."
            raise WeightsError(f"it has {place}, which {expected}")
        inputs = [self.value(name, f"{place}: its inputs") if name else None for name in node.input]
        if unread := [value.what for value in inputs if isinstance(value, Unread)]:
            raise WeightsError(f"{place} uses {unread[0]}, which this classifier does not.")
        if any(isinstance(value, Signal) and value.end for value in inputs) and kind not in AFTER_LOGITS:
            raise WeightsError(f"{place} stands after the probabilities, where this classifier has nothing.")
        try:
            known = self.onnx.defs.get_schema(kind, self.opset).attributes
            if unknown := [short(item.name) for item in node.attribute if item.name not in known]:
                raise WeightsError(f"has {', '.join(unknown[:10])}, which is not read.")
            outputs = self._outputs(node, inputs, place)
        except WeightsError as error:
            raise WeightsError(f"{place} {error}") from error.__cause__
        except Exception as error:  # whatever a graph that does not fit together makes NumPy and onnx raise
            raise WeightsError(f"{place} cannot be understood: {first_line(error)}.") from error
        self.values.update((name, value) for name, value in zip(node.output, outputs, strict=False) if name)
        for number, name in enumerate(node.output[len(outputs) :], len(outputs) + 1):
            self.values[name] = Unread(f"output {number} of {place}")

    def _outputs(self, node: Any, inputs: list[Any], place: str) -> list[Any]:
        kind, signals = node.op_type, [value for value in inputs if isinstance(value, Signal)]
        if not signals and kind in ON_CONSTANTS:
            return self._run(node, inputs)
        if kind in ("Shape", "Size"):
            return self._run(node, [signals[0].entries])
        if kind not in MOVES:
            if kind not in OPERATORS:
                raise WeightsError("computes with the outputs of the network, which this classifier does not.")
            attributes = {item.name: self.onnx.helper.get_attribute_value(item) for item in node.attribute}
            name = short(node.name or next(filter(None, node.output), kind))
            outputs = OPERATORS[kind](self, attributes, inputs, Place(kind, name, place))
            return list(outputs) if isinstance(outputs, tuple) else [outputs]
        if signals[0].end:
            return signals
        if len(signals) < (len(inputs) if kind == "Concat" else 1) or not isinstance(inputs[0], Signal):
            raise WeightsError("joins the images, or outputs, with constants.")
        arrays = [value.entries if isinstance(value, Signal) else value for value in inputs]
        moved = self._run(node, arrays, is_moved=True)
        return [Signal(entries, signals[0].integer) for entries in moved]

    def _run(self, node: Any, arrays: list[Any], *, is_moved: bool = False) -> list[np.ndarray]:
        """The outputs of an operator for arrays, by the package onnx."""
        given = [array for array in arrays if array is not None]
        self.bounded(self._most_entries(node, given), is_moved)
        node.domain = ""
        named = {name: array for name, array in zip(node.input, arrays, strict=False) if name}
        infos = ([self.onnx.ValueInfoProto(name=name) for name in names if name] for names in (named, node.output))
        graph = self.onnx.helper.make_graph([node], "node", *infos)
        with np.errstate(all="ignore"):
            found = self.onnx.reference.ReferenceEvaluator(graph, opsets={"": self.opset}).run(None, named)
        by_name = dict(zip(filter(None, node.output), map(np.asarray, found), strict=True))
        return [by_name.get(name, np.zeros(0)) for name in node.output]

    @staticmethod
    def _most_entries(node: Any, arrays: list[np.ndarray]) -> int:
        """A bound of the entries that an operator makes."""
        if node.op_type in ELEMENTWISE:
            return math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
        match node.op_type:
            case "Expand":
                return math.prod(np.broadcast_shapes(arrays[0].shape, tuple(map(int, arrays[1]))))
            case "ConstantOfShape":
                return math.prod(map(int, arrays[0]))
            case "Tile":
                return arrays[0].size * math.prod(map(int, arrays[1]))
            case "Gather":
                axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
                return arrays[1].size * arrays[0].size // max(1, arrays[0].shape[axis])
        return sum(array.size for array in arrays)

    def bounded(self, size: int, is_moved: bool = False) -> None:
        """Counts new entries, or numbers of a constant. Refuses those that are, all together, too many."""
        if is_moved:
            self.numbered += size
            if self.numbered > MAX_ENTRIES:
                raise WeightsError(
                    f"gives {size:,} numbers; with those before it more than {MAX_ENTRIES:,}. If the graph is for a "
                    "fixed number of images, export it for one image, or for any number."
                )
            return
        self.made += size * 8
        if self.made > self.most:
            raise WeightsError(
                f"makes a constant of {size:,} numbers; with those before it these are {self.made:,} bytes, more than "
                "the file can need."
            )

    def new(self, kind: str, shape: tuple[int, ...], place: str, below: np.ndarray, data: Any = None) -> Source:
        """New entries. Raises WeightsError where there are too many."""
        start = self.sources[-1].start + math.prod(self.sources[-1].shape) if self.sources else 0
        self.bounded(math.prod(shape), is_moved=True)
        self.sources.append(Source(kind, start, shape, place, below, data))
        return self.sources[-1]

    def source(self, entries: np.ndarray) -> Source:
        """Where entries come from. Raises WeightsError where it is not one place."""
        if not entries.size:
            raise ValueError("nothing is left of its input")
        found = {
            bisect_right(self.sources, number, key=lambda source: source.start) - 1
            for number in (entries.min(), entries.max())
        }
        if len(found) > 1:
            raise WeightsError("uses outputs of several layers together, which this classifier does not.")
        return self.sources[found.pop()]
