"""Tables of pixels as text: one image a line, its label in one of the columns.

With a header, as of Kaggle's digit recognizer (`label,pixel0,...`), the label's column has a name. Without one it is
the first, or the last where only that can be labels. Commas, semicolons, tabs or spaces are between the values.
"""

import codecs
import csv
import io
import itertools
import re
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lstm_mnist_jax.data.dataset import MAX_CLASSES
from lstm_mnist_jax.data.idx import reading, refuse_bomb
from lstm_mnist_jax.data.pictures import printable
from lstm_mnist_jax.errors import DataError
from lstm_mnist_jax.progress import Reading

MAX_LINE = 1 << 24
"""Characters."""

MAX_NAME = 200
"""Characters of a label."""

CHUNK_ROWS = 100
DELIMITERS = ";\t|, "
"""The first of which a row has two or more: commas may be decimal points, and spaces may be beside anything."""
LABEL_NAMES = ("label", "labels", "class", "target", "y", "digit", "letter", "category", "character")
INDEX_NAMES = ("", "id", "index", "idx", "imageid", "unnamed: 0")


class Table(NamedTuple):
    """A table of pixels.

    Attributes:
      images: uint8, or float32 where not all are integers up to 255, [n, pixels].
      labels: integers or text [n]; None where the header names no column of labels.
      note: where the labels were found.
    """

    images: np.ndarray
    labels: np.ndarray | None
    note: str


class _Columns(NamedTuple):
    """The columns of the labels and of the pixels in their order.

    Where `note` is None, the header does not say which are the labels: `order` has all columns that can be.
    """

    width: int
    label: int | None
    order: list[int]
    note: str | None

    def left_out(self, header: Sequence[str]) -> str:
        """The end of a note on the columns that are neither, such as an index."""
        others = sorted({*range(self.width)} - {*self.order, self.label})
        return "".join(f"; column {place + 1} {printable(header[place][:30])!r} left out" for place in others)


def read_csv(path: Path) -> Table:
    """Reads a table, gzipped or not.

    Raises:
      DataError: it is missing, damaged, or no table of pixels and labels; with the row, and the column where it is one.
    """
    with closing(_lines(path)) as lines:
        return _read(path, lines)


def _lines(path: Path) -> Generator[tuple[int, str]]:
    """The lines that are not empty, with their numbers, with any of the three line ends."""
    unpacked = 0
    with reading(path) as (data, _), Reading(f"reading {path.name}", None) as progress:
        packed = path.stat().st_size
        start = data.read(2)
        data.seek(0)
        encoding = "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
        text = io.TextIOWrapper(data, encoding, newline=None)
        for number in itertools.count(1):
            try:
                line = text.readline(MAX_LINE + 1)
            except UnicodeError as error:
                raise DataError(f"{path}, after row {number - 1}, is not text in UTF-8 or UTF-16: {error}.") from error
            if not line:
                return
            if len(line) > MAX_LINE:
                raise DataError(f"{path}, row {number}: it has more than {MAX_LINE:,} characters, too many for a row.")
            unpacked += len(line)
            refuse_bomb(unpacked, packed, str(path))
            progress.advance(1)
            if stripped := line.strip("\n\r \ufeff"):
                yield number, stripped


def _read(path: Path, lines: Iterator[tuple[int, str]]) -> Table:
    first = next(lines, None)
    if first is None:
        raise DataError(f"{path} is empty, expected one image a line: its label and its pixels.")
    number, line = first
    delimiter = next((mark for mark in DELIMITERS if line.count(mark) > 1), ",")
    cells = _cells(_with_points(line.lstrip("# "), delimiter), delimiter, path, number)
    if len(cells) < 3:
        raise DataError(
            f"{path}, row {number}: it has {len(cells)} column{'s' * (len(cells) > 1)}, expected a label and pixels, "
            "with commas between."
        )
    header, columns = cells, _header(cells, path)
    if columns is None:
        columns, lines = _of_image(cells, path, number), itertools.chain([first], lines)
    chunks, labels, label_rows = list[np.ndarray](), list[str](), list[int]()
    while chunk := list(itertools.islice(lines, CHUNK_ROWS)):
        for number, line in chunk:
            cells = _cells(line, delimiter, path, number)
            if len(cells) != columns.width:
                raise DataError(
                    f"{path}, row {number}: it has {len(cells):,} columns, the first "
                    f"row {columns.width:,}. It is truncated or damaged. (Rows are lines of the file, from 1.)"
                )
            if columns.label is not None:
                labels.append(cells[columns.label].strip())
                label_rows.append(number)
                if not 0 < len(labels[-1]) <= MAX_NAME:
                    fault = f"more than {MAX_NAME} characters" if labels[-1] else "no characters"
                    raise DataError(f"{path}, row {number}: its label has {fault}.")
        chunks.append(_numbers(chunk, columns, delimiter, path))
    if not chunks:
        raise DataError(f"{path} has a header, but no images.")
    same = {part.dtype for part in chunks} == {np.dtype(np.uint8)}
    pixels = np.concatenate(chunks, dtype=np.uint8 if same else np.float32)
    if columns.note is None:
        table = _with_labels_found(pixels, path)
    else:
        table = Table(pixels, None if columns.label is None else _labels(labels, label_rows, path), columns.note)
    return table._replace(note=table.note + columns.left_out(header)) if table.note else table


