"""The tensors in a file of `torch.save`, without PyTorch and without executing anything of the file.

Since PyTorch 1.6 such a file is a zip archive with a pickle, `archive/data.pkl`, and the bytes of each storage in
`archive/data/`. Before, it was five parts in a row: a magic number, the version, the machine, the pickle, and the
storages. See `pickles` for what is read of a pickle.

The weights are the dictionary with arrays of an `nn.LSTM`, wherever it is: the file itself, or its `state_dict`,
`model_state_dict`, `model`, `net`, and so on. The optimizer's state and whatever else is beside it are left alone.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.assembly import MAX_LISTED, ignoring
from lstm_mnist_jax.interop.files import read_bytes
from lstm_mnist_jax.interop.torch_file.archive import ZIP, is_torch, names_in_zip, open_file
from lstm_mnist_jax.interop.torch_file.pickles import Foreign, Malformed
from lstm_mnist_jax.interop.torch_file.tensors import FAULTS, Tensor, check_sizes, to_array
from lstm_mnist_jax.rnn.weights import TORCH_NAME

__all__ = ["ZIP", "from_bytes", "is_torch", "names_in_zip", "read"]


def read(path: Path, ignore: Iterable[str] = (), *, choose: bool = True) -> dict[str, np.ndarray]:
    """The arrays of a file that `torch.save` wrote, by their names in its state_dict.

    Args:
      path: the file.
      ignore: patterns of names to leave out.
      choose: whether one set of weights is wanted. Where a file has several, such as `model` and `ema`, the names begin
        with these, and `ignore` must leave one of them. If False, all are given.

    Returns:
      The arrays, with the shapes, types and values that `torch.load` gives.

    Raises:
      WeightsError: it cannot be read, is another file, or damaged; it has no tensors, or several sets of weights; or it
        holds a whole module, whose pickle can run any program.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from lstm_mnist_jax.errors import WeightsError
      >>> from lstm_mnist_jax.interop import torch_file
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "model.pt")
      ...     _ = path.write_bytes(b"<!DOCTYPE html><title>Not found</title>")
      ...     try:
      ...         torch_file.read(path)
      ...     except WeightsError as error:
      ...         print(str(error).split(" ", 1)[1])
      is a web page, not the file itself; download that.
    """
    return from_bytes(read_bytes(path), path, ignore, choose=choose)


def from_bytes(data: bytes, path: Path, ignore: Iterable[str] = (), *, choose: bool = True) -> dict[str, np.ndarray]:
    """As `read`, from the bytes of the file. `path` is its name, for messages; arrays share memory with `data`."""
    with _naming(path):
        contents = open_file(data)
        sets = _find_weights(contents.root, path.name)
        records = _united(sets)
    records = ignoring(records, ignore)
    with _naming(path):
        left = [
            place or "the file itself"
            for place, tensors in sets.items()
            if any(_full_name(place, name) in records for name in tensors)
        ]
        if choose and len(left) > 1:
            more = f" and {len(left) - MAX_LISTED} more" if len(left) > MAX_LISTED else ""
            raise WeightsError(
                f"holds several sets of weights: {', '.join(left[:MAX_LISTED])}{more}. Leave out all but one, such as "
                f"with --ignore '{left[-1]}.*'."
            )
        check_sizes(records, len(data))
        return {name: to_array(name, tensor, contents) for name, tensor in records.items()}


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the path of the file before an error."""
    try:
        yield
    except Malformed as error:
        raise WeightsError(f"{path} cannot be read as a file of torch.save: {error}.") from error
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from error


_MAX_DEPTH = 6
"""How deep within a training dictionary the weights are searched for."""

_Place = tuple[str, ...]
"""The keys that lead to a dictionary in the file."""


