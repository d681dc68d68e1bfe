"""`lstm-mnist predict`."""

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lstm_mnist_jax.cli.arguments import Positional
from lstm_mnist_jax.cli.parsing import OutputConsole, parse, start_jax
from lstm_mnist_jax.config import Execution
from lstm_mnist_jax.errors import DataError, UserError, os_errors_as
from lstm_mnist_jax.progress import say
from lstm_mnist_jax.report.boxes import Mark, boxed_lines
from lstm_mnist_jax.report.terminal import bar, percent, shades

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lstm_mnist_jax.inference import TrainedRun

BATCH = 64
"""So many pictures are classified at once."""

ROWS = 1024
"""The maximum of rows of a table; more pictures get another table, so that no more are held in memory."""

TOP = 3
"""The most probable classes: so many are printed for each picture."""

STEPS = 28
"""The prediction is printed after at most so many steps, if steps are not rows."""

DRAWN_SIZE, PRINTED_SIZE = 512, 160
"""The longer side, in pixels, to which a picture is reduced that is drawn or printed with boxes."""

CUT_OUT = 0.6
"""A single digit has a box drawn around it where it takes less than this of the picture's sides."""

BAR = 20
"""Characters of a bar of probability, where there is room."""


Box = tuple[float, float, float, float]
"""Top, left, height and width, as fractions of the picture."""


@dataclass(frozen=True)
class PredictArguments:
    """Classify images with a trained run: PNG, JPEG, BMP, GIF, WebP, TIFF, JPEG 2000, AVIF or .npy, of any size, dark
    on light or light on dark. What looks unlike the training images gets a warning. Files that cannot be read are
    reported on standard error, the others classified; the exit code is 1 then."""

    run_dir: Positional[Path]
    """The run's folder."""
    images: Positional[tuple[str, ...]]
    """Files, folders, patterns such as 'scans/*.png' (** for folders in folders), or - for standard input."""
    checkpoint: str = "best"
    """best (on validation), last, or the step of a checkpoint."""
    form: Literal["digit", "whole", "plain"] | None = None
    """How a file's image is brought to the run's size: digit (cropped, scaled and centred as in MNIST), whole (resized
    to fit), plain (unchanged, of the right size). None is digit for digits in MNIST's form, else whole."""
    json: bool = False
    """Print one JSON object per image, one per line, instead of a table."""
    show: bool = False
    """Print each image as the network reads it, and pictures of several digits with boxes around them."""
    explain: bool = False
    """Print each image with the prediction after each step."""
    explain_into: Path | None = None
    """A folder for figures, one per image: saliency, the probabilities after each step, the states of all layers. For
    pictures of several digits also the picture with boxes around them."""


@dataclass(frozen=True)
class Digit:
    """A digit on a picture; or the whole picture, where digits are not searched for.

    Attributes:
      image: [height, width] or [height, width, channels], in the run's form.
      warning: in what it is unlike the training images, or None.
      box: where it is on the picture, (top, left, height, width) as fractions; None of a whole picture.
      marks: the boxes of the marks beside it that are not read.
      top: the most probable classes with their probabilities; none until it is classified.
    """

    image: np.ndarray
    warning: str | None
    box: Box | None = None
    marks: tuple[Box, ...] = ()
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Result:
    """The result for a picture.

    Attributes:
      name: of the file, and of the picture within it.
      title: the name as it is printed.
      digits: on the picture; none after an error.
      picture: the picture itself, reduced, uint8; None where it is not drawn with boxes.
      remarks: on the whole picture.
      error: why it cannot be classified.
    """

    name: str
    title: str = ""
    digits: tuple[Digit, ...] = ()
    picture: np.ndarray | None = None
    remarks: tuple[str, ...] = ()
    error: str | None = None

    @property
    def labels(self) -> list[str]:
        """The most probable class of each digit."""
        return [digit.top[0][0] for digit in self.digits]

    @property
    def probability(self) -> float:
        """That of these classes together."""
        return math.prod(digit.top[0][1] for digit in self.digits)

    @property
    def titles(self) -> list[str]:
        """The name of each digit."""
        count, name = len(self.digits), self.title
        return [f"{name}, digit {number} of {count}" for number in range(1, count + 1)] if count > 1 else [name]

    @property
    def warnings(self) -> list[str]:
        """Remarks on the picture, and the warnings of its digits."""
        of_digits = [
            f"digit {number}: {digit.warning}" if len(self.digits) > 1 else digit.warning
            for number, digit in enumerate(self.digits, 1)
            if digit.warning is not None
        ]
        return [*self.remarks, *of_digits]

    @property
    def drawn_marks(self) -> list[Mark]:
        """What is drawn around the digits that have boxes."""
        boxed = [(digit.box, digit) for digit in self.digits if digit.box is not None]
        return [Mark(box, *digit.top[0], digit.warning is not None) for box, digit in boxed]