def _of_image(cells: Sequence[str], path: Path, number: int) -> _Columns:
    """The columns of a table without a header, by its first image: text at one end is the label."""
    texts = [place for place, cell in enumerate(cells) if not _is_number(cell)]
    label = texts[0] if texts in ([0], [len(cells) - 1]) else None
    if texts and label is None:
        place = next((place for place in texts if 0 < place < len(cells) - 1), 0)
        raise _no_number(path, number, place, cells[place])
    note = None if label is None else f"labels in the {'last' if label else 'first'} column, of text"
    return _Columns(len(cells), label, [place for place in range(len(cells)) if place != label], note)


def _cells(line: str, delimiter: str, path: Path, number: int) -> list[str]:
    if '"' not in line:
        return line.split() if delimiter == " " else line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, row {number}: {error}.") from error


def _header(cells: Sequence[str], path: Path) -> _Columns | None:
    """The columns by their names; None where the first row is an image."""
    names = [cell.strip().strip('"').lower() for cell in cells]
    known = [place for place, name in enumerate(names) if name in LABEL_NAMES]
    others = [place for place, name in enumerate(names) if place not in known and name not in INDEX_NAMES]
    numbers = [names[place] for place in others if _is_number(names[place])]
    distinct = set(names)
    if len(distinct) == len(names) and any({f"{name}.1", f"{name}.2"} <= distinct for name in numbers):
        raise DataError(
            f"{path}: its first row is an image that pandas took for a header (equal pixels became 0, 0.1, 0.2). "
            "Read the original file with header=None before writing it."
        )
    counted = numbers == [str(n) for n in range(len(numbers))]  # as pandas names columns without names
    if counted and len(numbers) == len(others) and not known:
        return _Columns(len(names), None, others, None)
    if not known and not counted and sum(not _is_number(name) for name in names) < 2:
        return None
    if len(known) > 1:
        listed = ", ".join(names[place] for place in known)
        raise DataError(f"{path}: several columns could be the labels: {listed}. Keep one.")
    digits = {place: tuple(map(int, re.findall(r"[0-9]{1,9}", names[place]))) for place in others}
    if unnumbered := [place for place in others if not digits[place]]:
        if known or len(unnumbered) > 1 or unnumbered[0] not in (others[0], others[-1]):
            shown = ", ".join(printable(cells[place][:30]) for place in unnumbered[:5])
            raise DataError(
                f"{path}: the header has columns that are neither labels nor pixels: {shown}. Name the labels "
                "'label', pixels by their numbers, and leave out others."
            )
        known = unnumbered
        others.remove(known[0])
    order = sorted(others, key=lambda place: digits[place])  # pixel10 may stand before pixel2
    if order != others == sorted(others, key=lambda place: digits[place][::-1]):
        first, second = (printable(cells[place][:30]) for place in others[:2])
        raise DataError(
            f"{path}: its header has {first} before {second}. Is the first number that of the row, and the table "
            "column by column, or that of the column? Name the pixels by one number each, row by row from the top."
        )
    note = f"labels in column {printable(cells[known[0]][:30])!r}" if known else ""
    if order != others:
        note += ", pixels in the order of their numbers"
    return _Columns(len(names), known[0] if known else None, order, note)


def _numbers(rows: Sequence[tuple[int, str]], columns: _Columns, delimiter: str, path: Path) -> np.ndarray:
    """The pixels of some rows."""
    texts, between = [_with_points(line, delimiter) for _, line in rows], None if delimiter == " " else delimiter
    ends = (columns.order[0], columns.order[-1]) if columns.note is None else ()  # perhaps of labels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of rows without numbers
            numbers = np.loadtxt(
                texts,
                np.float32,
                delimiter=between,
                usecols=columns.order,
                quotechar='"',
                comments=None,
                ndmin=2,
            )
    except (ValueError, UserWarning, OverflowError):
        numbers = np.zeros((0, 0), np.float32)
    is_read = numbers.shape == (len(rows), len(columns.order)) and np.isfinite(numbers).all() and numbers.min() >= 0
    if is_read and (numbers[:, 1:-1] if ends else numbers).max() <= 255:
        whole = numbers.astype(np.uint8) if numbers.max() <= 255 else numbers
        return whole if (whole == numbers).all() else numbers
    for (number, _), text in zip(rows, texts, strict=True):
        cells = _cells(text, delimiter, path, number)
        for place in columns.order:
            most = 1e30 if place in ends else 255
            if not _is_number(cells[place]) or not 0 <= float(cells[place]) <= most:
                raise _no_number(path, number, place, cells[place])
    raise DataError(f"{path}, rows {rows[0][0]} to {rows[-1][0]}: they cannot be read as numbers.")


