"""What an ONNX graph computes at one of its places: the values of names, and how a reshape changes their axes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Atom(NamedTuple):
    """A part of an axis of the input, of a layer's outputs, or of the logits.

    Attributes:
      axis: the name of the axis.
      stride: what one step along the atom is, in steps along the axis.
      size: None where the file leaves it open.
    """

    axis: str
    stride: int
    size: int | None


Axis = tuple[Atom, ...]
"""The atoms of an axis, the last one changing fastest. Atoms of size 1 are left out."""


@dataclass(frozen=True)
class Unknown:
    """An open size, in a shape."""

    axis: str


@dataclass(frozen=True)
class Fill:
    """An array of one value, whose shape does not matter."""

    value: float


@dataclass(frozen=True, eq=False)
class Dense:
    """A dense layer: kernel [in, out], bias [out] or None, and the activation after it, if there is one."""

    kernel: np.ndarray
    bias: np.ndarray | None
    name: str
    number: int
    activation: str = ""

    @property
    def outputs(self) -> Axis:
        return axis_of(Atom(f"outputs of dense layer {self.number}", 1, self.kernel.shape[1]))


@dataclass(frozen=True, eq=False)
class Signal:
    """What the network computes at a place of the graph.

    Attributes:
      axes: what each axis is.
      layer: the recurrent layer that it comes from; None is the images.
      scale, shift: of the images: it is scale * x + shift.
      integer: whether it holds integers.
      steps: of a layer: "all", "last" or "first" (what the layer gives at this time step), "final" (what it gives after
        it has read all), "mean" or "max" over time, or "flat" (of all steps as features).
      direction: 0 or 1, where one direction of a bidirectional layer was chosen.
      dense: the dense layers, as far as they were applied.
      end: the operator after the logits, such as Softmax.
    """

    axes: tuple[Axis, ...]
    layer: "Layer | None" = None
    scale: float = 1.0
    shift: float = 0.0
    integer: bool = False
    steps: str = "all"
    direction: int | None = None
    dense: tuple[Dense, ...] = ()
    end: str = ""


@dataclass(frozen=True, eq=False)
class Layer:
    """A recurrent layer.

    Attributes:
      kind: LSTM or GRU.
      activations: those of the gates and of the cell, with the names of a `ModelConfig`.
      name: of the node.
      below: its inputs.
      cells: the parameters of the cell of each direction, with the names of `flax.nnx`.
      hidden: features of a direction.
      time, batch: what its steps and its examples are.
      number: 0 for the first.
    """

    kind: str
    activations: tuple[str, str]
    name: str
    below: Signal
    cells: tuple[dict[str, Any], ...]
    hidden: int
    time: Axis
    batch: Axis
    number: int

    @property
    def directions(self) -> Axis:
        return axis_of(Atom(f"direction of layer {self.number}", 1, len(self.cells)))

    @property
    def units(self) -> Axis:
        return axis_of(Atom(f"features of layer {self.number}", 1, self.hidden))

    @property
    def features(self) -> Axis:
        return self.directions + self.units


@dataclass(frozen=True)
class Pieces:
    """Signals one after another along an axis on which each has one entry."""

    axis: int
    parts: tuple[Signal, ...]


@dataclass(frozen=True)
class Unread:
    """What this classifier does not have, such as the last cell state."""

    what: str


def axis_of(*atoms: Atom) -> Axis:
    """An axis of these atoms in its plainest form: no atoms of size 1, and parts of one axis that follow on joined."""
    joined: list[Atom] = []
    for atom in atoms:
        if atom.size == 1:
            continue
        if joined and atom.size is not None and joined[-1].axis == atom.axis:
            outer = joined[-1]
            if outer.size is not None and outer.stride == atom.stride * atom.size:
                joined[-1] = Atom(atom.axis, atom.stride, outer.size * atom.size)
                continue
        joined.append(atom)
    return tuple(joined)


def size_of(axis: Axis) -> int | None:
    """The number of entries along an axis; None where it is open."""
    sizes = [atom.size for atom in axis]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def shape_of(signal: Signal) -> np.ndarray:
    """The shape, with `Unknown` for open sizes."""
    sizes: list[Any] = []
    for axis in signal.axes:
        if len(axis) == 1 and axis[0].size is None:
            sizes.append(Unknown(axis[0].axis))
        elif (size := size_of(axis)) is not None:
            sizes.append(size)
        else:
            raise ValueError("its input has an open size times another size")
    return settle_shape(objects(sizes))


def objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def settle_shape(array: np.ndarray) -> np.ndarray:
    """A shape without open sizes as integers."""
    if array.dtype == object and all(isinstance(item, int | np.integer) for item in array.flat):
        return array.astype(np.int64)
    return array


def reshaped(axes: Iterable[Axis], sizes: list[Any]) -> tuple[Axis, ...]:
    """The axes after a reshape to these sizes: integers, -1, `Unknown`, or an axis that is kept."""
    atoms = [atom for axis in axes for atom in axis]
    open_places = [number for number, size in enumerate(sizes) if isinstance(size, int) and size == -1]
    if len(open_places) > 1:
        raise ValueError("it leaves several sizes open")
    cut = open_places[0] if open_places else len(sizes)
    front = [_taken(atoms, size, 0) for size in sizes[:cut]]
    back = [_taken(atoms, size, -1) for size in sizes[cut + 1 :][::-1]][::-1]
    if open_places:
        return (*front, axis_of(*atoms), *back)
    if atoms:
        raise ValueError(f"it reshapes to {[str(size) for size in sizes]}, which does not fit its input")
    return tuple(front)


def _taken(atoms: list[Atom], size: Any, end: int) -> Axis:
    """Takes atoms of this size off the front (end 0) or the back (end -1)."""
    taken: list[Atom] = []
    wanted = {Unknown: 1, tuple: 1}.get(type(size), size)
    if isinstance(size, Unknown):
        if not atoms or atoms[end] != Atom(size.axis, 1, None):
            raise ValueError("it moves an open size")
        return (atoms.pop(end),)
    if isinstance(size, tuple):
        for atom in size if end == 0 else size[::-1]:
            if not atoms or atoms[end] != atom:
                raise ValueError("it keeps the size of an axis in another place")
            taken.append(atoms.pop(end))
        return size
    if wanted < 1:
        raise ValueError(f"it makes an axis of size {wanted}")
    while wanted > 1:
        if not atoms or atoms[end].size is None:
            raise ValueError("it joins or splits an open size")
        axis, stride, available = atoms.pop(end)
        assert available is not None
        if wanted % available == 0:
            taken.append(Atom(axis, stride, available))
            wanted //= available
        elif available % wanted == 0:
            rest = available // wanted
            outer, inner = Atom(axis, stride * rest, wanted), Atom(axis, stride, rest)
            if end:
                outer, inner = Atom(axis, stride * wanted, rest), Atom(axis, stride, wanted)
            taken.append(inner if end else outer)
            atoms.insert(len(atoms) if end else 0, outer if end else inner)
            wanted = 1
        else:
            raise ValueError("its sizes do not divide each other")
    return axis_of(*(taken[::-1] if end else taken))


def is_numbers(value: Any) -> bool:
    """Whether it is a constant, and no shape with open sizes."""
    return isinstance(value, np.ndarray) and value.dtype != object


def short(name: Any) -> str:
    """A name of the file for a message; damaged files have names of bytes, or long ones."""
    text = str(name)[:100]
    return text if text.isprintable() else repr(text)


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")[:300] or type(error).__name__