def predict(arguments: Sequence[str]) -> int:
    """`lstm-mnist predict`."""
    parsed = parse(PredictArguments, arguments)
    if not parsed.images:
        if parsed.run_dir.is_file():
            raise UserError(f"{parsed.run_dir} is a file. Name the folder of a run before the pictures.")
        raise UserError("No image is given. Give files, folders or patterns after the run, or - for standard input.")
    if parsed.json and (parsed.show or parsed.explain):
        given = " and ".join(f"--{name}" for name in ("show", "explain") if getattr(parsed, name))
        raise UserError(f"With {given}, text is printed; leave out --json.")
    if not parsed.run_dir.expanduser().is_dir():
        for word in parsed.images:
            if Path(word).expanduser().joinpath("config.json").is_file():
                raise UserError(f"The run comes first, the pictures after it: lstm-mnist predict {word} IMAGE ...")
    from lstm_mnist_jax.data.pictures import find_pictures
    from lstm_mnist_jax.inference import load_run

    start_jax(Execution(devices=1))
    run = load_run(parsed.run_dir, parsed.checkpoint)
    _ = run.novelty  # which is damaged for all pictures or for none
    files = find_pictures(parsed.images)
    folder = None if parsed.explain_into is None else _figures_folder(parsed.explain_into)
    taken = {str(Path(file).resolve()).casefold() for file in files}
    pictures, errors, rows = len(taken), 0, list[Result]()
    has_boxes = parsed.show or folder is not None
    for result in _results(run, files, parsed.form, has_boxes):
        figures: dict[str, Any] = {}
        if result.error is not None:
            errors += 1
            print(f"lstm-mnist: {result.error}", file=sys.stderr)
        elif folder is not None:
            figures = _draw(run, result, folder, taken)
        if parsed.json:
            print(json.dumps(_as_json(result) | figures, allow_nan=False), flush=True)
        elif result.error is None:
            rows.append(_for_printing(result) if parsed.show else replace(result, picture=None))
        if len(rows) == ROWS:
            _print(run, rows, parsed)
            rows = []
    _print(run, rows, parsed)
    if len(taken) > pictures and not parsed.json:
        print(f"{len(taken) - pictures} drawn in {folder}")
    return 1 if errors else 0


def _results(run: "TrainedRun", files: Sequence[str], form: str | None, has_boxes: bool) -> Iterator[Result]:
    """The results in the order of the pictures; at most a batch of pictures is held in memory."""
    waiting: list[Result] = []
    for result in _pictures(run, files, form, has_boxes):
        waiting.append(result)
        if len(waiting) == BATCH:
            yield from _classified(run, waiting)
            waiting = []
    yield from _classified(run, waiting)


