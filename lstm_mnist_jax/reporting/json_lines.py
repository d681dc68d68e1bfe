"""A file of JSON objects, one a line, that survives crashes: what is in it was written whole."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from lstm_mnist_jax.errors import RunError

Parsed = TypeVar("Parsed")


def read_json_lines(path: Path, parse: Callable[[Any], Parsed]) -> list[Parsed]:
    """What `parse` makes of each line. Lines of which it makes a ValueError, as a crash may leave, are passed over."""
    found = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(parse(json.loads(line)))
    return found


class JsonLines:
    """Writes such a file. Close it at the end."""

    def __init__(self, path: Path, kept: Iterable[dict[str, Any]]) -> None:
        """Opens the file, with what it is to begin with.

        Raises:
          RunError: it cannot be written to.
        """
        self._path = path
        try:
            partial = path.with_name(path.name + ".partial")
            partial.write_text("".join(_line(values) for values in kept), "utf-8")
            partial.replace(path)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise RunError(f"{path} cannot be written to: {error.strerror or error}.") from error

    def write(self, *objects: dict[str, Any]) -> None:
        """Adds objects; when this returns, they are in the file.

        Raises:
          RunError: they could not be written.
        """
        try:
            self._file.write("".join(map(_line, objects)))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise not_written(self._path.parent, error) from error

    def close(self) -> None:
        """Closes the file. What could not be written has been said by `write`."""
        with contextlib.suppress(OSError):
            self._file.close()


def not_written(folder: Path, error: OSError) -> RunError:
    """What to say where a run's folder takes no more."""
    return RunError(
        f"{folder} could not be written to: {error.strerror or error}. Checkpoints are kept; make room, then go on "
        "with --resume."
    )


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"