def _full_name(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _united(sets: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several dictionaries in one, by the names of both."""
    united = {_full_name(place, name): tensor for place, tensors in sets.items() for name, tensor in tensors.items()}
    if len(united) < sum(map(len, sets.values())):
        raise Malformed("two of its tensors have one name")
    return united


_Sets = dict[_Place, dict[str, Tensor]]
"""Tensors by name, by the place of their dictionary."""


def _find_weights(root: Any, file_name: str) -> dict[str, dict[str, Tensor]]:
    """The tensors of each set of weights, by its place in the file."""
    if isinstance(root, Foreign):
        raise WeightsError(_whole_module(root.name, file_name, ""))
    if isinstance(root, Tensor):
        raise WeightsError("holds one tensor; expected the state_dict of a model.")
    weights, others, modules = _search(root)
    if weights:
        return _without_copies(_join_parts(weights, others))
    for place, name in modules:
        raise WeightsError(_whole_module(name, file_name, "".join(f"[{key!r}]" for key in place)))
    if not others:
        raise WeightsError("holds no dictionary of tensors by name; expected the state_dict of a model.")
    return {"": max(others.values(), key=len)}


def _search(root: Any) -> tuple[_Sets, _Sets, list[tuple[_Place, str]]]:
    """The dictionaries with the arrays of an LSTM, those with other tensors, and the places and classes of modules."""
    weights, others, modules, seen = _Sets(), _Sets(), list[tuple[_Place, str]](), {id(root)}
    places: deque[tuple[_Place, Any]] = deque([((), root)])
    while places:
        place, value = places.popleft()
        if isinstance(value, Foreign) and value.is_module:
            modules.append((place, value.name))
        if isinstance(value, dict):
            if tensors := _tensors(value):
                is_lstm = any(TORCH_NAME.fullmatch(name) for name in tensors)
                (weights if is_lstm else others)[place] = tensors
            items: Iterable[Any] = value.items()
        elif isinstance(value, (list, tuple)):
            items = enumerate(value)
        else:
            continue
        for key, item in items:
            named = isinstance(key, int) or (isinstance(key, str) and key.isprintable())
            if (
                isinstance(item, (dict, list, tuple, Foreign))
                and named
                and len(place) < _MAX_DEPTH
                and id(item) not in seen
            ):
                seen.add(id(item))
                places.append(((*place, str(key)), item))
    return weights, others, modules


def _tensors(value: dict[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a dictionary by name, and what stands for a tensor but cannot be read."""
    found = {}
    for name, item in value.items():
        if isinstance(item, tuple) and any(isinstance(part, Tensor) for part in item[:8]):
            item = Tensor(fault="is a tuple of tensors")
        if isinstance(item, Foreign) and item.made and item.name in FAULTS:
            item = Tensor(fault=FAULTS[item.name])
        if isinstance(name, str) and isinstance(item, Tensor):
            found[name] = item
    return found


def _join_parts(weights: _Sets, others: _Sets) -> _Sets:
    """Joins modules that were saved one by one, {'lstm': lstm.state_dict(), 'fc': fc.state_dict()}, to one set."""
    parents = {
        place[:-1]
        for place, tensors in weights.items()
        if place and all(TORCH_NAME.fullmatch(name) for name in tensors)
    }
    joined: dict[_Place, dict[str, dict[str, Tensor]]] = {}
    for place, tensors in [*weights.items(), *others.items()]:
        if place and place[:-1] in parents:
            joined.setdefault(place[:-1], {})[place[-1]] = tensors
        elif place in weights:
            joined.setdefault(place, {})[""] = tensors
    return {place: _united(parts) if len(parts) > 1 else next(iter(parts.values())) for place, parts in joined.items()}


def _without_copies(sets: _Sets) -> dict[str, dict[str, Tensor]]:
    """Only one of sets that are the same tensors; the name of the only set is left out."""
    places = {frozenset(tensors.items()): place for place, tensors in reversed(sets.items())}
    first = set(places.values())
    kept = {".".join(place): tensors for place, tensors in sets.items() if place in first}
    if len(kept) < len(places):
        raise Malformed("two of its dictionaries have one name")
    return kept if len(kept) > 1 else {"": next(iter(kept.values()))}


def _whole_module(name: str, file_name: str, place: str) -> str:
    return (
        f"holds a whole object of the class {name}{f' in {place}' if place else ''}, as torch.save(model, ...) writes. "
        "Opening one runs its author's program, which import does not do. Where that program is installed: model = "
        f"torch.load({file_name!r}, map_location='cpu', weights_only=False){place}; "
        "torch.save(model.state_dict(), 'weights.pt')."
    )
