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
    to fit), plain (unchanged, of the right size). None is digit where the classes are digits, else whole."""
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
class Result:
    """The result for a picture.

    Attributes:
      name: of the file, and of the picture within it.
      images: [digits, height, width], or one [1, height, width, channels], in the run's form; None after an error.
      boxes: of each digit on the picture, (top, left, height, width) as fractions; none in other forms.
      marks: for each digit, the boxes of the marks beside it that are not read.
      picture: the picture itself, reduced, uint8; None where it is not drawn with boxes.
      probabilities: [digits, classes]; None until they are classified.
      warnings: of each digit, or None; none after an error.
      remarks: on the whole picture.
      error: why it cannot be classified.
    """

    name: str
    images: np.ndarray | None = None
    boxes: tuple[Box, ...] = ()
    marks: tuple[tuple[Box, ...], ...] = ()
    picture: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    warnings: tuple[str | None, ...] = ()
    remarks: tuple[str, ...] = ()
    error: str | None = None


def predict(arguments: Sequence[str]) -> int:
    """`lstm-mnist predict`."""
    parsed = parse(PredictArguments, arguments)
    if not parsed.images:
        if parsed.run_dir.is_file():
            raise UserError(f"{parsed.run_dir} is a file. Name the folder of a run before the pictures.")
        raise UserError("No image is given. Give files, folders or patterns after the run, or - for standard input.")
    if parsed.json and (parsed.show or parsed.explain):
        raise UserError("--show and --explain print text; leave out --json.")
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
    errors, figures, rows = 0, 0, list[Result]()
    has_boxes = parsed.show or folder is not None
    for result in _results(run, files, parsed.form, has_boxes):
        drawn: list[Path] = []
        overview = None
        if result.error is not None:
            errors += 1
            print(f"lstm-mnist: {result.error}", file=sys.stderr)
        elif folder is not None:
            overview = _draw_overview(run, result, folder, taken)
            drawn = _draw(run, result, folder, taken)
            figures += len(drawn) + (overview is not None)
        if parsed.json:
            print(json.dumps(_as_json(run, result, drawn, overview), allow_nan=False), flush=True)
        elif result.error is None:
            rows.append(_for_printing(result) if parsed.show else replace(result, picture=None))
        if len(rows) == ROWS:
            _print(run, rows, parsed)
            rows = []
    _print(run, rows, parsed)
    if figures and not parsed.json:
        print(f"{figures} drawn in {folder}")
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
    from lstm_mnist_jax.data.pictures import printable, read_pictures, reduced

    for file in files:
        try:
            remarks = list[str]()
            for name, picture in read_pictures(file, remarks.append, run.folder.data.image_shape):
                try:
                    if (form or run.form) == "digit" and len(run.folder.data.image_shape) == 2:
                        digits = run.find_digits(picture)
                        turned = run.turned_reading(digits)
                        boxes = tuple(digit.box for digit in digits)
                        marks = tuple(digit.marks for digit in digits)
                        images = np.stack([digit.image for digit in digits])
                        warnings = tuple(digit.warning for digit in digits)
                        is_drawn = has_boxes and (len(boxes) > 1 or max(boxes[0][2:]) < CUT_OUT)
                        kept = (255 * reduced(picture, DRAWN_SIZE)).round().astype(np.uint8) if is_drawn else None
                    else:
                        images, boxes, marks, turned, kept = run.normalise([picture], form), (), (), None, None
                        warnings = tuple(run.warnings(images, form))
                    found = (*remarks, *([turned] if turned else []))
                    remarks.clear()  # said once for a file
                    yield Result(name, images, boxes, marks, picture=kept, warnings=warnings, remarks=found)
                except DataError as error:
                    yield Result(name, error=f"{printable(name)}: {error}")
        except DataError as error:
            yield Result(file, error=str(error))


def _classified(run: "TrainedRun", waiting: list[Result]) -> Iterator[Result]:
    from lstm_mnist_jax.inference import require_finite

    images = [result.images for result in waiting if result.images is not None]
    probabilities = run.predict(np.concatenate(images))[1] if images else np.zeros(0)
    require_finite(run, probabilities)
    classified = iter(np.split(probabilities, np.cumsum([len(each) for each in images])))
    for result in waiting:
        yield result if result.images is None else replace(result, probabilities=next(classified))


def _top(run: "TrainedRun", result: Result, digit: int = 0) -> list[tuple[str, float]]:
    """The most probable classes of a digit of the picture with their probabilities."""
    assert result.probabilities is not None
    probabilities = result.probabilities[digit]
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    return [(run.class_names[label], float(probabilities[label])) for label in order]


def _marks(run: "TrainedRun", result: Result) -> list[Mark]:
    """What is drawn around each digit."""
    firsts = [_top(run, result, number)[0] for number in range(len(result.boxes))]
    return [
        Mark(box, label, share, warning is not None)
        for box, (label, share), warning in zip(result.boxes, firsts, result.warnings, strict=True)
    ]


def _for_printing(result: Result) -> Result:
    """With the picture in grey, and so small that many are held in memory."""
    from lstm_mnist_jax.data.pictures import reduced

    if result.picture is None:
        return result
    return replace(result, picture=reduced(_grey(result.picture), PRINTED_SIZE).astype(np.uint8))


def _as_json(run: "TrainedRun", result: Result, figures: list[Path], overview: Path | None) -> dict[str, Any]:
    if result.error is not None:
        return {"file": result.name, "error": result.error}
    assert result.images is not None
    digits: list[dict[str, Any]] = []
    for number in range(len(result.images)):
        top = [{"label": label, "probability": probability} for label, probability in _top(run, result, number)]
        box = {"box": result.boxes[number], "marks": result.marks[number]} if result.boxes else {}
        digits.append({**top[0], "top": top} | box | {"warning": result.warnings[number]})
    found: dict[str, Any] = {"file": result.name, **digits[0]}
    for name in ("box", "marks"):
        found.pop(name, None)
    found["warning"] = "; ".join(_warnings(result)) or None
    if len(digits) > 1:
        del found["top"]
        found["label"] = "".join(digit["label"] for digit in digits)
        found["probability"] = math.prod(digit["probability"] for digit in digits)
    if result.boxes:
        found["digits"] = digits
    return (
        found
        | ({"figure": str(figures[0])} if len(figures) == 1 else {})
        | ({"figures": list(map(str, figures))} if len(figures) > 1 else {})
        | ({} if overview is None else {"overview": str(overview)})
    )


def _warnings(result: Result) -> list[str]:
    """What is said about a picture and its digits."""
    several = len(result.warnings) > 1
    of_digits = [
        f"digit {number}: {warning}" if several else warning
        for number, warning in enumerate(result.warnings, 1)
        if warning is not None
    ]
    return [*result.remarks, *of_digits]


def _figures_folder(folder: Path) -> Path:
    folder = folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{folder} is a file; name a folder for the figures with --explain-into.") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be a folder for figures: {error.strerror or error}.") from error
    return folder


def _draw_overview(run: "TrainedRun", result: Result, folder: Path, taken: set[str]) -> Path | None:
    """Draws a picture with boxes around its digits; None where it has none."""
    from lstm_mnist_jax.data.pictures import printable
    from lstm_mnist_jax.report.boxes import draw_boxes

    if result.picture is None:
        return None
    figure = draw_boxes(result.picture, _marks(run, result), title=printable(result.name))
    return _write(figure, folder, _stem(result), "digits", taken)


def _draw(run: "TrainedRun", result: Result, folder: Path, taken: set[str]) -> list[Path]:
    """Draws how each digit of a picture was read, into files that are not `taken` by a picture or by another figure."""
    from lstm_mnist_jax.data.pictures import printable
    from lstm_mnist_jax.report.reading import draw_reading_of

    assert result.images is not None
    paths = []
    for digit, image in enumerate(result.images, 1):
        several = len(result.images) > 1
        name = f"{_stem(result)}-digit-{digit}" if several else _stem(result)
        title = printable(result.name) + (f", digit {digit} of {len(result.images)}" if several else "")
        paths.append(_write(draw_reading_of(run, image, title=title), folder, name, "reading", taken))
    return paths


def _stem(result: Result) -> str:
    """The beginning of the names of a picture's figures."""
    stem = re.sub(r"\.\w+$|\.npy(?=\[\d+\]$)", "", Path(result.name).name)
    return re.sub(r"[^\w.]+", "-", stem).strip("-.").encode()[:200].decode(errors="ignore") or "picture"