def _pictures(run: "TrainedRun", files: Sequence[str], form: str | None, has_boxes: bool) -> Iterator[Result]:
    from lstm_mnist_jax.data.normal_form import are_digits
    from lstm_mnist_jax.data.pictures import printable, read_pictures, reduced

    for file in files:
        try:
            remarks = list[str]()
            for name, picture in read_pictures(file, remarks.append, run.folder.data.image_shape):
                try:
                    if (form or run.form) == "digit" and len(run.folder.data.image_shape) == 2:
                        found = run.find_digits(picture)
                        turned = run.turned_reading(found)
                        digits = tuple(Digit(each.image, each.warning, each.box, each.marks) for each in found)
                        is_drawn = has_boxes and (len(found) > 1 or max(found[0].box[2:]) < CUT_OUT)
                        kept = (255 * reduced(picture, DRAWN_SIZE)).round().astype(np.uint8) if is_drawn else None
                    else:
                        images, turned, kept = run.normalise([picture], form), None, None
                        warning = run.warnings(images, form)[0]
                        if warning and form is None and are_digits(run.class_names) and images.ndim == 3:
                            warning += "; --form digit finds digits on pictures"
                        digits = (Digit(images[0], warning),)
                    of_picture = (*remarks, *([turned] if turned else []))
                    remarks.clear()  # printed once for a file
                    yield Result(name, printable(name), digits, kept, of_picture)
                except DataError as error:
                    yield Result(name, error=f"{printable(name)}: {error}")
        except DataError as error:
            yield Result(file, error=str(error))


def _classified(run: "TrainedRun", waiting: list[Result]) -> Iterator[Result]:
    from lstm_mnist_jax.inference import require_finite

    images = [digit.image for result in waiting for digit in result.digits]
    probabilities = run.predict(np.stack(images))[1] if images else np.zeros((0, 0))
    require_finite(run, probabilities)
    tops = iter([_top(run.class_names, each) for each in probabilities])
    for result in waiting:
        yield replace(result, digits=tuple(replace(digit, top=next(tops)) for digit in result.digits))


def _top(class_names: Sequence[str], probabilities: Any) -> tuple[tuple[str, float], ...]:
    """The most probable classes with their probabilities."""
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    return tuple((class_names[label], float(probabilities[label])) for label in order)


def _for_printing(result: Result) -> Result:
    """With the picture in grey, and so small that many are held in memory."""
    from lstm_mnist_jax.data.pictures import reduced

    if result.picture is None:
        return result
    return replace(result, picture=reduced(_grey(result.picture), PRINTED_SIZE).astype(np.uint8))


def _as_json(result: Result) -> dict[str, Any]:
    if result.error is not None:
        return {"file": result.name, "error": result.error}
    digits: list[dict[str, Any]] = []
    for digit in result.digits:
        top = [{"label": label, "probability": probability} for label, probability in digit.top]
        box = {"box": digit.box, "marks": digit.marks} if digit.box else {}
        digits.append({**top[0], "top": top, **box, "warning": digit.warning})
    found = {"file": result.name, "label": "".join(result.labels), "probability": result.probability}
    found |= {"top": digits[0]["top"]} if len(digits) == 1 else {}
    found["warning"] = "; ".join(result.warnings) or None
    return found | ({"digits": digits} if result.digits[0].box else {})


def _figures_folder(folder: Path) -> Path:
    folder = folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{folder} is a file; name a folder for the figures with --explain-into.") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be a folder for figures: {error.strerror or error}.") from error
    return folder


def _draw(run: "TrainedRun", result: Result, folder: Path, taken: set[str]) -> dict[str, Any]:
    """Draws how each digit of a picture was read, and a picture with boxes around its digits, where it has boxes.

    The files are none that are `taken` by a picture or by another figure. Returns their names, for JSON.
    """
    from lstm_mnist_jax.report.boxes import draw_boxes
    from lstm_mnist_jax.report.reading import draw_reading_of

    stem, overview, figures = _stem(result), {}, []
    if result.picture is not None:
        figure = draw_boxes(result.picture, result.drawn_marks, title=result.title)
        overview["overview"] = _write(figure, folder, stem, "digits", taken)
    for number, (digit, title) in enumerate(zip(result.digits, result.titles, strict=True), 1):
        name = f"{stem}-digit-{number}" if len(result.digits) > 1 else stem
        figures.append(_write(draw_reading_of(run, digit.image, title=title), folder, name, "reading", taken))
    return ({"figures": figures} if len(figures) > 1 else {"figure": figures[0]}) | overview


def _stem(result: Result) -> str:
    """The beginning of the names of a picture's figures."""
    stem = re.sub(r"\.\w+$|\.npy(?=\[\d+\]$)", "", Path(result.name).name)
    return re.sub(r"[^\w.]+", "-", stem).strip("-.").encode()[:200].decode(errors="ignore") or "picture"


