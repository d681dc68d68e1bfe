"""`lstm-mnist predict`."""

import json
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
from lstm_mnist_jax.errors import DataError, UserError
from lstm_mnist_jax.progress import say
from lstm_mnist_jax.report.terminal import bar, percent, shades

if TYPE_CHECKING:
    from lstm_mnist_jax.inference import TrainedRun

BATCH = 64
"""So many pictures are classified at once."""

ROWS = 1024
"""The maximum of rows of a table; more pictures get another table, so that no more are held in memory."""

TOP = 3
"""The most probable classes: so many are printed for each picture."""

STEPS = 28
"""The prediction is printed after at most so many steps, if steps are not rows."""

BAR = 20
"""Characters of a bar of probability, where there is room."""


@dataclass(frozen=True)
class PredictArguments:
    """Classify images with a trained run: PNG, JPEG, BMP, GIF, WebP or .npy, of any size, dark on light or light on
    dark. Files that cannot be read are reported on standard error, the others classified; the exit code is 1 then."""

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
    """Print each image as the network reads it."""
    explain: bool = False
    """Print each image with the prediction after each step."""
    explain_into: Path | None = None
    """A folder for figures, one per image: saliency, the probabilities after each step, the states of all layers."""


@dataclass(frozen=True)
class Result:
    """The result for a picture.

    Attributes:
      name: of the file, and of the picture within it.
      image: in the run's form; None if there was an error.
      probabilities: of all classes; None until it is classified.
      error: why it cannot be classified.
    """

    name: str
    image: np.ndarray | None = None
    probabilities: np.ndarray | None = None
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
    files = find_pictures(parsed.images)
    folder = None if parsed.explain_into is None else _figures_folder(parsed.explain_into)
    taken = {str(Path(file).resolve()).casefold() for file in files}
    errors, figures, rows = 0, 0, list[Result]()
    for result in _results(run, files, parsed.form):
        figure = None
        if result.error is not None:
            errors += 1
            print(f"lstm-mnist: {result.error}", file=sys.stderr)
        elif folder is not None:
            figure = _draw(run, result, folder, taken)
            figures += 1
        if parsed.json:
            print(json.dumps(_as_json(run, result, figure), allow_nan=False), flush=True)
        elif result.error is None:
            rows.append(result)
        if len(rows) == ROWS:
            _print(run, rows, parsed)
            rows = []
    _print(run, rows, parsed)
    if figures and not parsed.json:
        print(f"{figures} drawn in {folder}")
    return 1 if errors else 0


def _results(run: "TrainedRun", files: Sequence[str], form: str | None) -> Iterator[Result]:
    """The results in the order of the pictures; at most a batch of pictures is held in memory."""
    waiting: list[Result] = []
    for result in _pictures(run, files, form):
        waiting.append(result)
        if len(waiting) == BATCH:
            yield from _classified(run, waiting)
            waiting = []
    yield from _classified(run, waiting)


def _pictures(run: "TrainedRun", files: Sequence[str], form: str | None) -> Iterator[Result]:
    from lstm_mnist_jax.data.pictures import printable, read_pictures

    for file in files:
        try:
            for name, picture in read_pictures(file):
                try:
                    yield Result(name, run.normalise([picture], form)[0])
                except DataError as error:
                    yield Result(name, error=f"{printable(name)}: {error}")
        except DataError as error:
            yield Result(file, error=str(error))


def _classified(run: "TrainedRun", waiting: list[Result]) -> Iterator[Result]:
    from lstm_mnist_jax.inference import require_finite

    images = [result.image for result in waiting if result.image is not None]
    probabilities = run.predict(np.stack(images))[1] if images else np.zeros(0)
    require_finite(run, probabilities)
    classified = iter(probabilities)
    for result in waiting:
        yield result if result.image is None else replace(result, probabilities=next(classified))


def _top(run: "TrainedRun", result: Result) -> list[tuple[str, float]]:
    """The most probable classes with their probabilities."""
    assert result.probabilities is not None
    order = np.argsort(-result.probabilities, kind="stable")[:TOP]
    return [(run.class_names[label], float(result.probabilities[label])) for label in order]


def _as_json(run: "TrainedRun", result: Result, figure: Path | None) -> dict[str, Any]:
    if result.error is not None:
        return {"file": result.name, "error": result.error}
    top = [{"label": label, "probability": probability} for label, probability in _top(run, result)]
    found = {"file": result.name, **top[0], "top": top}
    return found if figure is None else found | {"figure": str(figure)}


def _figures_folder(folder: Path) -> Path:
    folder = folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{folder} is a file; name a folder for the figures with --explain-into.") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be a folder for figures: {error.strerror or error}.") from error
    return folder


def _draw(run: "TrainedRun", result: Result, folder: Path, taken: set[str]) -> Path:
    """Draws how a picture was read, into a file that is not `taken`: by a picture, or by another figure."""
    from lstm_mnist_jax.data.pictures import printable
    from lstm_mnist_jax.report.reading import draw_reading_of
    from lstm_mnist_jax.report.style import file_bytes

    assert result.image is not None
    stem = re.sub(r"\.\w+$|\.npy(?=\[\d+\]$)", "", Path(result.name).name)
    stem = re.sub(r"[^\w.]+", "-", stem).strip("-.").encode()[:200].decode(errors="ignore") or "picture"
    path, number = folder / f"{stem}-reading.png", 1
    while str(path.resolve()).casefold() in taken:
        number += 1
        path = folder / f"{stem}-{number}-reading.png"
    taken.add(str(path.resolve()).casefold())
    figure = draw_reading_of(run, result.image, title=printable(result.name))
    try:
        path.write_bytes(file_bytes(figure, "png"))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
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
        (label, probability), *others = _top(run, result)
        then = ", ".join(f"{other} {percent(share)}" for other, share in others)
        table.add_row(*map(Text, (printable(result.name), label, percent(probability), then)))
    console.print(table)
    for result in results:
        if parsed.explain:
            _explain(console, run, result, parsed.show)
        elif parsed.show:
            say(console, f"{printable(result.name)}, as the network reads it:")
            _show(console, result)


def _explain(console: Console, run: "TrainedRun", result: Result, show: bool) -> None:
    """Prints the prediction after each step, beside the rows of the picture if a step is one row or several."""
    assert result.image is not None
    from lstm_mnist_jax.data.pictures import printable
    from lstm_mnist_jax.model import task_of

    config = run.folder.config.model
    along, rows = run.read_along(result.image[None])[0], _grey(result)
    task = task_of(config).describe(run.folder.data.image_shape)
    say(console, f"{printable(result.name)}, read as {task}; after each step the prediction and its probability:")
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
        _show(console, result)
    for step in np.unique(np.linspace(0, len(along) - 1, STEPS).round().astype(int)):
        say(console, prediction(int(step), BAR))


def _show(console: Console, result: Result) -> None:
    rows = _grey(result)
    for row in rows:
        say(console, shades(row, wide=2 * rows.shape[1] <= console.width, plain=_is_plain(console)))


def _grey(result: Result) -> np.ndarray:
    assert result.image is not None
    return result.image if result.image.ndim == 2 else result.image.mean(axis=-1)


def _is_plain(console: Console) -> bool:
    """Whether the terminal has ASCII only."""
    return not console.encoding.lower().startswith("utf")