def _write(figure: "Figure", folder: Path, name: str, kind: str, taken: set[str]) -> Path:
    """Writes a figure as NAME-KIND.png, or NAME-2-KIND.png and so on where that is taken."""
    from lstm_mnist_jax.report.style import file_bytes

    number, path = 1, folder / f"{name}-{kind}.png"
    while str(path.resolve()).casefold() in taken:
        number += 1
        path = folder / f"{name}-{number}-{kind}.png"
    taken.add(str(path.resolve()).casefold())
    with os_errors_as(UserError, path, "written"):
        path.write_bytes(file_bytes(figure, "png"))
    return path


def _print(run: "TrainedRun", results: list[Result], parsed: PredictArguments) -> None:
    """Prints a table, and with --show or --explain each picture."""
    if not results:
        return
    from lstm_mnist_jax.data.pictures import printable

    console = OutputConsole()
    if not console.is_terminal:
        console.width = 10_000  # in a file or a pipe, each picture is one line
    table = Table()
    for title in ("picture", "label"):
        table.add_column(title, overflow="fold")
    table.add_column("probability", justify="right")
    table.add_column("then", overflow="fold")
    for result in results:
        assert result.images is not None
        count = len(result.images)
        (label, probability), *others = _top(run, result)
        then = ", ".join(f"{other} {percent(share)}" for other, share in others)
        if count > 1:
            firsts = [_top(run, result, number)[0] for number in range(count)]
            label = f"{count} digits: " + " ".join(name for name, _ in firsts)
            probability = math.prod(share for _, share in firsts)
            then = ", ".join(f"{name} {percent(share)}" for name, share in firsts)
        table.add_row(*map(Text, (printable(result.name), label, percent(probability), then)))
    console.print(table)
    for result in results:
        for warning in _warnings(result):
            say(console, f"warning: {printable(result.name)}: {warning}")
    for result in results:
        assert result.images is not None
        if result.picture is not None:
            say(console, f"{printable(result.name)}, its digits in boxes:")
            grey = result.picture.astype(np.float32) / 255
            for line in boxed_lines(grey, _marks(run, result), width=console.width, plain=_is_plain(console)):
                say(console, line)
        for number, image in enumerate(result.images, 1):
            digit = f", digit {number} of {len(result.images)}" if len(result.images) > 1 else ""
            if parsed.explain:
                _explain(console, run, printable(result.name) + digit, image, parsed.show)
            elif parsed.show:
                say(console, f"{printable(result.name)}{digit}, as the network reads it:")
                _show(console, image)


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