def _write(figure: "Figure", folder: Path, name: str, kind: str, taken: set[str]) -> str:
    """Writes a figure as NAME-KIND.png, or NAME-2-KIND.png and so on where that is taken."""
    from lstm_mnist_jax.report.style import file_bytes

    number, path = 1, folder / f"{name}-{kind}.png"
    while str(path.resolve()).casefold() in taken:
        number += 1
        path = folder / f"{name}-{number}-{kind}.png"
    taken.add(str(path.resolve()).casefold())
    with os_errors_as(UserError, path, "written"):
        path.write_bytes(file_bytes(figure, "png"))
    return str(path)


def _print(run: "TrainedRun", results: list[Result], parsed: PredictArguments) -> None:
    """Prints a table, and with --show or --explain each picture."""
    if not results:
        return
    console = OutputConsole()
    if not console.is_terminal:
        console.width = 10_000  # in a file or a pipe, each picture is one line
    table = Table()
    for title in ("picture", "label"):
        table.add_column(title, overflow="fold")
    table.add_column("probability", justify="right")
    table.add_column("then", overflow="fold")
    for result in results:
        name, label, others = result.title, result.labels[0], result.digits[0].top[1:]
        if len(result.digits) > 1:
            label = f"{len(result.digits)} digits: {' '.join(result.labels)}"
            others = tuple(digit.top[0] for digit in result.digits)
        then = ", ".join(f"{other} {percent(share)}" for other, share in others)
        table.add_row(*map(Text, (name, label, percent(result.probability), then)))
    console.print(table)
    for result in results:
        for warning in result.warnings:
            say(console, f"warning: {result.title}: {warning}")
    for result in results:
        if result.picture is not None:
            say(console, f"{result.title}, its digits in boxes:")
            grey = result.picture.astype(np.float32) / 255
            for line in boxed_lines(grey, result.drawn_marks, width=console.width, plain=_is_plain(console)):
                say(console, line)
        for digit, title in zip(result.digits, result.titles, strict=True):
            if parsed.explain:
                _explain(console, run, title, digit.image, parsed.show)
            elif parsed.show:
                say(console, f"{title}, as the network reads it:")
                _show(console, digit.image)


def _explain(console: Console, run: "TrainedRun", name: str, image: np.ndarray, show: bool) -> None:
    """Prints the prediction after each step, beside the rows of the picture if a step is one row or several."""
    from lstm_mnist_jax.model import task_of

    config = run.folder.config.model
    along, rows = run.read_along(image[None])[0], _grey(image)
    task = task_of(config).describe(run.folder.data.image_shape)
    say(console, f"{name}, read as {task}; after each step the prediction and its probability:")
    names = max(map(len, run.class_names))
    room = console.width - 2 * rows.shape[1] - names - 17  # for a bar
    is_wide, is_plain = room >= 0, _is_plain(console)

    def prediction(step: int, length: int) -> str:
        best = int(along[step].argmax())
        share = float(along[step, best])
        drawn = bar(share, min(BAR, max(0, length)), plain=is_plain)
        return f"{step + 1:4d}  {run.class_names[best]:>{names}}  {percent(share):>8} {drawn}".rstrip()

    if config.task == "rows" and len(rows) % len(along) == 0:
        height = len(rows) // len(along)
        for n, row in enumerate(rows):  # a prediction is printed beside the last row that it depends on
            line = shades(row, wide=is_wide, plain=is_plain)
            length = room if is_wide else room + rows.shape[1]
            say(console, line + (prediction(n // height, length) if n % height == height - 1 else ""))
        return
    if show:
        _show(console, image)
    for step in np.unique(np.linspace(0, len(along) - 1, STEPS).round().astype(int)):
        say(console, prediction(int(step), BAR))


def _show(console: Console, image: np.ndarray) -> None:
    rows = _grey(image)
    for row in rows:
        say(console, shades(row, wide=2 * rows.shape[1] <= console.width, plain=_is_plain(console)))


def _grey(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 2 else image.mean(axis=-1)


def _is_plain(console: Console) -> bool:
    """Whether the terminal has ASCII only."""
    return not console.encoding.lower().startswith("utf")