def _with_points(line: str, delimiter: str) -> str:
    """Where semicolons are between the numbers, a comma in one is a decimal point."""
    return line.replace(",", ".") if delimiter == ";" else line


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # which Python allows between digits


def _no_number(path: Path, number: int, column: int, cell: str) -> DataError:
    shown = printable(cell[:30])
    return DataError(
        f"{path}, row {number}, column {column + 1}: {shown!r} is no pixel, expected a number from 0 to 255."
    )


def counts_up(column: np.ndarray) -> bool:
    """Whether a column is 0, 1, 2 ... or 1, 2, 3 ..., of three or more."""
    counted = np.arange(len(column))
    return len(column) > 2 and any(np.array_equal(column, counted + start) for start in (0, 1))


def _labels(texts: list[str], rows: Sequence[int], path: Path) -> np.ndarray:
    """Integers where all are, also as 5.0; else text."""
    try:
        numbers = np.array(texts, np.float64)
    except ValueError:
        return np.array(texts, dtype=str)
    if not np.isfinite(numbers).all():  # as pandas writes a label that is missing
        n = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise DataError(f"{path}, row {rows[n]}: the label is {texts[n]!r}. Leave out images without a label.")
    fractions = np.flatnonzero(numbers != np.rint(numbers))
    if 0 < len(fractions) <= max(1, len(texts) // 100) < len(texts) / 2:  # where more are, they are names
        raise DataError(
            f"{path}, row {rows[fractions[0]]}: the label is {texts[fractions[0]]!r}, but nearly all others are "
            "integers. A fraction is no class: correct the label, or leave the row out."
        )
    is_integer = (np.abs(numbers) < 2**31).all() and not len(fractions)
    return numbers.astype(np.int64) if is_integer else np.array(texts, dtype=str)


def _with_labels_found(numbers: np.ndarray, path: Path) -> Table:
    """Labels in the first or the last column of numbers without names."""
    first, last = _looks_like_labels(numbers[:, 0]), _looks_like_labels(numbers[:, -1])
    ends = [end for end, column in (("first", numbers[:, 0]), ("last", numbers[:, -1])) if counts_up(column)]
    index = f" Its {ends[0]} column counts the rows and looks like an index: drop it, too." if ends else ""
    if not any(first) and not any(last):
        raise DataError(
            f"{path} has no header, and neither its first nor its last column can be labels (integers from 0, of two "
            f"classes or more). Add a header that names the column 'label'.{index}"
        )
    # Where both could be, a corner of the images is nearly always black, and labels are never nearly all the same.
    (place, chosen), other = ((-1, last), first) if last[0] > first[0] else ((0, first), last)
    if other[0] in (1, 3) and chosen[1] > other[1]:
        raise DataError(
            f"{path} has no header, and its first or its last column could be the labels ({first[1]} and {last[1]} "
            f"values). Add a header that names the column 'label'.{index}"
        )
    pixels = numbers[:, :-1] if place else numbers[:, 1:]
    if pixels.dtype != np.uint8 and pixels.max() <= 255 and (pixels == np.rint(pixels)).all():
        pixels = pixels.astype(np.uint8)
    note = f"labels in the {'last' if place else 'first'} column"
    note += ", which is assumed" if chosen[0] == other[0] else ""
    return Table(pixels, numbers[:, place].astype(np.int64), note)


def _looks_like_labels(column: np.ndarray) -> tuple[int, int]:
    """A score, and the number of values.

    0: no labels; 1: perhaps; 2: integers without a gap from 0 or 1; 3: and none is nearly everywhere.
    """
    values, counts = np.unique(column, return_counts=True)
    if len(values) < 2 or len(values) > 1000 or values[-1] >= MAX_CLASSES or (values != np.rint(values)).any():
        return 0, 0
    if values[0] > 1 or values[-1] - values[0] != len(values) - 1:
        return 1, len(values)
    return (3 if counts.max() < 0.8 * len(column) else 2), len(values)
