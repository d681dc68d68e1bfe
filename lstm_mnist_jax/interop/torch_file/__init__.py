"""The tensors in a file of `torch.save`, without PyTorch and without executing anything of the file.

Since PyTorch 1.6 such a file is a zip archive with a pickle, `archive/data.pkl`, and the bytes of each storage in
`archive/data/`. Before, it was five parts in a row: a magic number, the version, the machine, the pickle, and the
storages. See `pickles` for what is read of a pickle.

The weights are the dictionary with arrays of an `nn.LSTM`, wherever it is: the file itself, or its `state_dict`,
`model_state_dict`, `model`, `net`, and so on. The optimizer's state and whatever else is beside it are left alone.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.assembly import MAX_LISTED, ignoring
from lstm_mnist_jax.interop.files import read_bytes
from lstm_mnist_jax.interop.torch_file.archive import ZIP, is_torch, names_in_zip, open_file
from lstm_mnist_jax.interop.torch_file.pickles import Malformed
from lstm_mnist_jax.interop.torch_file.search import find_weights, full_name, united
from lstm_mnist_jax.interop.torch_file.tensors import check_sizes, to_array

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
        sets = find_weights(contents.root, path.name)
        records = united(sets)
    records = ignoring(records, ignore)
    with _naming(path):
        left = [
            place or "the file itself"
            for place, tensors in sets.items()
            if any(full_name(place, name) in records for name in tensors)
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
