"""TensorFlow's checkpoint files without TensorFlow: found, read and written, in both formats, by a prefix, one of their
files, or a folder."""

import glob
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.files import write_bytes
from lstm_mnist_jax.interop.tf_checkpoint.bundle import Variable, bundle_of, read_bundle, read_tensor_slices
from lstm_mnist_jax.interop.tf_checkpoint.graph import describe_file
from lstm_mnist_jax.interop.tf_checkpoint.messages import Unsupported
from lstm_mnist_jax.interop.tf_checkpoint.sstable import FOOTER_SIZE, is_table

T = TypeVar("T")

SHARD = f"{'[0-9]' * 5}-of-{'[0-9]' * 5}"

MAX_FILES, MAX_LISTED = 10_000, 20
"""The most files of a folder to look at, and the most checkpoints in an error."""

STATE_FILE = "checkpoint"
"""The file in a folder with the name of its latest checkpoint."""


def read_checkpoint(path: Path) -> dict[str, Variable]:
    """The variables of a checkpoint by name, in the order of their names; `numpy.asarray` reads one.

    Args:
      path: what was given to `Saver.save` (with the step that it added, if any), one of the checkpoint's files, a
        folder whose `checkpoint` file names the latest one, or that of a SavedModel.

    Raises:
      WeightsError: there is no such checkpoint, or it is damaged or of a kind that is not supported; a damaged
        variable raises it when it is read.
    """
    prefix = checked(f"{path}", lambda: find_prefix(path))
    index = prefix.with_name(prefix.name + ".index")
    read = partial(read_bundle, prefix) if index.is_file() else partial(read_tensor_slices, _v1_shards(prefix))
    variables = checked(f"The checkpoint {prefix}", read)
    return {
        name: replace(item, read=partial(checked, f"The variable {name} of the checkpoint {prefix}", item.read))
        for name, item in sorted(variables.items())
    }


def write_checkpoint(prefix: Path, variables: Mapping[str, np.ndarray]) -> None:
    """Writes a checkpoint that `tf.train.load_checkpoint` and `Saver.restore` read, each file whole or not at all.

    An existing `checkpoint` file in the folder is not changed.

    Args:
      prefix: as for `Saver.save`: a folder, which is created, and a name.
      variables: arrays by name.

    Raises:
      WeightsError: it cannot be written.
    """
    index, data = bundle_of(variables)
    write_bytes(prefix.with_name(f"{prefix.name}.data-00000-of-00001"), data)
    write_bytes(prefix.with_name(prefix.name + ".index"), index)
    name = prefix.name.replace("\\", "\\\\").replace('"', '\\"')
    if not (prefix.parent / STATE_FILE).exists():
        lines = [f'model_checkpoint_path: "{name}"', f'all_model_checkpoint_paths: "{name}"', ""]
        write_bytes(prefix.parent / STATE_FILE, "\n".join(lines).encode())


def find_prefix(path: Path) -> Path:
    """The prefix of the checkpoint of a path: see `read_checkpoint`. Raises WeightsError where there is none."""
    if path.name == "saved_model.pb" and path.is_file():
        path = path.parent
    if (path / "saved_model.pb").is_file():
        path = path / "variables" / "variables"
    if path.is_dir():
        return _latest(path)
    if path.name == STATE_FILE and path.is_file():
        return _latest(path.parent)
    name = re.sub(r"(\.index|\.meta|\.data-\d{5}-of-\d{5}|-\d{5}-of-\d{5})$", "", path.name)
    prefix = path.with_name(name or "model.ckpt")
    if _exists(prefix):
        return prefix
    reason = f"not a TensorFlow checkpoint: there is no {prefix.name}.index"
    if path.is_file():
        other = (
            "no TensorFlow checkpoint, or cut short" if name == path.name else f"a part without its {prefix.name}.index"
        )
        reason = describe_file(path) or other
    near = _checkpoints(path.parent)
    there = f"There are {', '.join(near)} in {path.parent}" if near else f"There is none in {path.parent}"
    raise WeightsError(
        f"{path} is {reason}. {there}. Expected what was given to Saver.save, with the step that it added, such as "
        "model.ckpt or model.ckpt-8590."
    )


def _latest(folder: Path) -> Path:
    """The newest checkpoint of a folder, by its `checkpoint` file, or the only one."""
    try:
        state = (folder / STATE_FILE).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        state = ""
    there = _checkpoints(folder)
    found = ", ".join(there) or "none"
    if match := re.search(r'^model_checkpoint_path: "(.*)"$', state, re.MULTILINE):
        # An absolute path may be that of another machine, or of a folder that this one is a copy of.
        names = [_unescaped(match[1]), match[1]]
        near = [folder / re.split(r"[/\\]", name)[-1] for name in names]
        named = [folder / name for name in names]
        for prefix in [*near, *named] if Path(names[0]).is_absolute() else [*named, *near]:
            if prefix.name and _exists(prefix):
                return prefix
        raise WeightsError(f"{folder / STATE_FILE} names {names[0]}, which is not there. Name one: {found}.")
    if len(there) == 1:
        return folder / there[0]
    raise WeightsError(f"{folder} has no file '{STATE_FILE}' that names the latest checkpoint. Name one: {found}.")


def _unescaped(text: str) -> str:
    """A string of a text protocol buffer, where bytes may be octal numbers."""
    data = re.sub(rb"\\([0-7]{3}|.)", lambda m: bytes([int(m[1], 8) & 255]) if len(m[1]) == 3 else m[1], text.encode())
    return data.decode(errors="replace")


def _checkpoints(folder: Path) -> list[str]:
    """The prefixes of the checkpoints in a folder, the first `MAX_LISTED`."""
    names = set()
    for file in itertools.islice(folder.iterdir() if folder.is_dir() else (), MAX_FILES):
        prefix = file.with_name(re.sub(r"(\.index|-\d{5}-of-\d{5})$", "", file.name) or file.name)
        if ".data-" not in file.name and _exists(prefix):
            names.add(prefix.name)
    return sorted(names)[:MAX_LISTED]


def _exists(prefix: Path) -> bool:
    return prefix.with_name(prefix.name + ".index").is_file() or bool(_v1_shards(prefix))


def _v1_shards(prefix: Path) -> list[Path]:
    """The files of a checkpoint of the older format; none where it is of another format."""
    if prefix.is_file():
        with prefix.open("rb") as file:
            file.seek(max(0, prefix.stat().st_size - FOOTER_SIZE))
            return [prefix] if is_table(file.read()) else []
    shards = sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}-{SHARD}"))
    return shards if shards and len(shards) == int(shards[0].name[-5:]) else []


def checked(what: str, read: Callable[[], T]) -> T:
    """The result of `read`. Its errors become WeightsErrors that name the file."""
    try:
        return read()
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"{what} cannot be read: {error.strerror or error}.") from error
    except Unsupported as error:
        raise WeightsError(f"{what} is not supported: {error}.") from error
    except (ValueError, OverflowError, MemoryError) as error:  # Malformed, and NumPy's errors for absurd sizes
        raise WeightsError(f"{what} is damaged: {error}. Try another copy of it.") from error
