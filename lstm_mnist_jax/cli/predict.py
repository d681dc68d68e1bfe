"""`lstm-mnist predict`."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from lstm_mnist_jax.cli.answers import Answer, print_answers, top
from lstm_mnist_jax.cli.parsing import parse, use_compilation_cache
from lstm_mnist_jax.errors import DataError, RunError, UserError

if TYPE_CHECKING:
    from lstm_mnist_jax.inference import TrainedRun

TOGETHER = 64
"""How many pictures are classified at once."""

ROWS = 1024
"""How many pictures a table has, at most: more get another, so that as many are held and no more."""


@dataclass(frozen=True)
class PredictArguments:
    """Ask a trained run what is on pictures: PNG, JPEG, BMP, GIF, WebP or .npy, of any size, dark on light or light
    on dark. Files that cannot be read are told on standard error, the others answered; the exit code is 1 then."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """The run's folder."""
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE ...")]
    """Files, folders, patterns such as 'scans/*.png' (** for folders in folders), or - for standard input."""
    checkpoint: str = "best"
    """best (on validation), last, or the step of a checkpoint."""
    form: Literal["digit", "whole", "plain"] | None = None
    """How a picture is made an image of the run's: digit (found, brought to MNIST's size and place), whole (fitted
    in), plain (as it is, of the right size). None is digit where the classes are digits, else whole."""
    json: bool = False
    """Print one JSON object a line, of each picture, instead of a table."""
    show: bool = False
    """Show each picture as the network sees it."""
    explain: bool = False
    """Show each picture step by step, with what the network thinks after each."""
    explain_into: Path | None = None
    """A folder for drawings, one a picture: saliency, the probabilities after each step, the states of all layers."""


def predict(arguments: Sequence[str]) -> int:
    """`lstm-mnist predict`."""
    parsed = parse(PredictArguments, arguments)
    if not parsed.images:
        if parsed.run_dir.is_file():
            raise UserError(f"{parsed.run_dir} is a file. Name the folder of a run before the pictures.")
        raise UserError("There is no picture. Name files, folders or patterns after the run, or - for standard input.")
    if parsed.json and (parsed.show or parsed.explain):
        raise UserError("--show and --explain are for people; leave out --json.")
    from lstm_mnist_jax.data.pictures import find_pictures
    from lstm_mnist_jax.inference import load_run

    _require_order(parsed)
    use_compilation_cache()
    run = load_run(parsed.run_dir, parsed.checkpoint)
    files = find_pictures(parsed.images)
    drawings = None if parsed.explain_into is None else _Drawings(parsed.explain_into.expanduser(), files)
    all_answered, rows = True, []
    for answer in _answers(run, files, parsed.form):
        figure = None
        if answer.error is not None:
            all_answered = False
            print(f"lstm-mnist: {answer.error}", file=sys.stderr)
        elif drawings is not None:
            figure = drawings.draw(run, answer)
        if parsed.json:
            print(json.dumps(_as_json(run, answer, figure), allow_nan=False), flush=True)
        elif answer.error is None:
            rows.append(answer)
        if len(rows) == ROWS:
            print_answers(run, rows, show=parsed.show, explain=parsed.explain)
            rows = []
    print_answers(run, rows, show=parsed.show, explain=parsed.explain)
    if drawings is not None and drawings.count and not parsed.json:
        print(f"{drawings.count} drawn in {drawings.folder}")
    return 0 if all_answered else 1


def _answers(run: "TrainedRun", files: Sequence[str], form: str | None) -> Iterator[Answer]:
    """The answers in the order of the pictures, of which no more are held than are classified together."""
    waiting: list[Answer] = []
    for answer in _pictures(run, files, form):
        waiting.append(answer)
        if len(waiting) == TOGETHER:
            yield from _classified(run, waiting)
            waiting = []
    yield from _classified(run, waiting)


def _pictures(run: "TrainedRun", files: Sequence[str], form: str | None) -> Iterator[Answer]:
    from lstm_mnist_jax.data.pictures import printable, read_pictures

    for file in files:
        try:
            for name, picture in read_pictures(file):
                try:
                    yield Answer(name, run.normalise([picture], form)[0])
                except DataError as error:
                    yield Answer(name, error=f"{printable(name)}: {error}")
        except DataError as error:
            yield Answer(file, error=str(error))


def _classified(run: "TrainedRun", waiting: list[Answer]) -> Iterator[Answer]:
    images = [answer.image for answer in waiting if answer.image is not None]
    if images:
        _, probabilities = run.predict(np.stack(images))
        if not np.isfinite(probabilities).all():
            raise RunError(
                f"The network of {run.folder.path} at step {run.step} answers with what is no number (NaN): its "
                "training diverged. Choose an earlier --checkpoint."
            )
    classified = iter(probabilities if images else ())
    for answer in waiting:
        yield answer if answer.image is None else Answer(answer.name, answer.image, next(classified))


def _require_order(parsed: PredictArguments) -> None:
    """Raises UserError where the run does not come first."""
    if not parsed.run_dir.expanduser().is_dir():
        for word in parsed.images:
            if Path(word).expanduser().joinpath("config.json").is_file():
                raise UserError(f"The run comes first, the pictures after it: lstm-mnist predict {word} IMAGE ...")


def _as_json(run: "TrainedRun", answer: Answer, figure: Path | None) -> dict[str, Any]:
    if answer.error is not None:
        return {"file": answer.name, "error": answer.error}
    likeliest = top(run, answer)
    told = {
        "file": answer.name,
        "label": likeliest[0][0],
        "probability": likeliest[0][1],
        "top": [{"label": label, "probability": probability} for label, probability in likeliest],
    }
    return told if figure is None else told | {"figure": str(figure)}


class _Drawings:
    """A folder of drawings, each named after its picture."""

    def __init__(self, folder: Path, pictures: Sequence[str]) -> None:
        self.folder = folder
        self._pictures = {Path(picture).resolve() for picture in pictures}
        self.count = 0
        self._names: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise UserError(f"{folder} is a file; name a folder for the drawings with --explain-into.") from error
        except OSError as error:
            raise UserError(f"{folder} cannot be a folder for drawings: {error.strerror or error}.") from error

    def draw(self, run: "TrainedRun", answer: Answer) -> Path:
        """Draws how a picture was read; no drawing replaces another of the same command, nor a picture."""
        from lstm_mnist_jax.data.pictures import printable
        from lstm_mnist_jax.report.files import file_bytes
        from lstm_mnist_jax.report.reading import draw_reading_of

        assert answer.image is not None
        stem = re.sub(r"\.\w+$|\.npy(?=\[\d+\]$)", "", Path(answer.name).name)
        stem = re.sub(r"[^\w.]+", "-", stem).strip("-.").encode()[:200].decode(errors="ignore") or "picture"
        name, number = f"{stem}-reading.png", 1
        while name.casefold() in self._names or (self.folder / name).resolve() in self._pictures:
            number += 1
            name = f"{stem}-{number}-reading.png"
        self._names.add(name.casefold())
        figure = draw_reading_of(run, answer.image, title=printable(answer.name))
        try:
            (self.folder / name).write_bytes(file_bytes(figure, "png"))
        except OSError as error:
            raise UserError(f"{self.folder / name} cannot be written: {error.strerror or error}.") from error
        self.count += 1
        return self.folder / name
